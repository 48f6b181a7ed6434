"""The native runner under qemu: no C library around it, the right tokens, and errors for all that is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import exports
from edgeship.ship import android_runner
from edgeship_runtime.manifest import read_manifest
from edgeship_runtime.tokens import find_tokenizer
from phones import CPUS, enter, need_namespaces, need_qemu
from qwen_files import needs_tokenizer, write_model
from tolerances import RUNNER_LOGIT_ERROR_STD, RUNNER_TIE_STD

from .conftest import Run

pytestmark = pytest.mark.device

PROMPTS = (
    "What is the opposite of hot?",
    "Once upon a time",
    "<|im_start|>user\nWhat sound does a cow make?<|im_end|>\n<|im_start|>assistant\n",
    "What is the capital of France?",
)
_INTERP, _DYNAMIC, _LOAD = 3, 2, 1


def segments(path: Path) -> list[tuple[int, int]]:
    """Type and alignment of every program header of a 64-bit ELF file."""
    raw = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", raw, 32)
    size, count = struct.unpack_from("<HH", raw, 54)
    found = (struct.unpack_from("<IIQQQQQQ", raw, offset + i * size) for i in range(count))
    return [(each[0], each[7]) for each in found]


def tampered(artifact: Path, to: Path, name: str, raw: bytes) -> Path:
    """A copy of the artifact with another file `name`, sealed as if it belonged there."""
    shutil.copytree(artifact, to)
    (to / name).write_bytes(raw)
    manifest = json.loads((to / "edgeship.json").read_text())
    manifest["files"][name] = {"size": len(raw), "sha256": sha256(raw).hexdigest()}
    (to / "edgeship.json").write_text(json.dumps(manifest))
    return to


class TestAlone:
    @pytest.mark.parametrize("name", android_runner.VARIANTS)
    def test_static_and_for_large_pages(self, built: dict[str, Path], name: str) -> None:
        found = segments(built[name])
        assert not {kind for kind, _ in found} & {_INTERP, _DYNAMIC}, "no loader and no library is asked for"
        assert all(align >= 1 << 14 for kind, align in found if kind == _LOAD), "Android may have pages of 16 KiB"
        assert built[name].stat().st_size < 6_000_000
        for mine in (str(Path.home()), "/work", "/tmp/"):
            assert mine.encode() not in built[name].read_bytes(), "no paths of this machine"

    @pytest.mark.parametrize("cpu", CPUS)
    def test_in_a_root_without_a_c_library(
        self, built: dict[str, Path], artifact: Path, tmp_path: Path, cpu: str
    ) -> None:
        need_namespaces(tmp_path / "root")
        root = tmp_path / "root"
        shutil.copytree(artifact, root / "artifact")
        shutil.copy(built[CPUS[cpu]], root / "runner")
        shutil.copy(need_qemu(), root / "qemu")
        assert {path.name for path in root.iterdir()} == {"artifact", "runner", "qemu", "proc"}, "nothing else"
        command = [*enter(root), "/qemu", "-cpu", cpu, "/runner"]
        done = subprocess.run([*command, "verify", "/artifact", "--json"], capture_output=True, text=True, check=False)
        verdict = json.loads(done.stdout)
        assert (done.returncode, verdict["verdict"]) == (0, "pass"), verdict["failures"]
        assert verdict["agreement"]["equal"] == verdict["agreement"]["positions"]
        done = subprocess.run(
            [*command, "generate", "/artifact", "--text", PROMPTS[0], "--decode-tokens", "24", "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(done.stdout)["token_ids"] == greedy(artifact, PROMPTS[0], 24)

    def test_becomes_the_best_build(self, built: dict[str, Path], tmp_path: Path) -> None:
        """The kernel itself starts ARM programs here, as on a phone."""
        if os.getuid() or not shutil.which("unshare"):
            pytest.skip("needs root: registers qemu with the kernel")
        for name in android_runner.VARIANTS:
            shutil.copy(built[name], tmp_path)
        magic = r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
        entry = f":edgeship-{os.getpid()}:M::{magic}::{need_qemu()}:PF"
        script = (
            "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && "
            f"printf '%s' '{entry}' > /proc/sys/fs/binfmt_misc/register || exit 99\n"
            f"'{tmp_path}/edgeship-runner' doctor --json; code=$?\n"
            f"echo -1 > /proc/sys/fs/binfmt_misc/edgeship-{os.getpid()}; exit $code"
        )
        for cpu, wanted in {"cortex-a72": "armv8.0", "cortex-a76": "dotprod", "max": "i8mm"}.items():
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", script],
                env={"QEMU_CPU": cpu, "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 99:
                pytest.skip("the kernel has no binfmt_misc")
            assert json.loads(done.stdout)["runner"]["variant"] == wanted, done.stderr


def greedy(artifact: Path, prompt: str, count: int) -> list[int]:
    """What the Python runtime's llama.cpp engine continues with."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    import edgeship_runtime

    with edgeship_runtime.load(artifact, engine="llamacpp", threads=1) as model:
        engine, new, tokens = model.engine, model.encode(prompt), list[int]()
        while len(tokens) < count:
            tokens.append(int(engine.evaluate(new).argmax()))
            if tokens[-1] in model.manifest.model.eos_token_ids:
                return tokens[:-1]
            new = tokens[-1:]
        return tokens


