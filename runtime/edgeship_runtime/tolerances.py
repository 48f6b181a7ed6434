"""How far a device may be from the reference, each with its reason; golden.json says what the artifact allows."""

from __future__ import annotations

MAX_TIE_TOLERANCE = 0.5
"""Largest `tie_tolerance` an acceptance file may ask for, in standard deviations of the logits.

Golden top-1 and top-2 of a trained model are mostly further apart than that: a file asking for more tests nothing.
"""

LOGIT_ERROR_STD = 0.5
"""Largest error of a golden top logit, in standard deviations of the logits at its position.

int8 activations (MatMulNBits, accuracy_level 4) cost 0.04 to 0.05 on average and 0.11 at most (31 positions) on x86
with 28 layers of Qwen2.5-1.5B's shape, and boards differ by about as much again. Half a deviation is a wrong kernel, a
wrong table or damaged weights, even where the largest logit happens to stay the largest.
"""
