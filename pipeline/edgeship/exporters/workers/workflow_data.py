"""Checks the data sets of a workflow, by loading each from local files as Olive's own components do."""

from __future__ import annotations

import inspect
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from olive.common.import_lib import import_user_module
from olive.data.component.text_generation import TextGenParams
from olive.data.config import DataConfig, DefaultDataComponentCombos
from olive.data.registry import Registry
from olive.workflows.run.config import RunConfig
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from workflow_files import check_dummy, check_files, check_raw
from workflow_words import Findings, spoken, unknown

COMPONENTS = {f"{name}_config": name for name in DefaultDataComponentCombos}
EVERYWHERE = frozenset({"task", "model_name", "trust_remote_code"})  # Olive itself gives these to any component
COUNTS = frozenset({"batch_size", "max_length", "max_samples", "max_seq_len"})
MOST_POSITIONS = 1 << 20  # before the checkpoint is there
LOADS = {
    "batch_size": int,
    "num_workers": int,
    "shuffle": bool,
    "drop_last": bool,
    "pin_memory": bool,
    "timeout": float,
}
LOADER = frozenset(LOADS)  # of torch's own loader, what YAML can say
TOKENIZES = frozenset({"padding", "truncation", "max_length", "is_split_into_words", "add_special_tokens", "batched"})
KEYWORDS: dict[str, frozenset[str]] = {
    "local_dataset": frozenset(),
    "dummy_dataset": frozenset(),
    "pre_process": frozenset(),
    "huggingface_pre_process": TOKENIZES | {"model_config_path", "align_labels"},
    "tokenizer_pre_process": TOKENIZES,
    "ner_huggingface_preprocess": TOKENIZES - {"max_length"},
    "text_generation_huggingface_pre_process": frozenset(TextGenParams.model_fields),
    "post_process": frozenset(),
    "text_classification_post_process": frozenset(),
    "ner_post_process": frozenset(),
    "text_generation_post_process": frozenset(),
    "default_dataloader": LOADER,
    "dataloader_with_ignored_batch_fields": LOADER,
    "no_auto_batch_dataloader": LOADER,
    "vision_vqa_dataloader": LOADER,
}
"""What Olive's functions read of their `**kwargs`; those of a user script read what they like."""


def check_data(configs: list[dict[str, Any]], findings: Findings) -> dict[str, set[str] | None]:
    """Add what is wrong with the data sets; returns the inputs that each gives, None where that shows later."""
    # In the directory that goes with the worker: what is converted here is of no use to another.
    os.environ["HF_DATASETS_CACHE"] = str(Path("datasets").absolute())
    names: dict[str, int] = {}
    inputs: dict[str, set[str] | None] = {}
    for place, config in enumerate(configs):
        name = config.get("name")
        label = f"data_configs[{place}]" + (f" ({name})" if isinstance(name, str) else "")
        own = findings.part()
        if isinstance(name, str):
            if name in names:
                own.problems.append(f"its name is that of data_configs[{names[name]}] as well")
            names.setdefault(name, place)
        inputs[str(name)] = check_one(config, own)
        findings.problems += [f"{label}: {text}" for text in own.problems]
    return inputs


def check_one(config: dict[str, Any], findings: Findings) -> set[str] | None:
    """Add what is wrong with a data set; returns the inputs that it gives."""
    try:
        _check_form(config, findings)
        return None if findings.problems else _check_contents(config, findings)
    except (AttributeError, OSError, TypeError, ValueError) as error:  # of values that nobody thought of
        findings.problems += [f"it cannot be read: {each}" for each in spoken(error)]
        return None


def _check_form(config: dict[str, Any], findings: Findings) -> None:
    """Keys, names and types, which have to be right before Olive can be asked for more."""
    say = findings.problems.append
    for key in config:
        if key not in DataConfig.model_fields:
            say(unknown("key", key, DataConfig.model_fields))
    name = config.get("name")
    if not isinstance(name, str) or not name.isascii() or not name.replace("_", "a").isalnum():
        say(f"expected a name of letters, digits and '_', found {'none' if name is None else repr(name)}")
    if config.get("user_script") is not None:
        try:
            import_user_module(config["user_script"], config.get("script_dir"))
        except Exception as error:
            findings.problems += [
                f"user_script {config['user_script']!r} does not load: {each}" for each in spoken(error)
            ]
    for key, kind in {"type": "data_container", **COMPONENTS}.items():
        given = config.get(key)
        if given is None:
            continue
        known, chosen = Registry._REGISTRY[kind], given
        if key == "type":
            proper = [each.__name__ for each in known.values()]
        elif not isinstance(given, dict) or not isinstance(given.get("params") or {}, dict):
            say(f"{key}: expected a mapping of `type` and `params`, found {given!r}")
            continue
        else:
            proper, chosen = list(known), given.get("type")
        if chosen is not None and (not isinstance(chosen, str) or chosen.lower() not in known):
            say(("" if key == "type" else f"{key}: ") + unknown("type", chosen, proper))


