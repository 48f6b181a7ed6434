"""What every engine promises, on each: the same tests, against the same model in numpy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgeship_runtime
import tolerances
from edgeship_runtime import engines
from edgeship_runtime.engines import ENGINES, FORMAT_OF, Engine, engine_module, formats, open_engine
from edgeship_runtime.engines.checks import check_version
from edgeship_runtime.errors import ArtifactError, ContextError, DependencyError, EngineError, UsageError
from edgeship_runtime.manifest import locate, read_manifest
from toy_artifact import CONTEXT, END, VOCAB, Toy, write_toy
from toy_gguf import ToyGguf, needs_llamacpp, write_toy_gguf_artifact

IDS = [5, 17, 300, 5, 44, 2, 199, 63, 63, 8, 120]
GREEDY: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Case:
    """An artifact, the same model in numpy, and how far an engine may be from it (of the largest logit)."""

    toy: Toy | ToyGguf
    tolerance: float

    def open(self, context: int = CONTEXT) -> closing[Engine]:
        manifest = read_manifest(self.toy.directory)
        return closing(open_engine(self.toy.directory, manifest, context=context, threads=1))

    def check(self, got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
        assert got.dtype == np.float32
        assert got.shape == (VOCAB,)
        np.testing.assert_allclose(got, want, rtol=0, atol=self.tolerance * np.abs(want).max())


@pytest.fixture(scope="module", params=["ort", pytest.param("llamacpp", marks=needs_llamacpp)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("toy") / FORMAT_OF[request.param]
    if request.param == "ort":
        return Case(write_toy(directory), tolerances.FLOAT32_LOGITS)
    return Case(write_toy_gguf_artifact(directory), tolerances.TOY_GGUF_LOGITS)


@pytest.fixture
def engine(case: Case) -> Iterator[Engine]:
    with case.open() as opened:
        yield opened


def test_what_it_says_of_itself(engine: Engine) -> None:
    package, version = engine.name.rsplit(" ", 1)
    assert package in ("onnxruntime", "llama-cpp-python")
    assert version[0].isdigit()
    assert (engine.vocab_size, engine.context, engine.length, engine.threads) == (VOCAB, CONTEXT, 0, 1)


def test_logits_at_once_one_by_one_and_in_chunks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    want = case.toy.logits(IDS)
    with case.open() as engine:
        case.check(engine.evaluate(IDS), want[-1])
        assert engine.length == len(IDS)
        engine.truncate(0)
        for place, token in enumerate(IDS):
            case.check(engine.evaluate([token]), want[place])
    monkeypatch.setattr(sys.modules[type(engine).__module__], "CHUNK", 4)
    with case.open() as engine:
        case.check(engine.evaluate(np.array(IDS)), want[-1])
        assert engine.length == len(IDS)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_course_of_evaluate_and_truncate_gives_the_logits_of_what_is_held(case: Case, data: st.DataObject) -> None:
    held: list[int] = []
    with case.open(context=24) as engine:
        for _ in range(data.draw(st.integers(1, 6))):
            if held and data.draw(st.booleans()):
                keep = data.draw(st.integers(0, len(held)))
                engine.truncate(keep)
                del held[keep:]
            room = 24 - len(held)
            if room:
                new = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=room))
                held += new
                case.check(engine.evaluate(new), case.toy.logits(held)[-1])
            assert engine.length == len(held)


def test_a_context_can_be_filled_to_the_last_place_and_not_beyond(case: Case) -> None:
    with case.open(context=len(IDS)) as engine:
        case.check(engine.evaluate(IDS), case.toy.logits(IDS)[-1])
        with pytest.raises(ContextError, match=rf"context is {len(IDS)} tokens and {len(IDS)} are in use"):
            engine.evaluate([1])
        engine.truncate(3)
        with pytest.raises(ContextError):
            engine.evaluate(IDS)
        assert engine.length == 3, "nothing was run"
        case.check(engine.evaluate(IDS[3:]), case.toy.logits(IDS)[-1])


@pytest.mark.parametrize("bad", [[-1], [VOCAB], [1, 2, VOCAB], [3, -7], [1 << 62], [1 << 70, 1], ["a", 1]])
def test_token_ids_are_checked_before_a_run(engine: Engine, bad: list[int]) -> None:
    engine.evaluate([1])
    with pytest.raises(EngineError, match=r"vocabulary of 320|whole numbers"):
        engine.evaluate(bad)
    assert engine.length == 1


def test_empty_input_and_truncation_beyond_what_is_held_are_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="no tokens"):
        engine.evaluate([])
    for length in (-1, 1):
        with pytest.raises(EngineError, match="it holds 0"):
            engine.truncate(length)


def test_close_twice_and_use_after(case: Case) -> None:
    with case.open() as engine:
        logits = engine.evaluate(IDS)
        kept = logits.copy()
        engine.close()
        engine.close()
        np.testing.assert_array_equal(logits, kept, "an array that is still held may still be read")
        with pytest.raises(EngineError, match="closed"):
            engine.evaluate([1])


def test_logits_are_one_buffer(engine: Engine) -> None:
    first, second = engine.evaluate([1]), engine.evaluate([2])
    assert first.ctypes.data == second.ctypes.data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "a context of 0 tokens"),
        ({"context": CONTEXT + 1}, f"1 to {CONTEXT}"),
        ({"threads": 0}, "0 threads"),
        ({"engine": "none"}, "no engine 'none'; there are: ort, llamacpp"),
        ({"warp": 9}, "no option 'warp'"),
    ],
)
def test_impossible_arguments(case: Case, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        edgeship_runtime.load(case.toy.directory, **options)


def test_the_default_context_is_the_manifests(case: Case) -> None:
    with edgeship_runtime.load(case.toy.directory) as model:
        assert model.engine.context == CONTEXT // 2


def test_prompt_to_text_is_the_models_own_likeliest(case: Case) -> None:
    with edgeship_runtime.load(case.toy.directory, threads=1) as model:
        ids = model.encode([{"role": "user", "content": "The cät 🙂"}])
        result = model.generate(ids, max_tokens=6, ignore_eos=True, **GREEDY)
        assert model.manifest.model.eos_token_ids == END
        for token in result.tokens:
            case_logits = case.toy.logits(ids)[-1]
            assert case_logits[token] >= case_logits.max() - case.tolerance * np.abs(case_logits).max()
            ids.append(token)
        again = model.generate(ids[: -len(result.tokens)], max_tokens=6, ignore_eos=True, **GREEDY)
        assert again.tokens == result.tokens
        assert again.stats.cached_tokens == len(ids) - len(result.tokens) - 1
        model.forget()


def test_nothing_is_printed_and_nothing_connects(case: Case) -> None:
    # In a process of its own: imports are seen too, and the audit hook sees what C code cannot hide from Python.
    program = f"""
