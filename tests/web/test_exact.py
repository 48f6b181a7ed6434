"""What the page computes beside Python: token ids, templates, logits and greedy tokens."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from acceptance_files import seal
from edgeship import catalog
from edgeship.progress import Silent
from edgeship.ship.web_app import App
from edgeship.ship.web_bundle import make_web_bundle
from edgeship_runtime.acceptance import DATE_STRING, read_chats, read_golden
from edgeship_runtime.manifest import read_manifest
from exports import built, recipe
from phone import NO_HALF, Phone, phone, serving
from qwen_files import TOKENIZER, needs_tokenizer, vectors, write_model
from tolerances import WASM_LOGITS, WASM_TIE_STD, WEBGPU_KL, WEBGPU_RMS_STD, WEBGPU_TIE_STD
from toy_artifact import write_toy

pytestmark = [pytest.mark.web, pytest.mark.timeout(900)]


class Native:
    """The artifact's graph in onnxruntime with accuracy level 0: activations stay in float32, as in WebAssembly."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        model = onnx.load(directory / "model.onnx", load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 0
        (scratch / "model.onnx").write_bytes(model.SerializeToString())
        shutil.copyfile(directory / "model.onnx.data", scratch / "model.onnx.data")
        self._session = onnxruntime.InferenceSession(scratch / "model.onnx", providers=["CPUExecutionProvider"])
        self._past = {
            each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
            for each in self._session.get_inputs()
            if each.name.startswith("past")
        }

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [vocab] after the last id."""
        given = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return np.asarray(self._session.run(["logits"], given | self._past)[0][0, -1], np.float32)


@pytest.fixture(scope="module")
def native(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Native:
    return Native(artifact / "onnx", tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def prompts(artifact: Path) -> list[list[int]]:
    """Every prompt of the acceptance set, and every one with a part of its continuation."""
    directory = artifact / "onnx"
    cases = read_golden(directory, read_manifest(directory)).cases
    return [ids for case in cases for ids in (list(case.prompt), list(case.tokens[:-1]))]


@pytest.fixture(scope="module", params=["wasm", "webgpu-32", "webgpu-16"])
def page(
    request: pytest.FixtureRequest, playwright: Any, sites: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Phone]]:
    (backend, _, floats), scratch = request.param.partition("-"), tmp_path_factory.mktemp("phone")
    with (
        serving(sites["onnx"], scratch / "reports") as host,
        phone(playwright, host.url, scratch / "profile", gpu=backend == "webgpu") as here,
    ):
        here.open(f"?backend={backend}&threads=2&floats={floats}")
        if floats == "16" and not here.ask("state")["half"]:
            pytest.skip(NO_HALF)
        here.install()
        yield request.param, here
        assert here.complaints == []


def test_logits(page: tuple[str, Phone], native: Native, prompts: list[list[int]]) -> None:
    backend, here = page
    worst, spread, ties, losses = 0.0, 0.0, [], []
    for ids in prompts:
        found, wanted = np.array(here.ask("logits", ids), np.float32), native.logits(ids)
        assert found.shape == wanted.shape
        worst = max(worst, float(np.abs(found - wanted).max()))
        spread = max(spread, float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()))
        if found.argmax() != wanted.argmax():
            ties.append(float((wanted.max() - wanted[found.argmax()]) / wanted.std()))
        losses.append(divergence(wanted, found))
    print(f"{backend}: logits differ by {worst:.2g}, rms {spread:.2g} deviations, KL at most {max(losses):.2g} nats")
    if backend == "wasm":
        assert worst < WASM_LOGITS
        assert ties == []
    else:
        assert spread < WEBGPU_RMS_STD
        assert max(losses) < WEBGPU_KL
        assert all(gap < WEBGPU_TIE_STD for gap in ties)


def divergence(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """KL divergence of the found distribution from the wanted one, in nats."""
    p, q = (each.astype(np.float64) - each.max() for each in (wanted, found))
    p, q = p - np.log(np.exp(p).sum()), q - np.log(np.exp(q).sum())
    return float(np.exp(p) @ (p - q))


def test_greedy_tokens(page: tuple[str, Phone], native: Native, artifact: Path) -> None:
    backend, here = page
    directory = artifact / "onnx"
    count = 8 if backend == "webgpu" else 16
    for case in read_golden(directory, read_manifest(directory)).cases:
        ids = list(case.prompt)
        found = here.ask("generate", ids, count)["ids"]
        assert len(found) == count
        for token in found:
            logits = native.logits(ids)
            best = int(logits.argmax())
            if token != best:  # a near tie, and what follows follows another text
                gap = float((logits[best] - logits[token]) / logits.std())
                print(f"{backend}: {case.name}: near tie after {len(ids)} tokens, {gap:.2g} deviations apart")
                assert gap < (WASM_TIE_STD if backend == "wasm" else WEBGPU_TIE_STD)
            ids.append(token)


@pytest.fixture(scope="module")
def words(playwright: Any, sites: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A page that needs no engine: texts alone."""
    scratch = tmp_path_factory.mktemp("words")
    with (
        serving(sites["onnx"], scratch / "reports") as host,
        phone(playwright, host.url, scratch / "profile") as here,
    ):
        here.open()
        here.install()
        yield here


