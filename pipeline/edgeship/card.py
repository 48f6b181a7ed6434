"""The model card: README.md of an artifact, for people and for the hub that reads its front matter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edgeship.footprint import PartSize
from edgeship.plan import Plan
from edgeship.recipe import Format
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

{description}{repo} ({model_type}, {count} weights) as {format} for CPUs,
made by edgeship from revision `{revision}` ({host}).

- size: {size}, {bits:.2f} bits per weight
- memory with {context} tokens of context: about {memory}
- context: {context} tokens by default, {positions} at most
{measured}
| part | stored as | weights | size | bits per weight |
|---|---|---|---|---|
{parts}

## Run

```sh
pip install 'edgeship-runtime[{extra}]'
edgeship-runtime verify .   # files intact, same tokens as the float32 reference
edgeship-runtime chat .     # or: edgeship-runtime run . "Once upon a time"
```

```python
from edgeship_runtime import load

print(load(".").generate("Who are you?").text)
```

{elsewhere}
`acceptance/` holds what `verify` compares with: rendered chats with their token ids, and logits of a float32
pass over these very weights. `edgeship.json` names every file with its size and sha256.
"""

ELSEWHERE = {
    "onnx": 'It loads unmodified in onnxruntime-genai (`onnxruntime_genai.Model(".")`) and in Foundry Local too.',
    "gguf": "The file loads in llama.cpp and LM Studio too, and in Ollama: `ollama create {name} -f Modelfile`.",
}
EXTRAS = {"onnx": "ort", "gguf": "llamacpp"}
LIBRARIES = {"onnx": "onnxruntime", "gguf": "gguf"}


def model_card(
    plan: Plan, form: Format, *, host: str, revision: str, license_file: Path | None, weight_bytes: int
) -> str:
    """The card of an artifact in one format; `weight_bytes` is the measured size of its graph and weights."""
    recipe, footprint = plan.recipe, plan.footprints[form]
    return CARD.format(
        front=yaml.safe_dump(_front_matter(plan, form, license_file), sort_keys=False, allow_unicode=True),
        name=recipe.name,
        description=f"{recipe.description}\n\n" if recipe.description else "",
        repo=recipe.source.repo,
        model_type=plan.decoder.model_type,
        count=format_count(plan.parameters),
        format=form.upper(),
        revision=revision,
        host=host,
        size=format_size(weight_bytes),
        bits=footprint.bits_per_weight,
        context=recipe.context,
        positions=plan.rope_positions,
        measured=_measured(plan.recorded),
        memory=format_size(footprint.memory.total),
        parts="\n".join(map(_row, footprint.parts)),
        extra=EXTRAS[form],
        elsewhere=ELSEWHERE[form].format(name=recipe.name),
    )


def _measured(recorded: Mapping[str, Any]) -> str:
    """What the artifact lost and what was raised for it, where that was measured: lines of a list."""
    lines = []
    if found := recorded.get("fidelity"):
        lines.append(
            f"- against the float model: mean KL divergence {found['kl_mean']:.4f} nats, top-1 agreement "
            f"{100 * found['top1']:.1f} % ({found['positions']} positions of {found['text']})"
        )
    if raised := recorded.get("raised"):
        lines.append(f"- raised to 8 bits for that: {', '.join(sorted(raised))}")
    return "".join(f"{line}\n" for line in lines)


def _front_matter(plan: Plan, form: Format, license_file: Path | None) -> dict[str, Any]:
    encodings = plan.part_encodings
    kinds = sorted({t.encoding.name.split("-")[0] for t in plan.stored() if t.role.part != "float"})
    quantized = any(tensor.encoding.quantized for tensor in plan.stored())
    return {
        "base_model": plan.recipe.source.repo,
        **({"base_model_relation": "quantized"} if quantized else {}),
        **_license(license_file),
        "library_name": LIBRARIES[form],
        "pipeline_tag": "text-generation",
        "tags": [form, "edgeship", *kinds],
        "quantization": encodings | {"bits_per_weight": round(plan.footprints[form].bits_per_weight, 3)},
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
