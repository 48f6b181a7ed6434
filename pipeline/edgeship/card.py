"""The model card: README.md of an artifact, for people and for the hub that reads its front matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edgeship.plan import PartSize, Plan
from edgeship.sizes import format_count, format_size

# What a license file says in its first lines -> the identifier the hub knows it by.
KNOWN_LICENSES = (
    (("Apache License", "Version 2.0"), "apache-2.0"),
    (("MIT License", "Permission is hereby granted"), "mit"),
)


CARD = """\
---
{front}---

# {name}

{description}{repo} ({model_type}, {count} weights) as ONNX for CPUs,
made by edgeship from revision `{revision}` ({host}).

- size: {size}, {bits:.2f} bits per weight
- memory with {context} tokens of context: about {memory}
- context: {context} tokens by default, {positions} at most

| part | stored as | weights | size | bits per weight |
|---|---|---|---|---|
{parts}

## Run

```sh
pip install 'edgeship-runtime[ort]'
edgeship-runtime verify .   # files intact, same tokens as the float32 reference
edgeship-runtime chat .     # or: edgeship-runtime run . "Once upon a time"
```

```python
from edgeship_runtime import load

print(load(".").generate("Who are you?").text)
```

The directory loads unmodified in onnxruntime-genai (`onnxruntime_genai.Model(".")`) and in Foundry Local too.
`acceptance/` holds what `verify` compares with: rendered chats with their token ids, and logits of a float32
pass over these very weights. `edgeship.json` names every file with its size and sha256.
"""


def model_card(plan: Plan, *, host: str, revision: str, license_file: Path | None, weight_bytes: int) -> str:
    """The card of an ONNX artifact; `weight_bytes` is the measured size of its graph and weights."""
    recipe = plan.recipe
    return CARD.format(
        front=yaml.safe_dump(_front_matter(plan, license_file), sort_keys=False, allow_unicode=True),
        name=recipe.name,
        description=f"{recipe.description}\n\n" if recipe.description else "",
        repo=recipe.source.repo,
        model_type=plan.decoder.model_type,
        count=format_count(plan.parameters),
        revision=revision,
        host=host,
        size=format_size(weight_bytes),
        bits=plan.bits_per_weight,
        context=recipe.context,
        positions=plan.rope_positions,
        memory=format_size(plan.memory.total),
        parts="\n".join(map(_row, plan.parts)),
    )


def _front_matter(plan: Plan, license_file: Path | None) -> dict[str, Any]:
    scheme = plan.recipe.scheme
    kinds = sorted({scheme.body, scheme.embeddings, scheme.head})
    quantized = any(tensor.encoding.quantized for tensor in plan.stored())
    return {
        "base_model": plan.recipe.source.repo,
        **({"base_model_relation": "quantized"} if quantized else {}),
        **_license(license_file),
        "library_name": "onnxruntime",
        "pipeline_tag": "text-generation",
        "tags": ["onnx", "edgeship", *kinds],
        "quantization": {
            "body": scheme.encoding("body").name,
            "embeddings": scheme.encoding("embeddings").name,
            "head": scheme.encoding("head").name,
            "bits_per_weight": round(plan.bits_per_weight, 3),
        },
    }


def _license(file: Path | None) -> dict[str, Any]:
    """The hub's license fields: an identifier where the text is a known one, else a link; nothing without a file."""
    if file is None:
        return {}
    text = file.read_bytes()[:4000].decode("utf-8", errors="replace")
    for marks, identifier in KNOWN_LICENSES:
        if all(mark in text for mark in marks):
            return {"license": identifier}
    return {"license": "other", "license_link": file.name}


def _row(part: PartSize) -> str:
    name = {"float": "norms and biases"}.get(part.part, part.part)
    cells = (name, part.encoding, format_count(part.weights), format_size(part.nbytes), f"{part.bits_per_weight:.2f}")
    return f"| {' | '.join(cells)} |"