def test_templates_and_ids_of_the_acceptance_set(words: Phone, artifact: Path) -> None:
    directory = artifact / "onnx"
    cases = [case for case in read_chats(directory, read_manifest(directory)) if case.rendered is not None]
    assert len(cases) >= 5
    for case in cases:
        extra = {"date_string": DATE_STRING}
        given = [case.messages, case.tools, case.enable_thinking, case.add_generation_prompt, extra]
        assert words.ask("render", *given) == case.rendered, case.name
        assert words.ask("encode", case.rendered) == list(case.token_ids), case.name
        assert words.ask("decode", list(case.token_ids)) is not None


@needs_tokenizer
def test_the_vectors_of_qwens_tokenizer(playwright: Any, app: App, tmp_path: Path) -> None:
    with (
        serving(qwen_site(app, tmp_path), tmp_path / "reports") as host,
        phone(playwright, host.url, tmp_path / "profile") as here,
    ):
        here.open()
        here.install()
        for text, ids in vectors():
            assert here.ask("encode", text) == ids, text
            assert here.ask("decode", ids) == unicodedata.normalize("NFC", text)
        assert here.complaints == []


@needs_tokenizer
def test_a_gguf_of_qwens_vocabulary(playwright: Any, app: App, tmp_path: Path) -> None:
    """llama.cpp reads one of the texts in its own way: `</s>` is a plain token."""
    checkpoint = write_model(tmp_path / "checkpoint")
    directory = built(recipe(formats=["gguf"]), tmp_path / "artifact", ("gguf",), checkpoint=checkpoint) / "gguf"
    with (
        serving(bundle(directory, "llamacpp", app, tmp_path), tmp_path / "reports") as host,
        phone(playwright, host.url, tmp_path / "profile") as here,
    ):
        here.open("?threads=1")
        here.install()
        here.ask("load")
        found = here.ask("verify")
    assert found["tokens"]["equal"] == found["tokens"]["cases"] > 20, found["failures"]


def qwen_site(app: App, folder: Path) -> Path:
    """A site whose artifact has Qwen2's tokenizer; its weights are not asked."""
    directory = write_toy(folder / "toy").directory
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, directory / name)
    seal(directory)
    return bundle(directory, "ort", app, folder)


def bundle(directory: Path, engine: str, app: App, folder: Path) -> Path:
    """The site of an artifact."""
    device = catalog.find_device("phone-web")
    return make_web_bundle(directory, device, engine, folder / "out", app=app.path, kind=None, progress=Silent()).path
