"""What an architecture is to the pipeline: typed reads of config.json, and a decoder described by roles.

A role names one tensor of the checkpoint and the part of the recipe that decides how it is stored.
Roles know no format; writers look them up by key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeship.errors import ArchitectureError

Part = Literal["embeddings", "body", "head", "float"]
"""Which choice of the recipe applies: the three quantized parts, or `float` for norms and biases (kept float32)."""


@dataclass(frozen=True)
class Role:
    """One tensor: its place in the decoder (`key`), its name in the checkpoint, its shape, and its part."""

    key: str  # "embed.weight", "layers.0.attn.q.weight", "layers.0.attn_norm.weight", "norm.weight", "head.weight"
    tensor: str
    shape: tuple[int, ...]  # linear weights are [out, in], as the checkpoint stores them
    part: Part


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: `theta` and the scaling block of config.json, already checked (None: no scaling)."""

    theta: float
    head_dim: int
    scaling: Mapping[str, Any] | None = None

    def frequencies(self) -> tuple[NDArray[np.float32], float]:
        """Inverse frequencies, float32 `[head_dim / 2]`, and the factor on cos and sin (1 except for YaRN).

        Formulas: `_compute_default_rope_parameters`, `_compute_llama3_parameters` and `_compute_yarn_parameters`
        in transformers/modeling_rope_utils.py; YaRN: arXiv:2309.00071, section 3.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(self.head_dim)
        base = np.float32(1.0) / np.power(np.float32(self.theta), exponents, dtype=np.float32)
        if self.scaling is None:
            return base, 1.0
        kind = self.scaling["rope_type"]
        if kind == "llama3":
            return _llama3(base, self.scaling), 1.0
        return _yarn(base, self.theta, self.head_dim, self.scaling)

    def tables(self, a: int, b: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin for positions a .. b - 1, each float32 `[b - a, head_dim / 2]`."""
        inverse, factor = self.frequencies()
        angles = np.arange(a, b, dtype=np.float32)[:, None] * inverse[None, :]
        return np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)


def _llama3(base: NDArray[np.float32], s: Mapping[str, Any]) -> NDArray[np.float32]:
    low, high, original = s["low_freq_factor"], s["high_freq_factor"], s["original_max_position_embeddings"]
    wavelength = 2 * math.pi / base
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * base / s["factor"] + smooth * base
    out = np.where(wavelength > original / low, base / s["factor"], base)
    medium = (wavelength <= original / low) & (wavelength >= original / high)
    return np.where(medium, blended, out).astype(np.float32)


