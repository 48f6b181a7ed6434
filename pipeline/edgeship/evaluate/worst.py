"""Which tensors cost an artifact most of its fidelity, and what raising them to 8 bits would gain.

First a look at every tensor at once: the float model runs, and each product with a weight is made with the stored
weight too. The noise of the difference, relative to what the product adds to the hidden state, ranks the tensors. Then
the likeliest few are measured one by one: the stored model with that tensor raised, on a part of the text; the gain is
then taken in proportion to what the whole text lost. What a tensor that was not measured would gain follows from its
noise and the gains of those that were.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeship.encodings import ENCODINGS, Encoding
from edgeship.evaluate.sources import PassLogits, compare
from edgeship.evaluate.windows import Windows
from edgeship.plan import Plan, PlannedTensor
from edgeship.quant import rtn
from edgeship.reference.forward import Pass
from edgeship.reference.weights import EMBED, HEAD, Floats, Weights

MEASURED = 8  # tensors measured one by one; each takes a pass over the stored weights
NOISE_TOKENS, GAIN_TOKENS = 256, 512
BITS = 8  # what a tensor is raised to
LAYER = re.compile(r"(layers\.\d+\.)(attn|mlp)\.(q|k|v|o|gate|up|down)\.weight")


@dataclass(frozen=True)
class Raise:
    """Tensors that are raised together (q, k and v of a layer lie in one), and what that costs and gains."""

    keys: tuple[str, ...]  # of roles
    names: tuple[str, ...]  # in the checkpoint
    encoding: str
    nbytes: int  # more, in the plan's first format
    gain: float  # of the mean KL divergence, in nats
    measured: bool


def candidates(plan: Plan) -> list[Raise]:
    """Everything below 8 bits that could be raised, with its cost; gains are not known yet."""
    groups: dict[str, list[PlannedTensor]] = defaultdict(list)
    for tensor in plan.tensors:
        if tensor.encoding.quantized and tensor.encoding.bits < BITS:
            packed = re.sub(r"(\.attn)\.[qkv]\.weight$", r"\1.qkv", tensor.role.key)
            groups[packed if "onnx" in plan.formats else tensor.role.key].append(tensor)
    out = []
    for tensors in groups.values():
        raised = raised_encoding(tensors[0].encoding)
        form = plan.formats[0]
        more = sum(PlannedTensor(t.role, raised).nbytes(form) - t.nbytes(form) for t in tensors)
        keys, names = tuple(t.role.key for t in tensors), tuple(t.role.tensor for t in tensors)
        out.append(Raise(keys, names, raised.name, more, 0.0, False))
    return out


def raised_encoding(encoding: Encoding) -> Encoding:
    """8 bits in the same groups; ggml's own types in groups of 32."""
    return ENCODINGS[f"int8-{encoding.group}"] if encoding.on_grid else ENCODINGS["int8-32"]


def rank(
    plan: Plan,
    floats: Weights,
    stored: Weights,
    windows: Windows,
    lost: float,
    tell: Callable[[str], None] = lambda what: None,
) -> list[Raise]:
    """Every candidate with its gain, the largest gain for its bytes first; `lost`: by the stored weights, in nats."""
    every = candidates(plan)
    if not every:
        return []
    tell("looking for the tensors that cost most")
    noise = _noise(plan, floats, stored, windows.few(NOISE_TOKENS))
    shares = [sum(noise.get(key, 0.0) for key in each.keys) for each in every]
    loudest = sorted(range(len(every)), key=lambda i: -shares[i])
    cheapest = sorted(range(len(every)), key=lambda i: -shares[i] / max(every[i].nbytes, 1))
    likeliest = list(dict.fromkeys(i for pair in zip(loudest, cheapest, strict=True) for i in pair))[:MEASURED]
    few = windows.few(GAIN_TOKENS)
    gains: dict[int, float] = {}
    with PassLogits(plan.decoder, floats, few) as reference:
        whole = _divergence(plan, stored, reference, few)
        for i in likeliest:
            tell(f"measuring {every[i].names[0]}")
            raised = _Raised(stored, floats, every[i])
            gains[i] = (whole - _divergence(plan, raised, reference, few)) * lost / max(whole, 1e-30)
    known = sum(shares[i] for i in gains)
    rate = max(sum(gains.values()), 0.0) / known if known else 0.0
    found = [
        Raise(each.keys, each.names, each.encoding, each.nbytes, gains.get(i, rate * shares[i]), i in gains)
        for i, each in enumerate(every)
    ]
    return sorted(found, key=lambda each: -each.gain / max(each.nbytes, 1))


