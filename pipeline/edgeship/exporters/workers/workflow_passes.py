"""Checks a pass of a workflow, by itself: whether it can run here, and whether Olive takes its options."""

from __future__ import annotations

import logging
import sys
from importlib import metadata, util
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.package_config import OlivePackageConfig
from packaging.requirements import Requirement
from workflow_builder import check_builder
from workflow_order import QUANTIZE
from workflow_words import Findings, spoken, unknown

CPU = "CPUExecutionProvider"
SPEC = AcceleratorSpec(accelerator_type="cpu", execution_provider=CPU)

OPTIONAL = ("onnxoptimizer", "onnxscript")  # the pass that names these goes on without
UNNAMED = {"slicegpt": "slicegpt", "vitisgeneratemodelllm": "model_generate", "vitisgeneratemodelsd": "model_generate"}
"""Modules that a pass imports, of packages that Olive does not name."""
ENDED = {
    "autoawq": "is no longer kept up and imports what transformers no longer has; Gptq calibrates too",
    "auto-gptq": "is no longer kept up and imports what peft no longer has; Gptq is Olive's own",
    "gptqmodel": "pip alone cannot build; Gptq is Olive's own",
    "neural-compressor": "no longer has what Olive imports; OnnxDynamicQuantization makes int8 as well",
}
MOVED = {"optimum": "optimum-onnx"}  # what Olive imports of it
DOWNLOADS = {
    "spinquant": (None, "QuaRot rotates without data"),
    "selectivemixedprecision": ("kld_gradient", "take snr"),
}
"""Passes that fetch a data set of their own, with the `algorithm` that does, and what to take."""


def check_pass(package: OlivePackageConfig, given: dict[str, Any], named: dict[str, Any], findings: Findings) -> bool:
    """Add what is wrong with a pass; `named` are the data sets of the workflow. Returns whether it is there at all."""
    name = given["type"].lower()
    if name not in package.passes:
        proper = [each.module_path.rpartition(".")[2] for each in package.passes.values()]
        findings.problems.append(unknown("such pass as", given["type"], proper))
        return False
    module = package.get_pass_module_config(name)
    if CPU not in module.supported_providers or "cpu" not in module.supported_accelerators:
        findings.problems.append("it is not for the CPU")
        return False
    lacking = _lacking(package, name, findings)
    if lacking:
        findings.problems += lacking
        return False
    try:
        kind = package.import_pass_module(given["type"])
        known = kind.default_config(SPEC)
    except Exception as error:
        findings.problems += [f"it cannot be had here: {each}" for each in spoken(error)]
        return False
    options = {key: value for key, value in given.items() if key != "type"}
    problems = [unknown("option", key, known) for key in options if key not in known]
    problems += _of_data(name, module, kind, known, options, named)
    problems += _of_group(options.get("group_size"), findings) if name in QUANTIZE else []
    problems = problems or _refused(kind, known, options)
    problems += check_builder(options) if name == "modelbuilder" and not problems else []
    if name == "graphsurgeries" and not problems:
        problems = [each for surgery in options["surgeries"] for each in _of_surgery(kind, surgery)]
    findings.problems += problems
    return True


