"""What a decoder's block is made of besides its linear layers, in float32.

Formulas: transformers, modeling_qwen2.py, modeling_qwen3.py and modeling_llama.py (eager attention).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def rms_norm(x: Floats, gain: Floats, eps: float) -> Floats:
    """x `[..., n]` over its root mean square, times `gain` `[n]`."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    out: Floats = x / np.sqrt(mean + np.float32(eps)) * gain
    return out


def gate_by_silu(x: Floats, up: Floats) -> None:
    """Replace x by x times its logistic function, times `up`."""
    divisor = np.negative(x)
    # exp(-x) may overflow to infinity, and x / infinity is the 0 that SiLU tends to.
    with np.errstate(over="ignore"):
        np.exp(divisor, out=divisor)
    divisor += 1
    x /= divisor
    x *= up


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """The rotary embedding of x `[T, heads, head_dim]`: element i of a head turns with element i + head_dim / 2."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(q: Floats, keys: Floats, values: Floats, past: int) -> Floats:
    """Causal attention of q `[S, heads, head_dim]` over L tokens, its first row being token `past`: `[S, out]`.

    `keys` and `values` are `[L, kv_heads, head_dim]`.
    """
    s, heads, head_dim = q.shape
    length, kv_heads, _ = keys.shape
    by_kv = q.reshape(s, kv_heads, -1, head_dim).transpose(1, 2, 0, 3)  # [kv_heads, heads of each, S, head_dim]
    scores: Floats = by_kv @ keys.transpose(1, 2, 0)[:, None]  # [..., S, L]; becomes the weights
    scores *= np.float32(head_dim**-0.5)
    ahead = np.arange(length)[None, :] > past + np.arange(s)[:, None]
    np.copyto(scores, np.float32(-np.inf), where=ahead)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    out: Floats = scores @ values.transpose(1, 0, 2)[:, None]  # [kv_heads, heads of each, S, head_dim]
    return out.transpose(2, 0, 1, 3).reshape(s, heads * head_dim)