def choose(ranked: Sequence[Raise], needed: float) -> list[Raise]:
    """The first of those ranked that gain `needed` nats together; all with a gain where that is not enough."""
    chosen: list[Raise] = []
    for each in ranked:
        if sum(c.gain for c in chosen) >= needed:
            break
        if each.gain > 0:
            chosen.append(each)
    return chosen or list(ranked[:1])


def _divergence(plan: Plan, weights: Weights, reference: PassLogits, windows: Windows) -> float:
    with PassLogits(plan.decoder, weights, windows) as logits:
        return compare(reference, logits, windows, plan.decoder.vocab_size).kl_mean


class _Raised:
    """Stored weights, with some tensors as they would be when raised."""

    def __init__(self, stored: Weights, floats: Weights, raised: Raise) -> None:
        self._stored, self._floats, self._keys = stored, floats, frozenset(raised.keys)
        self._encoding = ENCODINGS[raised.encoding]

    def weights(self, key: str, a: int, b: int) -> Floats:
        if not (key in self._keys or (key == HEAD and EMBED in self._keys)):
            return self._stored.weights(key, a, b)
        return rtn.quantize(self._floats.weights(key, a, b), BITS, self._encoding.group).dequantize()

    def vector(self, key: str) -> Floats:
        return self._stored.vector(key)


class _Noise(Pass):
    """The float pass, which makes every product with the stored weights too; powers by key of the product."""

    def __init__(self, plan: Plan, floats: Weights, stored: Weights, sequences: int) -> None:
        super().__init__(plan.decoder, floats, sequences)
        self._stored = stored
        self.noise: dict[str, float] = {}
        self.signal: dict[str, float] = {}

    def linear(self, key: str, x: Floats) -> Floats:
        out, floats = super().linear(key, x), self.weights
        self.weights = self._stored
        try:
            other = super().linear(key, x)
        finally:
            self.weights = floats
        self.noise[key], self.signal[key] = _power(other - out), _power(out)
        return out


def _noise(plan: Plan, floats: Weights, stored: Weights, windows: Windows) -> dict[str, float]:
    """By key of a weight, the noise it adds to the hidden state, relative to that state's power there."""
    ids = windows.ids.tolist()
    with _Noise(plan, floats, stored, len(ids)) as run:
        run.extend(ids)
    few = sorted({t for each in ids for t in each})
    ours, theirs = (np.concatenate([w.weights(EMBED, t, t + 1).copy() for t in few]) for w in (floats, stored))
    start = _power(ours) / len(few)
    out = {EMBED: _power(theirs - ours) / max(_power(ours), 1e-30)}
    state: Mapping[str, float] = _states(run.signal, start * windows.ids.size)
    for key, power in run.noise.items():
        match = LAYER.fullmatch(key + ".weight")
        assert match is not None
        block = match[1] + match[2]
        last = f"{block}.o" if match[2] == "attn" else f"{block}.down"
        relative = power / max(run.signal[key], 1e-30)
        out[key + ".weight"] = relative * run.signal[last] / max(state[last], 1e-30)
    return out


def _states(signal: Mapping[str, float], start: float) -> dict[str, float]:
    """The hidden state's power behind each product that is added to it, as if all of them were independent."""
    total, out = start, {}
    for key, power in signal.items():  # in the order of the pass
        if key.endswith((".attn.o", ".mlp.down")):
            total += power
            out[key] = total
    return out


def _power(x: Floats) -> float:
    return float(np.square(x, dtype=np.float64).sum())