def _of_group(size: Any, findings: Findings) -> list[str]:
    """A group of weights that ONNX cannot have, or that the checkpoint's rows do not divide into."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:  # others mean whole rows, or are no sizes
        return []
    if size < 16 or size & (size - 1):
        return [f"group_size {size}: expected a power of two from 16 on, which onnxruntime's MatMulNBits takes"]
    odd = [each for each in findings.rows if each % size]
    return [f"group_size {size}: the checkpoint's rows of {odd[0]} weights do not divide into it"] if odd else []


def _of_surgery(kind: Any, surgery: dict[str, Any]) -> list[str]:
    """What is wrong with one of the surgeries of a pass that has many; Olive ignores params that it does not know."""
    surgeons = sys.modules[kind.__module__].Surgeon.registry
    name = surgery.get("surgeon")
    if not isinstance(name, str) or name.lower() not in surgeons:
        return [unknown("surgeon", name, (each.__name__ for each in surgeons.values()))]
    needed, others = kind.get_surgeon_parameters(surgeons[name.lower()])
    missing = [f"{name}: expected a param {each!r}, found none" for each in needed if each not in surgery]
    known = {"surgeon", *needed, *others}
    return missing + [f"{name}: {unknown('param', each, known)}" for each in surgery if each not in known]


def _lacking(package: OlivePackageConfig, name: str, findings: Findings) -> list[str]:
    """What the pass needs and the environment lacks."""
    module = package.get_pass_module_config(name)
    needed = list(module.module_dependencies)
    for extra in module.extra_dependencies:
        needed += package.extra_dependencies.get(extra, [extra])
    if module.module_path.startswith("olive.passes.pytorch.lora."):  # all of them train; Olive names it for some
        needed += [*package.extra_dependencies["lora"], "datasets"]
    clashes, missing = [], []
    for each in dict.fromkeys(MOVED.get(each, each) for each in needed):
        requirement = Requirement(each)
        try:
            there = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if requirement.name in ENDED:
                clashes.append(f"it cannot be had here: it needs {requirement.name}, which {ENDED[requirement.name]}")
            elif requirement.name not in OPTIONAL:
                missing.append(each)
            continue
        if there.partition("+")[0] not in requirement.specifier:
            clashes.append(f"it cannot be had here: it needs {each}, and all else here {there}")
    if name in UNNAMED and util.find_spec(UNNAMED[name]) is None:
        clashes.append(f"it cannot be had here: it needs the module {UNNAMED[name]}, of no package that Olive names")
    return clashes or ([findings.lack(*missing)] if missing else [])


def _of_data(
    name: str, module: Any, kind: Any, known: dict[str, Any], options: dict[str, Any], named: dict[str, Any]
) -> list[str]:
    """What is wrong with the data that the pass reads; names in `options` become the data sets they stand for."""
    problems = []
    on_floats = "HfModelHandler" in str(kind._run_for_config.__annotations__.get("model"))
    static = name == "onnxquantization" and options.get("quant_mode", "static") == "static"
    needed = "data_config" in known and (on_floats or static or module.dataset == "dataset_required")
    if needed and options.get("data_config") is None:
        otherwise = ", or it would download one" if on_floats else ""
        problems.append(f"it calibrates: name one of olive.data_configs as data_config{otherwise}")
    for key in [key for key in options if key.endswith("data_config")]:
        value = options[key]
        if isinstance(value, str) and value in named:
            options[key] = named[value]
        elif value is not None and not isinstance(value, dict):  # one said in place is checked as those of the list
            problems.append(f"{key} {value!r} is not one of olive.data_configs: {', '.join(named) or 'none'}")
    algorithm, instead = DOWNLOADS.get(name, ("", ""))
    if algorithm is None or options.get("algorithm") == algorithm:
        problems.append(f"{algorithm or 'it'} downloads a data set of its own, and takes no other; {instead}")
    return problems


def _refused(kind: Any, known: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """What Olive says of options whose names are right."""
    log = _Log()
    logger = logging.getLogger("olive")
    level = logger.level
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    try:
        config = kind.generate_config(SPEC, options, disable_search=True)
        if kind.validate_config(config, SPEC):
            return []
        return log.said[-1:] or ["Olive does not run it with these options on the CPU"]
    except Exception as error:
        # Without a search an option that is to be searched has no value at all.
        bare = [key for key, each in known.items() if each.search_defaults and each.default_value is None]
        lacking = [f"expected {key!r}, one of {_choices(known[key])}; found none" for key in bare if key not in options]
        return lacking if lacking and isinstance(error, AttributeError) else spoken(error)
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)


def _choices(option: Any) -> str:
    return ", ".join(str(getattr(each, "value", each)) for each in option.search_defaults.get_support())


class _Log(logging.Handler):
    """What Olive says where it answers with no more than a no."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(" ".join(record.getMessage().split()).rstrip("."))
