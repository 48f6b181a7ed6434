"""Architectures, one module per `model_type` of config.json, found by name."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from edgeship.archs.base import Config, Decoder
from edgeship.errors import ArchitectureError


def known() -> list[str]:
    """The model types that can be exported, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def read(values: Mapping[str, Any], file: str = "config.json") -> Decoder:
    """The decoder that a config.json describes.

    Raises ArchitectureError at an unknown model type, activation or field value, naming file, field and known values.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in known():
        near = get_close_matches(str(model_type), known(), 1)
        raise ArchitectureError(
            f"{file}: model_type: found {json.dumps(model_type)}, known: {', '.join(known())}."
            + (f" Did you mean {near[0]!r}?" if near else ""),
            hint="export a checkpoint of a known architecture; an architecture is added as one file in edgeship/archs",
        )
    decoder: Decoder = importlib.import_module(f"edgeship.archs.{model_type}").read(Config(values, file))
    _check_shape(decoder, file)
    return decoder


def _check_shape(d: Decoder, file: str) -> None:
    if d.heads % d.kv_heads:
        raise ArchitectureError(
            f"{file}: num_attention_heads ({d.heads}) must be a multiple of num_key_value_heads ({d.kv_heads}).",
            hint="restore the values the model was published with",
        )
    if d.head_dim % 2:
        raise ArchitectureError(
            f"{file}: head_dim: expected an even number (the rotary embedding pairs elements), found {d.head_dim}.",
            hint="restore the values the model was published with",
        )
