"""The pass block by block: equal to transformers and to `Pass`, resumed at a block, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tolerances
from checkpoints import write_checkpoint
from edgeship.archs.base import Decoder
from edgeship.reference.blocks import SITES, Block, Walk, hidden_states, walk_blocks
from edgeship.reference.forward import Pass
from edgeship.reference.weights import CheckpointWeights
from reference_models import MODELS, opened

SHAPES: dict[str, dict[str, Any]] = {
    **MODELS,
    "qwen3": {"model_type": "qwen3", "kv_heads": 4, "head_dim": 32},
}
TOKENS = [[1, 2, 3, 4, 5], [7, 8, 9, 10, 300, 20, 30], [11] * 40, [5]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, CheckpointWeights]:
    return opened(write_checkpoint(tmp_path_factory.mktemp("tiny"), layers=3))


def through(walk: Walk) -> NDArray[np.float32]:
    for _ in walk_blocks(walk):
        pass
    return np.concatenate([walk.final(batch) for batch in walk.batches])


@pytest.mark.parity
@pytest.mark.parametrize("model", SHAPES)
def test_logits_and_inputs_of_every_layer_equal_those_of_transformers(model: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write_checkpoint(tmp_path, **SHAPES[model])
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    wanted: dict[str, list[NDArray[np.float32]]] = {}
    for name, module in oracle.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda m, x, y, n=name: wanted.setdefault(n, []).append(x[0][0].numpy()))
    with torch.no_grad():
        logits = np.concatenate([oracle(torch.tensor([ids])).logits[0].numpy() for ids in TOKENS])

    decoder, weights = opened(tmp_path)
    found: dict[str, list[NDArray[np.float32]]] = {}

    def see(keys: Sequence[str], x: NDArray[np.float32]) -> None:
        for key in keys:
            found.setdefault(key, []).append(x.copy())

    walk = Walk(decoder, weights, TOKENS, batch_tokens=12)
    assert [len(b.lengths) for b in walk.batches] == [2, 1, 1]
    for _ in walk_blocks(walk, see):
        pass
    with Pass(decoder, weights) as run:
        got = [np.concatenate(run.logits(walk.final(b), lambda _, piece: piece)).T for b in walk.batches]
    assert np.abs(np.concatenate(got) - logits).max() <= tolerances.REFERENCE_LOGITS * np.abs(logits).max()

    names = {r.key: r.tensor.removesuffix(".weight") for r in decoder.roles()}
    assert {names[key] for key in found} == set(wanted)
    for key, parts in found.items():
        ours, theirs = np.concatenate(parts), np.concatenate(wanted[names[key]])
        assert np.abs(ours - theirs).max() <= tolerances.REFERENCE_LOGITS * np.abs(theirs).max(), key


def test_the_two_passes_agree(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    with Pass(*tiny, sequences=len(TOKENS)) as run:
        whole = run.extend(TOKENS)
    got = np.concatenate([states for _, states in hidden_states(*tiny, TOKENS)])
    assert np.abs(got - whole).max() <= tolerances.REFERENCE_LOGITS * np.abs(whole).max()


def test_a_walk_that_was_cut_short_goes_on_at_its_block(
    tiny: tuple[Decoder, CheckpointWeights], tmp_path: Path
) -> None:
    wanted = through(Walk(*tiny, TOKENS))
    for stop in (0, 1):
        blocks = walk_blocks(Walk(*tiny, TOKENS, directory=tmp_path))
        assert next(blocks) == stop
        next(blocks)  # the first one is finished, the second was under way
        blocks.close()
        assert len(list(tmp_path.iterdir())) == 1, "only the newest states are kept"
    again = Walk(*tiny, TOKENS, directory=tmp_path)
    assert again.done == 2
    np.testing.assert_array_equal(through(again), wanted)
    assert Walk(*tiny, TOKENS[:2], directory=tmp_path).done == 0, "other tokens, another walk"
    assert Walk(*tiny, TOKENS, directory=tmp_path, digest="other").done == 0


def test_one_blocks_matrices_are_in_memory_and_can_be_replaced(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    asked: list[str] = []

    class Watching(CheckpointWeights):
        def weights(self, key: str, a: int, b: int) -> NDArray[np.float32]:
            asked.append(key)
            return super().weights(key, a, b)

    decoder, weights = tiny
    block = Block(decoder, 1, Watching(weights._tensors))
    x = np.random.default_rng(0).standard_normal((5, decoder.hidden_size), np.float32)
    before = block.forward(x, [5])
    block.forward(x, [5])
    assert sorted(asked) == sorted(block.key(name) for site in SITES for name in site), "each read once"
    block.replace("mlp.down", np.zeros_like(block.matrix("mlp.down")))
    heads = block.attention(block.attention_input(x), [5])
    np.testing.assert_array_equal(block.forward(x, [5]), block.after_attention(x, heads))
    block.release(["mlp.down"])
    np.testing.assert_array_equal(block.forward(x, [5]), before)


def test_tokens_that_cannot_be_are_refused(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    for tokens, why in (([[1, 320]], "outside the vocabulary of 320"), ([[-1]], "outside"), ([], "at least one"),
                        ([[1], []], "at least one")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            Walk(*tiny, tokens)