def _check_params(key: str, given: dict[str, Any], container: Any, findings: Findings) -> None:
    """A component's params as such, said beside its `type` or in `params`."""
    inner = given.get("params") or {}
    twice = [each for each in inner if each in given]
    findings.problems += [f"{key}: {each!r} is said twice, in params and beside them; remove one" for each in twice]
    task = inner.get("task", given.get("task"))
    if task is not None and not isinstance(task, str):
        findings.problems.append(f"{key}: task {task!r}: expected a text")
    elif task is not None and not hasattr(container, "task_type_components_map"):
        findings.problems.append(f"{key}: task goes with type: HuggingfaceContainer; remove it")


def _check_contents(config: dict[str, Any], findings: Findings) -> set[str] | None:
    """The params of the components that Olive chooses, then the data set itself."""
    for key in COMPONENTS:
        _check_params(key, config.get(key) or {}, Registry.get_container(config.get("type")), findings)
    if findings.problems:
        return None
    model = {"type": "HfModel", "model_path": "checkpoint"}
    try:
        chosen = RunConfig.model_validate({"input_model": model, "data_configs": [deepcopy(config)]}).data_configs[0]
    except Exception as error:
        findings.problems += spoken(error)
        return None
    for key, kind in COMPONENTS.items():
        said = config.get(key) or {}
        given = (said.get("params") or {}) | {k: v for k, v in said.items() if k not in ("type", "params")}
        component = chosen.components[kind]
        function = Registry.get_component(kind, component.type)
        found = _of_params(key, component, function, given) or _of_counts(given, findings.positions or MOST_POSITIONS)
        findings.problems += [f"{key}: {each}" for each in found]
    load = chosen.load_dataset_config
    source = Registry.get_component("load_dataset", load.type).__name__
    if source == "local_dataset" and config.get("user_script") is None:
        text = (
            "load_dataset_config: expected a type that reads data, such as raw_dataset or huggingface_dataset, found "
        )
        findings.problems.append(
            text + (load.type if (config.get("load_dataset_config") or {}).get("type") else "none")
        )
    if findings.problems:
        return None
    if source == "huggingface_dataset":
        check_files(load.params, findings)
    elif source == "raw_dataset":
        check_raw(load.params, findings)
    elif source == "dummy_dataset":
        check_dummy(load.params, findings)
    return None if findings.problems else _load(chosen, findings)


def _of_params(key: str, component: Any, function: Any, given: dict[str, Any]) -> list[str]:
    """Params that a component does not know, lacks, or could not use."""
    parameters = list(inspect.signature(function).parameters.values())
    if key != "load_dataset_config":
        parameters = parameters[1:]  # the data itself
    named = {each.name: each for each in parameters if each.kind != each.VAR_KEYWORD}
    known = set(named) | EVERYWHERE | KEYWORDS.get(function.__name__, frozenset())
    closed = len(named) == len(parameters) or function.__name__ in KEYWORDS
    problems = [f"{component.type}: {unknown('param', each, known)}" for each in given if closed and each not in known]
    for name, parameter in named.items():
        value = component.params.get(name)
        if value is None:
            if parameter.default is parameter.empty and not function.__name__.startswith("transformers_"):
                fills = "; type: HuggingfaceContainer fills it in" if name == "model_name" else ""
                problems.append(f"{component.type}: expected a param {name!r}, found none{fills}")
        elif parameter.annotation is not parameter.empty and name in given:
            problems += _of_type(name, parameter.annotation, value)
    if KEYWORDS.get(function.__name__) is LOADER:
        problems += [each for name in given if name in LOADS for each in _of_type(name, LOADS[name], given[name])]
    model = given.get("model_name")
    if model is not None and not (isinstance(model, str) and Path(model).is_absolute() and Path(model).is_dir()):
        problems.append(f"model_name {model!r} would be downloaded; leave it out, and it is the checkpoint")
    if function.__name__ == "text_generation_huggingface_pre_process" and not problems:
        problems += _of_text(component.params)
    return problems


