"""The command line: what is printed where, exit codes, and no traceback whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeship import catalog, cli
from edgeship.cli import run
from edgeship.errors import EdgeshipError, SourceError
from edgeship.progress import Silent

Captured = pytest.CaptureFixture[str]
PIPELINE = Path(cli.__file__).parents[1]
RUNTIME = PIPELINE.parent / "runtime"


def edgeship(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(PIPELINE), str(RUNTIME)])
    env = os.environ | {"PYTHONPATH": paths, "COLUMNS": "80"} | environment
    command = [sys.executable, "-m", "edgeship.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: qwen2.5-0.5b-int4\nmodel: {num_hidden_layers: 2}\n")
    return str(path)


# what the commands print


def test_no_arguments_and_help_print_the_commands(capsys: Captured) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert run(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {command} " in out for command in ("recipes", "plan", "export", "schema"))


@pytest.mark.parametrize("command", ["recipes", "plan", "export", "schema"])
def test_every_command_has_an_example_and_json(capsys: Captured, command: str) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: edgeship {command}" in out
    assert "--json" in out


def test_version(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgeship ")


def test_recipes(capsys: Captured) -> None:
    names = catalog.names()
    assert run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(names)
    assert lines[0].split()[:2] == ["name", "source"]
    assert any(line.split()[:3] == ["qwen3-8b-int8", "Qwen/Qwen3-8B", "qwen3"] for line in lines)
    assert run(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [r["name"] for r in listed] == names


def test_plan_prints_a_page(capsys: Captured) -> None:
    assert run(["plan", "qwen2.5-1.5b-int4"]) == 0
    out = capsys.readouterr().out
    for said in (
        "huggingface Qwen/Qwen2.5-1.5B-Instruct, revision main",
        "qwen2: 28 layers of 1536, feed-forward 8960, 12 heads (2 for K and V) of 128, vocabulary 151936, tied",
        "about 1.10 GB, 5.61 bits per weight",
        "57.3 KB and 28.7 KB per token",
        "about 991 MB, 5.11 bits per weight",
        "embeddings + head  int8-32         1     233M   263 MB         9.00   248 MB         8.50",
    ):
        assert said in out
    assert len(out.splitlines()) < 30


def test_plan_prints_rich_tables_on_a_terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(["plan", "qwen3-8b-int4"]) == 0
    out = capsys.readouterr().out
    assert "─" in out
    assert "Qwen/Qwen3-8B" in out
    assert "KV cache" in out


def test_plan_as_json(capsys: Captured) -> None:
    assert run(["plan", "qwen2.5-0.5b-int8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recipe"]["name"] == "qwen2.5-0.5b-int8"
    assert said["conflicts"] == []


def test_plan_of_a_checkpoint(capsys: Captured, tmp_path: Path, mine: str) -> None:
    model = catalog.find(mine).model
    (tmp_path / "config.json").write_text(json.dumps(model))
    assert run(["plan", mine, "--checkpoint", str(tmp_path)]) == 0
    assert "2 layers of 896" in capsys.readouterr().out
    assert run(["plan", "qwen2.5-0.5b-int4", "--checkpoint", str(tmp_path)]) == 4
    assert "num_hidden_layers: the recipe says 24, the checkpoint 2" in capsys.readouterr().err


def test_a_plan_with_conflicts_is_printed_and_exits_with_4(capsys: Captured, mine: str) -> None:
    Path(mine).write_text("extends: qwen2.5-0.5b-int4\ncontext: 65536\n")
    assert run(["plan", mine]) == 4
    assert f"conflict: {mine}:2:1: context: 65536 is more than the 32768 positions" in capsys.readouterr().out
    assert run(["plan", mine, "--json"]) == 4
    assert len(json.loads(capsys.readouterr().out)["conflicts"]) == 1


def test_schema_is_printed_or_written(capsys: Captured, tmp_path: Path) -> None:
    assert run(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"].endswith("2020-12/schema")
    assert run(["schema", "--out", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == printed
    assert run(["schema", "--out", str(tmp_path / "absent" / "s.json")]) == 8
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


class FakeBuild(ModuleType):
    """Stands for `edgeship.build`: records the request."""

    def __init__(self, fails: BaseException | None = None) -> None:
        super().__init__("edgeship.build")
        self.request: dict[str, Any] = {}
        self.fails = fails

    def export(self, recipe: Any, **request: Any) -> Any:
        self.request = {"recipe": recipe, **request}
        if self.fails is not None:
            raise self.fails
        return Report()


class Report:
    artifact, formats, seconds, peak_rss_mb = Path("artifacts/mine"), ("onnx",), 1.25, 310.0
    size_mb, bits_per_weight, source_revision = 385.5, 6.106, "abc"

    def to_json(self) -> dict[str, Any]:
        return {"artifact": str(self.artifact), "seconds": self.seconds, "source_revision": self.source_revision}


Install = Callable[[FakeBuild], FakeBuild]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    import edgeship as package

    def put(fake: FakeBuild) -> FakeBuild:
        monkeypatch.setitem(sys.modules, "edgeship.build", fake)
        monkeypatch.setattr(package, "build", fake, raising=False)
        return fake

    return put


def test_export_passes_on_what_was_asked(capsys: Captured, install: Install, mine: str) -> None:
    fake = install(FakeBuild())
    arguments = [
        "export",
        mine,
        "--checkpoint",
        "/data/x",
        "--out",
        "o",
        "--max-ram",
        "1.5GiB",
        "--format",
        "onnx",
        "--force",
        "--no-fidelity",
    ]
    assert run(arguments) == 0
    request = dict(fake.request)
    del request["recipe"], request["progress"]
    assert request == {
        "checkpoint": Path("/data/x"),
        "out": Path("o"),
        "formats": ("onnx",),
        "max_ram": 3 << 29,
        "force": True,
        "fidelity": False,
    }
    out = capsys.readouterr().out
    for said in ("artifacts/mine", "386 MB, 6.11 bits per weight", "310 MB of memory at most", "edgeship-runtime run"):
        assert said in out


def test_export_as_json_ends_with_one_object_and_is_quiet(capsys: Captured, install: Install, mine: str) -> None:
    fake = install(FakeBuild())
    assert run(["export", mine, "--json"]) == 0
    assert isinstance(fake.request["progress"], Silent)
    assert fake.request["fidelity"]
    assert (fake.request["checkpoint"], fake.request["max_ram"], fake.request["out"]) == (
        None,
        None,
        Path("artifacts"),
    )
    streams = capsys.readouterr()
    assert json.loads(streams.out)["source_revision"] == "abc"
    assert streams.err == ""


# failures


def every_kind() -> list[type[EdgeshipError]]:
    return EdgeshipError.__subclasses__()


def test_exit_codes_differ() -> None:
    codes = [kind.exit_code for kind in every_kind()]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 130} & set(codes)


@pytest.mark.parametrize("kind", every_kind())
def test_an_error_is_one_screen_on_stderr_with_its_exit_code(
    capsys: Captured, install: Install, mine: str, kind: type[EdgeshipError]
) -> None:
    install(FakeBuild(kind("it went wrong.", hint="do this")))
    assert run(["export", mine]) == kind.exit_code
    streams = capsys.readouterr()
    assert (streams.out, streams.err.splitlines()[-3:]) == ("", ["error: it went wrong.", "", "hint: do this"])
    assert run(["export", mine, "--json"]) == kind.exit_code
    streams = capsys.readouterr()
    said = {"kind": kind.kind, "message": "it went wrong.", "hint": "do this", "exit_code": kind.exit_code}
    assert (json.loads(streams.out), streams.err) == ({"error": said}, "")


USAGE: list[tuple[list[str], str]] = [
    (["exprot"], "No such command 'exprot'. Did you mean 'export'?"),
    (["plan"], "Missing argument"),
    (["plan", "a", "b"], "unexpected extra argument"),
    (["plan", "--jsn", "a"], "--jsn"),
    (["export", "tiny-int4", "--max-ram"], "requires an argument"),
    (["export", "tiny-int4", "--max-ram", "lots"], "--max-ram: expected a size such as 600MB or 1.5GiB, found 'lots'"),
    (["export", "tiny-int4", "--max-ram", "-1"], "--max-ram: expected a size"),
    (["export", "tiny-int4", "--format", "gufg"], "expected one of onnx, gguf, found 'gufg'; did you mean 'gguf'?"),
    (["recipes", "extra"], "unexpected extra argument"),
]


@pytest.mark.parametrize(("arguments", "says"), USAGE)
def test_usage_errors_exit_with_2(capsys: Captured, install: Install, arguments: Sequence[str], says: str) -> None:
    fake = install(FakeBuild())
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert says in streams.err
    assert "\n\nhint: " in streams.err
    assert fake.request == {}


def test_usage_errors_as_json(capsys: Captured) -> None:
    assert run(["plan", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["exit_code"], error["hint"]) == ("usage", 2, "edgeship plan --help")


def test_an_unknown_recipe(capsys: Captured) -> None:
    for command in ("plan", "export"):
        assert run([command, "tiny-int5"]) == 3
        assert "error: no recipe is called 'tiny-int5'; did you mean 'tiny-int" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(capsys: Captured, install: Install, mine: str) -> None:
    install(FakeBuild(KeyboardInterrupt()))
    assert run(["export", mine]) == 130
    err = capsys.readouterr().err
    assert "interrupted" in err
    assert "Traceback" not in err


def test_a_defect_says_so_without_a_traceback(
    capsys: Captured, install: Install, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(FakeBuild(ZeroDivisionError("by chance")))
    monkeypatch.delenv("EDGESHIP_DEBUG", raising=False)
    assert run(["export", mine]) == 1
    err = capsys.readouterr().err
    assert "error: this is a defect of edgeship: ZeroDivisionError: by chance" in err
    assert "EDGESHIP_DEBUG=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("EDGESHIP_DEBUG", "1")
    assert run(["export", mine]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failing_source_of_a_plan(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("source: {host: local, repo: a/b, path: nowhere}\n")
    assert run(["plan", str(path)]) == SourceError.exit_code
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


# as a process


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'onnx', 'onnxruntime', 'huggingface_hub', 'numpy', 'pydantic', 'rich', 'tokenizers', 'torch'}"
    code = (
        "import sys, edgeship.cli\n"
        "code = edgeship.cli.run(['--help'])\n"
        f"sys.exit(code or ', '.join({heavy} & set(sys.modules)) or 0)\n"
    )
    paths = os.pathsep.join([str(PIPELINE), str(RUNTIME)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m edgeship.cli schema | head -n 1; exit ${{PIPESTATUS[0]}}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(PIPELINE), str(RUNTIME)])}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_errors_print_in_a_narrow_locale(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("source: {repo: a/b}\nformats: [模型]\n", encoding="utf-8")
    done = edgeship("plan", str(path), LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "formats[0]: expected one of onnx, gguf" in done.stderr


def test_another_algorithm_than_the_recipes(capsys: Captured, install: Install, mine: str, tmp_path: Path) -> None:
    fake = install(FakeBuild())
    assert run(["export", mine, "--algorithm", "gptq", "--json"]) == 0
    made = fake.request["recipe"]
    assert (made.scheme.algorithm, made.calibration.text, made.calibration.tokens) == ("gptq", None, 8192)
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text("extends: qwen2.5-0.5b-int4\nscheme: {algorithm: gptq}\ncalibration: {tokens: 640}\n")
    for name, tokens in (("rtn-search", 640), ("gptq", 640), ("rtn", None)):
        assert run(["export", str(theirs), "--algorithm", name, "--json"]) == 0
        made = fake.request["recipe"]
        assert made.scheme.algorithm == name
        assert (made.calibration and made.calibration.tokens) == tokens
    capsys.readouterr()
    assert run(["plan", mine, "--algorithm", "gptqq"]) == 2
    assert "did you mean 'gptq'" in capsys.readouterr().err
    (tmp_path / "mix.yaml").write_text("source: {repo: me/mine}\nscheme: {mix: Q4_K_M}\nformats: [gguf]\n")
    assert run(["export", str(tmp_path / "mix.yaml"), "--algorithm", "gptq"]) == 2
    assert "scheme.mix: Q4_K_M" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--no-fidelity"], ["--max-ram", "2GB"]])
def test_options_that_other_exporters_do_not_have_are_refused(
    capsys: Captured, tmp_path: Path, option: list[str]
) -> None:
    recipe = tmp_path / "theirs.yaml"
    recipe.write_text("source: {repo: me/mine}\nexporter: optimum\n")
    assert run(["export", str(recipe), "--out", str(tmp_path / "out"), *option]) == 2
    said = capsys.readouterr().err
    assert f"{option[0]}: expected a recipe of edgeship's own exporter, found exporter: optimum" in said
    assert not (tmp_path / "out").exists()