def gaps(artifact: Path, prompt: str, tokens: list[int]) -> list[float]:
    """Where tokens are not the Python runtime's likeliest ones: how far behind those they are, in deviations."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    import edgeship_runtime

    found = []
    with edgeship_runtime.load(artifact, engine="llamacpp", threads=1) as model:
        new = model.encode(prompt)
        for token in tokens:
            logits = model.engine.evaluate(new)
            if int(logits.argmax()) != token:
                found.append(float((logits.max() - logits[token]) / logits.std()))
            new = [token]
    return found


class TestAnswers:
    @pytest.mark.parametrize("cpu", CPUS)
    def test_tokens_are_those_of_the_python_runtime(self, run: Run, artifact: Path, cpu: str) -> None:
        for prompt in PROMPTS:
            found = run("generate", artifact, "--text", prompt, "--decode-tokens", 16, cpu=cpu, program=CPUS[cpu]).body
            parted = gaps(artifact, prompt, found["token_ids"])
            assert all(gap < RUNNER_TIE_STD for gap in parted), (prompt, parted)
            assert not parted or prompt == PROMPTS[-1], "only what no conversation looks like comes to near ties"
            assert found["finish_reason"] in ("length", "stop")

    def test_verdict_is_the_python_runtime_s(self, run: Run, artifact: Path) -> None:
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
        from edgeship_runtime.verify import verify

        theirs = verify(artifact, engine="llamacpp", threads=1).to_json()
        for cpu, program in CPUS.items():
            ours = run("verify", artifact, cpu=cpu, program=program).body
            assert ours.keys() == theirs.keys()
            assert ours["agreement"].keys() == theirs["agreement"].keys()
            for name in ("verdict", "intact", "size", "tokens", "failures"):
                assert json.dumps(ours[name]) == json.dumps(theirs[name]), name
            mine, other = ours["agreement"], theirs["agreement"]
            assert (mine["positions"], mine["equal"]) == (other["positions"], other["equal"])
            assert abs(mine["max_logit_error_std"] - other["max_logit_error_std"]) < RUNNER_LOGIT_ERROR_STD
            assert mine["kernels"] == ("neon" if cpu == "cortex-a72" else "dotprod")

    def test_float_model(self, run: Run, artifact: Path, tmp_path: Path) -> None:
        """The divergence from the float model is the Python runtime's; here of the golden logits in its place."""
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
        from edgeship_runtime.verify import verify

        golden = json.loads((artifact / "acceptance/golden.json").read_text())
        for case in golden["cases"]:
            for place in case["positions"]:
                place["top_logits"] = [-0.7 - 0.9 * i for i in range(len(place["top_logits"]))]
        made = tampered(
            artifact, tmp_path / "floats", "acceptance/fidelity.json", json.dumps(golden | {"kl_budget": 9.0}).encode()
        )
        theirs = verify(made, engine="llamacpp", threads=1).to_json()["agreement"]["float_model"]
        ours = run("verify", made).body["agreement"]["float_model"]
        assert ours.keys() == theirs.keys()
        assert (ours["positions"], ours["equal"], ours["kl_budget"]) == (theirs["positions"], theirs["equal"], 9.0)
        assert ours["kl_mean"] == pytest.approx(theirs["kl_mean"], rel=0.05)

    def test_token_ids_of_any_text(self, run: Run, artifact: Path, tmp_path: Path) -> None:
        """A thousand texts of letters that Unicode composes and decomposes, by the tokenizers library and by us."""
        tokenizer = find_tokenizer(artifact, read_manifest(artifact))
        assert tokenizer
        chosen = random.Random(7)
        odd = [chr(c) for c in (*range(0x300, 0x370), *range(0x1100, 0x1200), *range(0x1E00, 0x1F00), 0x958, 0x212B)]
        plain = [*"abc eA1.\n", "é", "ｱ", "😀", "한", "ệ", "च", "\u0344", "\u0f73"]
        texts = ["".join(chosen.choices(odd + plain * 20, k=chosen.randrange(1, 12))) for _ in range(1000)]
        cases = [
            {
                "name": f"{i}",
                "messages": [],
                "add_generation_prompt": False,
                "rendered": t,
                "token_ids": tokenizer.encode(t),
            }
            for i, t in enumerate(texts)
        ]
        raw = json.dumps({"schema": 1, "cases": cases}).encode()
        found = run("verify", tampered(artifact, tmp_path / "texts", "acceptance/chats.json", raw)).body
        assert found["tokens"] == {"cases": 1000, "equal": 1000}, found["failures"][:3]

    def test_other_ids_by_llamacpp(self, run: Run, artifact: Path, tmp_path: Path) -> None:
        tokenizer = find_tokenizer(artifact, read_manifest(artifact))
        assert tokenizer
        right, case = tokenizer.encode("one"), {"messages": [], "add_generation_prompt": False, "rendered": "one"}
        ids = [
            {"token_ids": [3]},
            {"token_ids": [3], "gguf_token_ids": right},
            {"token_ids": [3], "gguf_token_ids": [4]},
        ]
        cases = [case | each | {"name": f"{i}"} for i, each in enumerate(ids)]
        raw = json.dumps({"schema": 1, "cases": cases}).encode()
        found = run("verify", tampered(artifact, tmp_path / "texts", "acceptance/chats.json", raw)).body
        assert found["tokens"] == {"cases": 3, "equal": 1}

    @needs_tokenizer
    def test_qwens_vocabulary(self, run: Run, tmp_path: Path) -> None:
        checkpoint = write_model(tmp_path / "checkpoint")
        made = exports.built(exports.recipe(formats=["gguf"]), tmp_path / "out", ("gguf",), checkpoint=checkpoint)
        found = run("verify", made / "gguf").body
        assert found["tokens"] == {"cases": 23, "equal": 23}, found["failures"]

    def test_bench(self, run: Run, artifact: Path) -> None:
        asked = ("bench", artifact, "--repeats", 2, "--prompt-tokens", 12, "--decode-tokens", 4, "--threads", 2)
        found = run(*asked).body
        for name in ("load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_mb"):
            assert found[name] > 0, name
        assert (found["prompt_tokens"], found["decode_tokens"], found["threads"], found["repeats"]) == (12, 4, 2, 2)

    def test_doctor(self, run: Run, artifact: Path) -> None:
        found = run("doctor", artifact, cpu="max").body
        assert found["device"]["isa"][:3] == ["dotprod", "fp16", "i8mm"]
        assert found["engines"]["llamacpp"]["state"] == "ok"
        assert found["artifact"]["name"] == "tiny-int4"
        assert run("doctor", cpu="cortex-a72").body["device"]["isa"] == []


