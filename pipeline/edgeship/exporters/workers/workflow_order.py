"""Checks whether the passes of a workflow can follow each other, by the kinds of model that they say they take."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from olive.package_config import OlivePackageConfig

HF, ONNX, SEVERAL = "HfModelHandler", "ONNXModelHandler", "CompositeModelHandler"
SPOKEN = {HF: "a Hugging Face model", ONNX: "an ONNX model", SEVERAL: "several models at once"}
WRITERS = frozenset({"modelbuilder", "mobiusbuilder", "vitisgeneratemodelllm"})  # of genai_config.json
ONCE = frozenset({"gptq", "autoclip"})  # refuse a model that is quantized already
QUANTIZE = frozenset({"gptq", "rtn", "kquant"})
FLOATS = frozenset({"fp32", "fp16", "bf16"})
RENAME = frozenset({"onnxblockwisertnquantization", "onnxhqqquantization"})  # the output of each MatMul that they take
HEAD = "/lm_head/MatMul"  # of ModelBuilder's graphs; what it gives are the logits


def check_order(package: OlivePackageConfig, passes: list[dict[str, Any]]) -> list[str]:
    """What is certain to fail: a pass after one whose output it does not take, or no model to run at the end.

    What a pass does not say of itself is taken to fit.
    """
    kinds, maker, quantizer = {HF}, "", ""
    for place, each in enumerate(passes):
        name, here = each["type"].lower(), f"passes[{place}] ({each['type']})"
        takes, makes = _of(package, each)
        if takes and not kinds & takes and SEVERAL not in kinds:  # Olive takes several one by one
            remedy = "put ModelBuilder before it"
            if name == "modelbuilder" and place == 0:
                remedy = "leave metadata_only out"
            elif takes == {HF}:
                remedy = f"put it before {maker}"
            made = f"the output of {maker}" if place else "the checkpoint"
            return [f"{here}: it takes {_say(takes)}, and {made} is {_say(kinds)}; {remedy}"]
        if quantizer and name in ONCE:
            return [f"{here}: it takes a float model, and {quantizer} quantizes; keep one of them"]
        if quantizer and name == "modelbuilder" and str(each.get("precision")).lower() in FLOATS:
            return [f"{here}: precision {each['precision']} is for a float model, and {quantizer} quantizes; say int4"]
        if name in RENAME and _takes_head(each) and _is_float(passes[:place]):
            return [f"{here}: it renames the logits, which the runtime asks for; add nodes_to_exclude: [{HEAD}]"]
        quantizer = here if name in QUANTIZE else quantizer
        if makes:
            # A model of several kinds stays the kind that it was.
            kinds = kinds & makes or makes
            kinds = kinds | {HF} if "PyTorchModelHandler" in makes and HF in takes else kinds
        else:
            kinds = {HF, ONNX}
        maker = here
    last = f"passes[{len(passes) - 1}] ({passes[-1]['type']})"
    if ONNX not in kinds:
        remedy = "let ModelBuilder follow" if HF in kinds else "leave it out"
        return [f"{last}: the workflow ends with {_say(kinds)}, not with an ONNX model; {remedy}"]
    if not WRITERS & {each["type"].lower() for each in passes}:
        return [f"{last}: nothing writes genai_config.json, which the runtime reads; let ModelBuilder make the ONNX"]
    return []


def _takes_head(given: dict[str, Any]) -> bool:
    chosen = given.get("nodes_to_include")
    return HEAD not in str(given.get("nodes_to_exclude")) and (not chosen or HEAD in str(chosen))


def _is_float(before: list[dict[str, Any]]) -> bool:
    """Whether all there is yet is a graph of floats."""
    builders = [each for each in before if each["type"].lower() == "modelbuilder"]
    return len(before) == len(builders) == 1 and str(builders[0].get("precision")).lower() == "fp32"


def _of(package: OlivePackageConfig, given: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The kinds of model that a pass takes and makes; an empty set where it does not say."""
    if given["type"].lower() == "modelbuilder":  # it says both, and looks at this option
        return ({ONNX} if given.get("metadata_only") else {HF}), {ONNX}
    said = package.import_pass_module(given["type"])._run_for_config.__annotations__
    takes, makes = (set(re.findall(r"\w+ModelHandler\b", str(said.get(key, "")))) for key in ("model", "return"))
    return ({} if "OliveModelHandler" in each else each for each in (takes, makes))  # type: ignore[return-value]


def _say(kinds: set[str]) -> str:
    return " or ".join(SPOKEN.get(each, f"Olive's {each.removesuffix('Handler')}") for each in sorted(kinds))