import sys
seen = []
sys.addaudithook(lambda name, args: seen.append(name) if name.startswith("socket.") else None)
import edgeship_runtime
with edgeship_runtime.load({str(case.toy.directory)!r}, threads=1) as model:
    model.generate("a b c", max_tokens=3)
assert not seen, seen
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestChoosing:
    """An engine by name, by the format of the artifact, and by what is installed."""

    def test_every_engine_has_its_module_and_format(self) -> None:
        assert set(ENGINES) == set(FORMAT_OF) == set(engines._PACKAGES)
        for name, module in ENGINES.items():
            assert engine_module(FORMAT_OF[name], name).__name__ == module  # type: ignore[attr-defined]
            assert engine_module(FORMAT_OF[name]) is engine_module(FORMAT_OF[name], name)

    def test_an_engine_runs_its_own_format(self, case: Case) -> None:
        form = case.toy.directory.name
        other = next(name for name in ENGINES if FORMAT_OF[name] != form)
        with pytest.raises(
            UsageError, match=f"runs artifacts of the format {FORMAT_OF[other]}, and this one is {form}"
        ):
            edgeship_runtime.load(case.toy.directory, engine=other)
        with pytest.raises(ArtifactError, match="format 'tflite'"):
            engine_module("tflite")

    def test_onnx_first_where_its_engine_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def installed(*packages: str) -> None:
            monkeypatch.setattr(engines, "find_spec", lambda name: name if name in packages else None)

        for packages, order in (
            (("onnxruntime", "llama_cpp"), ("onnx", "gguf")),
            (("onnxruntime",), ("onnx", "gguf")),
            (("llama_cpp",), ("gguf", "onnx")),
            ((), ("onnx", "gguf")),
        ):
            installed(*packages)
            assert formats() == order
        assert formats("llamacpp") == ("gguf",)

    @needs_llamacpp
    def test_an_artifact_of_both_formats(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_toy(tmp_path / "toy" / "onnx")
        write_toy_gguf_artifact(tmp_path / "toy" / "gguf")
        for options, name in (
            ({}, "onnxruntime"),
            ({"engine": "ort"}, "onnxruntime"),
            ({"engine": "llamacpp"}, "llama"),
        ):
            with edgeship_runtime.load(tmp_path / "toy", **options) as model:  # type: ignore[arg-type]
                assert model.engine.name.startswith(name)
        found: Callable[[str], Any] = engines.find_spec
        monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
        assert locate(tmp_path / "toy", formats()).name == "gguf"


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ("1.31.1", ">=1.23", True),
        ("1.23.0", ">=1.23", True),
        ("1.22.9", ">=1.23", False),
        ("1.9.0", ">=1.23.1", False),
        ("2.0.0+cu12", ">=1.23", True),
        ("1.20.0", "", True),
    ],
)
def test_a_package_older_than_the_artifact_needs(case: Case, found: str, wanted: str, fits: bool) -> None:
    manifest = replace(read_manifest(case.toy.directory), versions={"package": wanted})
    if fits:
        check_version("package", found, manifest)
    else:
        with pytest.raises(DependencyError, match=rf"needs package {wanted} and {found}.*\n\nhint: pip install"):
            check_version("package", found, manifest)
