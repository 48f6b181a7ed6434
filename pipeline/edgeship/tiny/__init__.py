"""The embedded tiny model: a trained Qwen2 checkpoint of a few MB, and the text and script it was made with."""

from __future__ import annotations

from pathlib import Path


def checkpoint_dir() -> Path:
    """The folder of the checkpoint, in the layout of a Hugging Face repository."""
    return Path(__file__).parent / "checkpoint"
