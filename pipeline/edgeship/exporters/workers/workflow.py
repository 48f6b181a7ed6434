"""Checks and runs a workflow of Olive, in the environment of `olive`."""

from __future__ import annotations

import importlib.util
import logging
from importlib.metadata import version
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.package_config import OlivePackageConfig
from olive.workflows import run
from olive.workflows.run.config import RunConfig
from pydantic import ValidationError
from run import Note, RefusedError

CPU = "CPUExecutionProvider"


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
    _check(config)
    made_with = ", ".join(f"{name} {version(name)}" for name in ("olive-ai", "onnxruntime-genai", "torch"))
    if "checkpoint" not in request:
        return {"made_with": made_with}
    note(f"olive: {' → '.join(each['type'] for each in request['passes'])}")
    logging.disable(logging.WARNING)
    out = run(config | {"output_dir": request["out"], "cache_dir": request["cache"]})
    if not out.has_output_model():
        # Olive logs what went wrong and goes on; its own log is on standard error.
        raise RefusedError("the workflow produced no model.", "run it with EDGESHIP_DEBUG=1 to see Olive's own log")
    return {"made_with": made_with}


def _check(config: dict[str, Any]) -> None:
    """Refuse what Olive's schema does not know; it ignores options of passes that it does not know, with a warning."""
    problems = []
    package = OlivePackageConfig.load_default_config()
    for place, each in enumerate(config["passes"].values()):
        found = _of_pass(package, each, config["data_configs"])
        problems += [f"passes[{place}] ({each['type']}): {text}" for text in found]
    if not problems:
        try:
            RunConfig.model_validate(config)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        except ValueError as error:
            problems = [" ".join(str(error).split())[:300]]
    if problems:
        listed = "\n".join(f"  - {each}" for each in problems)
        raise RefusedError(
            f"Olive {version('olive-ai')} does not take the workflow:\n{listed}",
            "its passes and their options: https://microsoft.github.io/Olive/reference/pass.html",
        )


def _of_pass(package: OlivePackageConfig, given: dict[str, Any], data: list[dict[str, Any]]) -> list[str]:
    options = {key: value for key, value in given.items() if key != "type"}
    names = sorted(package.passes)
    if given["type"].lower() not in names:
        return [f"no such pass; known: {', '.join(names)}"]
    module = package.get_pass_module_config(given["type"])
    # What such a list names is a requirement; the distribution's name is near enough to the module's to look for it.
    absent = [name for name in module.module_dependencies if not _importable(name)]
    if absent:
        return [f"it needs {', '.join(absent)}, which the environment does not hold"]
    if CPU not in module.supported_providers:
        return ["it is not for the CPU"]
    kind = package.import_pass_module(given["type"])
    spec = AcceleratorSpec(accelerator_type="cpu", execution_provider=CPU)
    known = kind.default_config(spec)
    problems = [f"no option {key!r}; known: {', '.join(sorted(known))}" for key in options if key not in known]
    if "data_config" in known and "data_config" not in options:
        problems.append("it calibrates: name one of olive.data_configs as data_config, or it would download one")
    named = {str(each.get("name")): each for each in data}
    if isinstance(
        options.get("data_config"), str
    ):  # the whole workflow's check looks names up; that of a pass does not
        if options["data_config"] not in named:
            listed = ", ".join(named) or "none"
            problems.append(f"data_config {options['data_config']!r} is not one of olive.data_configs: {listed}")
        options["data_config"] = named.get(options["data_config"])
    if not problems:
        try:
            kind.generate_config(spec, options, disable_search=True)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        except ValueError as error:
            problems = [" ".join(str(error).split())[:300]]
    return problems


def _importable(requirement: str) -> bool:
    return importlib.util.find_spec(requirement.split("[")[0].replace("-", "_")) is not None
