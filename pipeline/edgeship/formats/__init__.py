"""Formats an artifact can have: a module each, listed here, satisfying `base.Format`."""

from __future__ import annotations

from edgeship.formats.base import MakeFormat
from edgeship.formats.onnx.artifact import OnnxArtifact

FORMATS: dict[str, MakeFormat] = {"onnx": OnnxArtifact.draw_up}
