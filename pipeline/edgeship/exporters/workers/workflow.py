"""Checks and runs a workflow of Olive, in the environment of `olive`."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

from olive.package_config import OlivePackageConfig
from olive.workflows import run
from olive.workflows.run.config import RunConfig
from run import Note, RefusedError
from workflow_data import check_data, check_one
from workflow_order import check_order
from workflow_passes import CPU, check_pass
from workflow_words import Findings, spoken

CALIBRATE = {"gptq": ("input_ids", "attention_mask"), "autoclip": ("input_ids", "attention_mask")}
"""The inputs that passes want of their data."""


def work(request: dict[str, Any], note: Note) -> dict[str, Any]:
    """Check the passes and data sets of `request`; where it names a `checkpoint`, run them and fill `out`."""
    config = {
        "input_model": {"type": "HfModel", "model_path": request.get("checkpoint", "checkpoint")},
        "systems": {
            "local": {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": [CPU]}]}
        },
        "target": "local",
        "host": "local",
        "passes": {f"{i}_{each['type']}": each for i, each in enumerate(request["passes"])},
        "data_configs": request["data_configs"],
        "evaluate_input_model": False,
        "log_severity_level": 3,
    }
    _check(request, config)
    made_with = ", ".join(f"{name} {version(name)}" for name in ("olive-ai", "onnxruntime-genai", "torch"))
    if "checkpoint" not in request:
        return {"made_with": made_with}
    note(f"olive: {' → '.join(each['type'] for each in request['passes'])}")
    _run(config | {"output_dir": request["out"], "cache_dir": request["cache"]})
    return {"made_with": made_with}


def _check(request: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse what cannot run. Olive ignores keys and options that it does not know, and loads data when it needs them.

    Olive changes what it is given, so it gets copies.
    """
    passes, data = deepcopy(request["passes"]), deepcopy(request["data_configs"])
    findings = _findings(request.get("checkpoint"))
    inputs = check_data(data, findings)
    named = {each["name"]: each for each in data if isinstance(each.get("name"), str)}
    package = OlivePackageConfig.load_default_config()
    known = True  # whether every pass is one that can be asked for what it takes
    for place, each in enumerate(passes):
        own = findings.part()
        _check_inline(each, own)
        known &= check_pass(package, each, named if not findings.problems else _trusted(named), own)
        own.problems += _of_inputs(each, inputs) if not own.problems else []
        findings.problems += [f"passes[{place}] ({each['type']}): {text}" for text in own.problems]
    if known:
        findings.problems += check_order(package, passes)
    if not findings.problems:
        try:
            RunConfig.model_validate(deepcopy(config))
        except Exception as error:
            findings.problems = spoken(error)
    if findings.problems:
        listed = "\n".join(f"  - {each}" for each in findings.problems)
        docs = "its passes, their options and its data sets: https://microsoft.github.io/Olive"
        raise RefusedError(
            f"Olive {version('olive-ai')} does not take the workflow:\n{listed}",
            findings.command if findings.wanted else docs,
        )


def _findings(checkpoint: str | None) -> Findings:
    """With what the checkpoint's config.json says, once there is one."""
    if checkpoint is None:
        return Findings()
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    keys = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size")
    vocabulary, positions, *rows = (config[key] if isinstance(config.get(key), int) else None for key in keys)
    return Findings(vocabulary=vocabulary, positions=positions, rows=tuple(each for each in rows if each))


def _check_inline(given: dict[str, Any], findings: Findings) -> None:
    """Data sets that a pass does not name, but says in place; one that is wrong gives way to one that is not."""
    for key, value in list(given.items()):
        if key.endswith("data_config") and isinstance(value, dict):
            own = findings.part()
            check_one(value, own)
            findings.problems += [f"{key}: {text}" for text in own.problems]
            given[key] = {"name": "checked"} if own.problems else value


def _trusted(named: dict[str, Any]) -> dict[str, Any]:
    """Data sets that pass: what is wrong with them is said once, not by every pass that names them."""
    return {name: {"name": "checked"} for name in named}


def _of_inputs(given: dict[str, Any], inputs: dict[str, set[str] | None]) -> list[str]:
    """What a pass wants of its data set and that does not give."""
    gives = inputs.get(str(given.get("data_config")))
    if gives is None:
        return []
    missing = [each for each in CALIBRATE.get(given["type"].lower(), ()) if each not in gives]
    if not missing:
        return []
    return [
        f"it reads {' and '.join(missing)}, and data_config {given['data_config']!r} gives {', '.join(sorted(gives))}"
    ]


def _run(config: dict[str, Any]) -> None:
    """Run the workflow; where a pass fails Olive writes that into its log, and goes on or raises."""
    logging.disable(logging.WARNING)
    hint = "EDGESHIP_DEBUG=1 shows Olive's own log"
    try:
        out = run(config)
    except MemoryError:
        raise
    except Exception as error:
        logging.getLogger("olive").exception("the workflow failed")
        raise RefusedError(f"the workflow failed: {'; '.join(spoken(error))}.", hint) from None
    if not out.has_output_model():
        raise RefusedError("the workflow produced no model.", hint)