class TestWrong:
    @pytest.mark.parametrize(("cpu", "program"), [("cortex-a72", "dotprod"), ("cortex-a76", "i8mm")])
    def test_a_build_for_another_processor(self, run: Run, artifact: Path, cpu: str, program: str) -> None:
        name = f"edgeship-runner-{program}"
        for command in ("verify", "bench", "generate"):
            done = run(command, artifact, cpu=cpu, program=name)
            assert done.code == 16, "refused, and not ended by the first instruction it lacks"
            assert "which this processor lacks" in done.error["message"]
        told = run("doctor", cpu=cpu, program=name)
        assert told.code == 16
        assert told.body["engines"]["llamacpp"]["state"] == "crashes"
        assert told.body["findings"][0]["level"] == "error"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda there: os.truncate(there / "tiny-Q4_0.gguf", 500_000), "tiny-Q4_0.gguf: expected"),
            (lambda there: flip(there / "tiny-Q4_0.gguf"), "tiny-Q4_0.gguf: the bytes are not those"),
            (lambda there: (there / "tokenizer.json").unlink(), "tokenizer.json: the file is named"),
            (lambda there: (there / "more").touch(), "more: the file is not named"),
            (lambda there: leave(there / "README.md"), "a link leads out"),
        ],
    )
    def test_files(self, run: Run, artifact: Path, tmp_path: Path, change: Callable[[Path], Any], said: str) -> None:
        there = tmp_path / "artifact"
        shutil.copytree(artifact, there)
        change(there)
        done = run("verify", there)
        assert (done.code, done.body["verdict"], done.body["intact"]) == (14, "fail", False)
        assert any(said in failure for failure in done.body["failures"]), done.body["failures"]
        assert done.body["agreement"] is None, "nothing was opened by the engine"

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            (b"[" * 100_000, "nested deeper than 64"),
            (b'{"schema": 1, "schema": 1}', "written twice"),
            (b'{"schema": 1, "tie_tolerance": 1e999, "cases": []}', "not JSON"),
            (b'{"schema": 1, "x": "\xff"}', "not JSON"),
            (b'{"schema": 2}', "this runner knows 1"),
            (b'{"schema": 1, "tie_tolerance": 0.9, "cases": []}', "tie_tolerance: expected a number"),
            (b'{"schema": 1, "tie_tolerance": 0.1, "cases": {}}', "cases: expected a list"),
            (b'{"schema": 1, "tie_tolerance": 0.1, "cases": [1]}', "cases[0]: expected an object"),
        ],
    )
    def test_golden_files(self, run: Run, artifact: Path, tmp_path: Path, raw: bytes, said: str) -> None:
        done = run("verify", tampered(artifact, tmp_path / "artifact", "acceptance/golden.json", raw))
        assert done.code == 8
        assert said in done.error["message"]
        assert "acceptance/golden.json" in done.error["message"]

    @pytest.mark.parametrize(
        ("member", "value", "said"),
        [
            ("prompt_ids", [10**9], "prompt_ids: expected a whole number"),
            ("prompt_ids", [], "at least one token"),
            ("prompt_ids", [2**64], "prompt_ids: expected a whole number"),
            ("continuation", [1.5], "continuation: expected a whole number"),
            ("positions", [{"index": -1, "top_ids": [1], "top_logits": [1.0], "std": 1.0}], "index: expected"),
            ("positions", [{"index": 0, "top_ids": [1, 1], "top_logits": [1.0, 1.0], "std": 1.0}], "different ids"),
            ("positions", [{"index": 0, "top_ids": [1, 2], "top_logits": [1.0, 2.0], "std": 1.0}], "largest first"),
        ],
    )
    def test_golden_members(
        self, run: Run, artifact: Path, tmp_path: Path, member: str, value: object, said: str
    ) -> None:
        golden = json.loads((artifact / "acceptance/golden.json").read_text())
        golden["cases"][0][member] = value
        raw = json.dumps(golden).encode()
        done = run("verify", tampered(artifact, tmp_path / "artifact", "acceptance/golden.json", raw))
        assert done.code == 8
        assert said in done.error["message"]

    def test_other_tokens_than_golden(self, run: Run, artifact: Path, tmp_path: Path) -> None:
        golden = json.loads((artifact / "acceptance/golden.json").read_text())
        place = golden["cases"][0]["positions"][0]
        place["top_ids"][0] = (place["top_ids"][0] + 1) % 1000
        raw = json.dumps(golden).encode()
        done = run("verify", tampered(artifact, tmp_path / "artifact", "acceptance/golden.json", raw))
        assert (done.code, done.body["verdict"], done.body["agreement"]["wrong"]) == (14, "fail", 1)

    def test_a_file_that_ends_llama_cpp(self, run: Run, artifact: Path, tmp_path: Path) -> None:
        """Two tokens of one text are asserted away inside llama.cpp: an error here, and no silent end."""
        raw = (artifact / "tiny-Q4_0.gguf").read_bytes()
        one, other = (struct.pack("<Q", 1) + letter for letter in (b"a", b"b"))
        assert raw.count(one) == 1
        done = run("bench", tampered(artifact, tmp_path / "twice", "tiny-Q4_0.gguf", raw.replace(one, other)))
        assert done.code == 12, done.body
        assert "llama.cpp gave up: llama-vocab.cpp" in done.error["message"]
        done = run("bench", tampered(artifact, tmp_path / "short", "tiny-Q4_0.gguf", raw[:500_000]))
        assert done.code == 8
        assert "within the file bounds" in done.error["message"]

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            ((), 2),
            (("serve",), 2),
            (("verify",), 2),
            (("verify", "ARTIFACT", "--threads", "0"), 2),
            (("verify", "ARTIFACT", "--engine", "ort"), 2),
            (("bench", "ARTIFACT", "--decode-tokens", "1"), 2),
            (("bench", "ARTIFACT", "--context", "999999999"), 2),
            (("generate", "ARTIFACT"), 2),
            (("generate", "ARTIFACT", "--ids", "1,x"), 2),
            (("generate", "ARTIFACT", "--ids", "99999999"), 12),
            (("generate", "ARTIFACT", "--ids", "1,2,3", "--context", "2"), 11),
            (("verify", "/nowhere"), 8),
        ],
    )
    def test_command_lines(self, run: Run, artifact: Path, words: tuple[str, ...], code: int) -> None:
        done = run(*(artifact if word == "ARTIFACT" else word for word in words))
        assert done.code == code, done.body
        assert done.error["message"]


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def leave(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")
