"""What rounding a tensor costs: against transformers with that tensor rounded, and the choice that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import write_checkpoint
from edgeship.archs.base import block_bytes
from edgeship.calibrate.sensitivity import Probe
from edgeship.encodings import ENCODINGS, Encoding
from edgeship.progress import Silent
from edgeship.quant import rtn
from reference_models import opened
from tolerances import DIVERGENCE

TOKENS = [[5, 80, 17, 250, 33, 9, 101], [7, 7, 60], [40, 3, 300, 299, 12]]
TYPES = [ENCODINGS["int4-32"], ENCODINGS["int8-32"]]
EMBEDDINGS = "model.embed_tokens.weight"


def probe(path: Path, **changes: Any) -> Probe:
    decoder, weights = opened(path)
    types = {role.key: TYPES for role in decoder.roles() if role.part != "float"}
    rng = np.random.default_rng(2)
    moments = {role.key: rng.random(role.shape[-1]) + 0.1 for role in decoder.roles() if role.key.endswith("q.weight")}
    fields: dict[str, Any] = {"types": types, "moments": moments, "progress": Silent(), **changes}
    return Probe(decoder, weights, TOKENS, **fields)


class Oracle:
    """transformers' model, and the divergence that a changed tensor causes in it."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(2)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._float = self._logs()

    def _logs(self) -> Sequence[Any]:
        with self._torch.no_grad():
            logits = [self._model(self._torch.tensor([ids])).logits[0].double() for ids in TOKENS]
        return [each.log_softmax(-1) for each in logits]

    def divergence(self, tensor: str, values: NDArray[np.float32]) -> float:
        parameter = self._model.get_parameter(tensor)
        before = parameter.data
        parameter.data = self._torch.from_numpy(values.copy())
        parts = [(p.exp() * (p - q)).sum(-1) for p, q in zip(self._float, self._logs(), strict=True)]
        parameter.data = before
        return float(self._torch.cat(parts).mean())


@pytest.fixture(scope="module", params=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    return write_checkpoint(path, "qwen3", tied=request.param == "tied", dtype="F32", layers=3)


def test_what_is_rounded_to_nearest_is_measured_so(checkpoint: Path) -> None:
    key, searched, nearest = "layers.0.mlp.up.weight", probe(checkpoint), probe(checkpoint, nearest=True)
    values = searched.weights.weights(key, 0, 16).copy()
    written = rtn.quantize(values, 4, 32).dequantize()
    assert (nearest.rounded(key, values, TYPES[0]) == written).all()
    assert (searched.rounded(key, values, TYPES[0]) != written).any()


@pytest.mark.parity
def test_each_tensor_costs_what_it_costs_in_transformers(checkpoint: Path) -> None:
    asked, oracle = probe(checkpoint), Oracle(checkpoint)
    found = asked.run()
    for role in asked.decoder.roles():
        if role.part == "float":
            continue
        values = asked.weights.weights(role.key, 0, role.shape[0])
        smaller, larger = (asked.rounded(role.key, values, e) for e in TYPES)
        wanted = oracle.divergence(role.tensor, smaller)  # a tied table is rounded in both its places
        assert found[role.key]["int4-32"] == pytest.approx(wanted, rel=DIVERGENCE), role.key
        weigh = asked.moments.get(role.key, np.ones(role.shape[1]))
        ratio = (np.square(larger - values) @ weigh).sum() / (np.square(smaller - values) @ weigh).sum()
        assert found[role.key]["int8-32"] == pytest.approx(wanted * ratio, rel=2 * DIVERGENCE)


class StoppedError(Exception):
    """An interrupt from inside."""


class Breaking(Silent):
    def __init__(self, after: int) -> None:
        self._left = after

    def advance(self, n: int, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise StoppedError


class Counting(Silent):
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total_bytes: int, label: str) -> None:
        self.total += total_bytes

    def advance(self, n: int, name: str) -> None:
        self.done += n


def test_progress_comes_to_its_end(checkpoint: Path, tmp_path: Path) -> None:
    block = block_bytes(opened(checkpoint)[0])
    for blocks in (6 + 3 + 3, 6):  # twice through the model; behind a rounded layer, and a rounded table; then none
        counted = Counting()
        probe(checkpoint, directory=tmp_path, progress=counted).run()
        assert counted.done == counted.total == blocks * block


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "int8-64"])
def test_what_an_encoding_makes_of_numbers(checkpoint: Path, name: str) -> None:
    import ml_dtypes

    values = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    found = probe(checkpoint).rounded("layers.0.attn.k.weight", values, ENCODINGS[name])
    assert found.dtype == np.float32
    if name == "int8-64":
        np.testing.assert_allclose(found, values, atol=np.abs(values).max() / 254)
    else:
        dtype = {"bfloat16": ml_dtypes.bfloat16}.get(name) or np.dtype(name)
        np.testing.assert_array_equal(found, values.astype(dtype).astype(np.float32))


def test_what_was_cut_short_goes_on_at_its_block(checkpoint: Path, tmp_path: Path) -> None:
    whole = probe(checkpoint).run()
    with pytest.raises(StoppedError):
        probe(checkpoint, directory=tmp_path, progress=Breaking(8)).run()
    [kept] = tmp_path.iterdir()
    asked: list[str] = []

    class Watched(Probe):
        def rounded(self, key: str, values: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
            asked.append(key)
            return super().rounded(key, values, encoding)

    again = probe(checkpoint, directory=tmp_path)
    fields: Mapping[str, Any] = {name: getattr(again, name) for name in Probe.__dataclass_fields__}
    assert Watched(**fields).run() == whole
    assert asked.count("layers.1.mlp.up.weight") == 2, "only to compare its types"
    assert asked.count("layers.2.mlp.up.weight") == 3
    assert list(tmp_path.iterdir()) == [kept]