def _yarn(base: NDArray[np.float32], theta: float, dim: int, s: Mapping[str, Any]) -> tuple[NDArray[np.float32], float]:
    factor, original = float(s["factor"]), s["original_max_position_embeddings"]

    def correction(rotations: float) -> float:
        return (dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low = max(math.floor(correction(s.get("beta_fast") or 32)), 0)
    high = min(math.ceil(correction(s.get("beta_slow") or 1)), dim - 1)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
    keep = 1 - ramp
    inverse = (base / factor) * (1 - keep) + base * keep
    attention = s.get("attention_factor")
    scale = float(attention) if attention is not None else (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return inverse.astype(np.float32), scale


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer made of known blocks: pre-norm attention and gated SiLU feed-forward."""

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    norm_eps: float
    tied: bool
    max_positions: int
    rope: Rope
    qkv_bias: bool = False
    output_bias: bool = False  # bias of the attention's output projection
    qk_norm: bool = False  # RMS norm per head on q and k, before the rotation (Qwen3)

    def roles(self) -> tuple[Role, ...]:
        """Every tensor of the decoder, in the order the layers run; a tied head has no role of its own."""
        out = [Role("embed.weight", "model.embed_tokens.weight", (self.vocab_size, self.hidden_size), "embeddings")]
        for i in range(self.layers):
            out += self._layer(i)
        out.append(Role("norm.weight", "model.norm.weight", (self.hidden_size,), "float"))
        if not self.tied:
            out.append(Role("head.weight", "lm_head.weight", (self.vocab_size, self.hidden_size), "head"))
        return tuple(out)

    def _layer(self, i: int) -> list[Role]:
        d, q, kv, ff = self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.feed_forward
        key, name = f"layers.{i}.", f"model.layers.{i}."
        out = [Role(key + "attn_norm.weight", name + "input_layernorm.weight", (d,), "float")]
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            out.append(Role(f"{key}attn.{part}.weight", f"{name}self_attn.{part}_proj.weight", (rows, d), "body"))
            if self.qkv_bias:
                out.append(Role(f"{key}attn.{part}.bias", f"{name}self_attn.{part}_proj.bias", (rows,), "float"))
        if self.qk_norm:
            out.append(Role(key + "attn.q_norm.weight", name + "self_attn.q_norm.weight", (self.head_dim,), "float"))
            out.append(Role(key + "attn.k_norm.weight", name + "self_attn.k_norm.weight", (self.head_dim,), "float"))
        out.append(Role(key + "attn.o.weight", name + "self_attn.o_proj.weight", (d, q), "body"))
        if self.output_bias:
            out.append(Role(key + "attn.o.bias", name + "self_attn.o_proj.bias", (d,), "float"))
        out += [
            Role(key + "mlp_norm.weight", name + "post_attention_layernorm.weight", (d,), "float"),
            Role(key + "mlp.gate.weight", name + "mlp.gate_proj.weight", (ff, d), "body"),
            Role(key + "mlp.up.weight", name + "mlp.up_proj.weight", (ff, d), "body"),
            Role(key + "mlp.down.weight", name + "mlp.down_proj.weight", (d, ff), "body"),
        ]
        return out


def block_bytes(decoder: Decoder, index: int = 0) -> int:
    """Bytes of one block's float32 matrices."""
    shapes = [r.shape for r in decoder.roles() if r.key.startswith(f"layers.{index}.") and len(r.shape) == 2]
    return 4 * sum(rows * columns for rows, columns in shapes)


MISSING: Any = object()


@dataclass
class Config:
    """Typed reads of config.json that stop, naming file, field and known values, at anything not expected."""

    values: Mapping[str, Any]
    file: str = "config.json"
    _read: set[str] = field(default_factory=set)

    def get(self, key: str, kind: type, default: Any = MISSING) -> Any:
        """The value of `key` as `kind` (an int is taken for a float, null for an absent field)."""
        self._read.add(key)
        value = self.values.get(key)
        if value is None:
            if default is MISSING:
                raise ArchitectureError(
                    f"{self.file}: expected the field {key!r} ({kind.__name__}), found none.",
                    hint="use the config.json that belongs to this checkpoint",
                )
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ArchitectureError(
                f"{self.file}: {key}: expected {kind.__name__}, found {value!r}.",
                hint=f"{key} describes the shape of the weights; restore the value the model was published with",
            )
        return value

    def positive(self, key: str, default: Any = MISSING) -> int:
        """The value of `key` as an int above zero."""
        value = self.get(key, int, default)
        if value is not None and value <= 0:
            raise ArchitectureError(
                f"{self.file}: {key}: expected a number above zero, found {value}.",
                hint=f"{key} describes the shape of the weights; restore the value the model was published with",
            )
        return int(value)

    def within(self, key: str, low: float, high: float, default: Any = MISSING) -> float:
        """The value of `key` as a float above `low` and at most `high`."""
        value = self.get(key, float, default)
        if not low < value <= high:
            raise ArchitectureError(
                f"{self.file}: {key}: expected a number above {low:g}, at most {high:g}, found {value:g}.",
                hint="restore the value the model was published with",
            )
        return float(value)

    def expect(self, key: str, known: Sequence[Any], default: Any = MISSING) -> Any:
        """The value of `key`, which must be one of `known`."""
        value = self.values.get(key)
        if value is None and default is not MISSING:
            value = default
        if not any(value == k and type(value) is type(k) for k in known):
            listed = ", ".join(repr(k) for k in known)
            raise ArchitectureError(
                f"{self.file}: {key}: found {value!r}, known: {listed}. "
                "Exporting it as a known value would change the model.",
                hint="this variant needs support in edgeship/archs; no artifact can be made from it yet",
            )
        return value


ROPE_BLOCKS = ("rope_scaling", "rope_parameters")  # in the order that transformers 5 looks for one that is not empty
FACTORS = (0.001, 1e6)  # what numbers of a scaling lie between; far beyond, frequencies are no numbers any more


def rope_block(config: Config) -> Config:
    """The block that describes the rotary embedding, of the two that a config may have; empty without one.

    Source: `convert_rope_params_to_dict` in transformers/modeling_rope_utils.py (5.23): of two blocks the first is
    taken whole, and a `rope_theta` inside it comes before the flat one.
    """
    blocks = {name: config.get(name, dict, None) or {} for name in ROPE_BLOCKS}
    name = next((name for name, block in blocks.items() if block), ROPE_BLOCKS[0])
    nested = next((key for key, value in blocks[name].items() if isinstance(value, Mapping)), None)
    if nested is not None:
        raise ArchitectureError(
            f"{config.file}: {name}: expected one rotary embedding for all layers, found one for {nested!r}.",
            hint="this variant needs support in edgeship/archs; no artifact can be made from it yet",
        )
    inner = Config(blocks[name], f"{config.file}: {name}")
    if name == "rope_scaling" and inner.values and inner.values.get("rope_theta") is None:
        lost, theta = blocks["rope_parameters"].get("rope_theta"), rope_theta(config, inner)
        if lost not in (None, theta):  # a scaling laid over what transformers 5 saved
            raise ArchitectureError(
                f"{config.file}: rope_theta: found {lost!r} in rope_parameters, but rope_scaling comes before that "
                f"block, and with it transformers takes {theta:g}.",
                hint="say rope_theta in rope_scaling too, or move what that says into rope_parameters",
            )
    return inner


def rope_theta(config: Config, block: Config, default: float = 10000.0) -> float:
    """The base of the rotary embedding: the block's, else the flat one, else the default."""
    holder = config if block.values.get("rope_theta") is None else block
    return holder.within("rope_theta", 1, 1e12, default)


def read_rope(config: Config, head_dim: int) -> Rope:
    """The rotary embedding of a config, in the flat layout (`rope_theta`, `rope_scaling`) or `rope_parameters`."""
    inner = rope_block(config)
    theta, block = rope_theta(config, inner), inner.values
    kind = block.get("rope_type", block.get("type", "default"))
    Config({"rope_type": kind}, inner.file).expect("rope_type", ("default", "llama3", "yarn"))
    if kind == "default":
        return Rope(theta, head_dim)
    for each in (config, inner):  # heeded in a scaled rope only
        each.expect("partial_rotary_factor", (1.0, 1), 1.0)
    if kind == "yarn":
        if "truncate" in block:
            inner.expect("truncate", (True,))
        for key in ("mscale", "mscale_all_dim"):
            inner.expect(key, (None,), None)
    scaling: dict[str, Any] = {"rope_type": kind, "factor": inner.within("factor", *FACTORS)}
    scaling["original_max_position_embeddings"] = _trained_positions(config, inner)
    if kind == "llama3":
        scaling["low_freq_factor"] = low = inner.within("low_freq_factor", *FACTORS)
        scaling["high_freq_factor"] = inner.within("high_freq_factor", low, FACTORS[1])
    for key in ("beta_fast", "beta_slow", "attention_factor") if kind == "yarn" else ():
        if block.get(key) is not None and (block[key] != 0 or key == "attention_factor"):  # a beta of 0 is none
            scaling[key] = inner.within(key, *FACTORS)
    return Rope(theta, head_dim, scaling)


def _trained_positions(config: Config, block: Config) -> int:
    """The length a scaled rope was trained with: a flat field comes before the block's (`standardize_rope_params`)."""
    key = "original_max_position_embeddings"
    return config.positive(key, block.positive(key, config.positive("max_position_embeddings")))