def _of_counts(given: dict[str, Any], most: int) -> list[str]:
    """Numbers that leave nothing to read, or ask for longer texts than the model reads."""
    counts = {name: given[name] for name in COUNTS & set(given) if isinstance(given[name], int)}
    problems = [f"{name} {value}: expected 1 or more" for name, value in sorted(counts.items()) if value < 1]
    length = counts.get("max_seq_len", 1)
    return problems + ([f"max_seq_len {length}: expected at most {most}, the model's positions"] * (length > most))


def _of_type(name: str, annotation: Any, value: Any) -> list[str]:
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        return [f"{name} {value!r}: {' or '.join(dict.fromkeys(e['msg'] for e in error.errors()))}"]
    except (PydanticUserError, NameError):  # a type that cannot be checked
        pass
    return []


def _of_text(params: dict[str, Any]) -> list[str]:
    try:
        TextGenParams.model_validate({key: value for key, value in params.items() if key in TextGenParams.model_fields})
    except ValidationError as error:
        problems: list[str] = spoken(error)
        return problems
    return []


def _load(chosen: DataConfig, findings: Findings) -> set[str] | None:
    """Load the data set, and make a batch where that takes no tokenizer; returns the names of its inputs."""
    container = chosen.to_data_container()
    try:
        data = container.load_dataset()
    except Exception as error:
        findings.problems += [f"load_dataset_config: it does not load: {each}" for each in spoken(error)]
        return None
    if hasattr(data, "__len__") and not len(data):
        findings.problems.append("load_dataset_config: it holds nothing")
        return None
    if chosen.pre_process.__name__ == "text_generation_huggingface_pre_process":
        findings.problems += _of_columns(chosen.pre_process_params, getattr(data, "column_names", None))
    if chosen.pre_process.__name__ != "pre_process":
        return None
    try:
        batch = next(iter(container.dataloader(data)))
    except Exception as error:
        findings.problems += [f"no batch can be made of it: {each}" for each in spoken(error)]
        return None
    batch = batch[0] if isinstance(batch, (list, tuple)) else batch
    if not isinstance(batch, dict):
        return set()
    findings.problems += _of_ids(batch.get("input_ids"))
    if "input_ids" in batch and findings.vocabulary is not None and chosen.load_dataset.__name__ == "raw_dataset":
        findings.problems += _beyond(data, findings.vocabulary)
    return set(batch)


def _beyond(data: Any, vocabulary: int) -> list[str]:
    """Token ids that the checkpoint does not have."""
    rows = [data[place][0]["input_ids"] for place in range(len(data))]
    least, most = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    if least >= 0 and most < vocabulary:
        return []
    return [f"input_ids: expected 0 to {vocabulary - 1}, the tokens of the checkpoint, found {least} to {most}"]


def _of_columns(params: dict[str, Any], columns: list[str] | None) -> list[str]:
    asked = TextGenParams.model_validate({k: v for k, v in params.items() if k in TextGenParams.model_fields})
    if columns is None or asked.text_formatting_func or asked.text_template:
        return []
    wanted = [asked.message_col] if asked.chat_template else list(asked.text_cols)
    missing = [each for each in wanted if each not in columns]
    key = "message_col" if asked.chat_template else "text_cols"
    return [f"pre_process_data_config: {key} {each!r} is not in the data: {', '.join(columns)}" for each in missing]


def _of_ids(ids: Any) -> list[str]:
    """A language model reads whole numbers, [batch, tokens]."""
    if ids is None or not hasattr(ids, "shape"):
        return []
    problems = []
    if ids.is_floating_point():
        problems.append(f"input_ids are {ids.dtype}; expected whole numbers: input_types int64".replace("torch.", ""))
    if ids.ndim != 2:
        shape = list(ids.shape)
        problems.append(
            f"input_ids of a batch are {shape}, expected [batch, tokens]: with DataContainer an input's shape is "
            "[tokens], with RawDataContainer [1, tokens]"
        )
    return problems
