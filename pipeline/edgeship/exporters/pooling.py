"""How an encoder's tokens become one vector: the module files of sentence-transformers, read, and written plainly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeship.checkpoint.files import MODULES, SENTENCE, is_plain
from edgeship.checkpoint.strict_json import DAMAGED, parse_object, show
from edgeship.errors import CheckpointError
from edgeship.exporter import Optimum
from edgeship.exporters.texts import TEXTS
from edgeship.tokenizer import TOKENIZER_CONFIG, read_limited, read_optional
from edgeship_runtime.encoder import CONFIG, POOLINGS
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.strict import Fields, parse_json

POOLING = "1_Pooling"
MODES = {name: kind for kind, name in POOLINGS.items()}
KINDS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


@dataclass(frozen=True)
class Modules:
    """What follows the transformer."""

    pooling: str  # of `POOLINGS`
    normalize: bool
    prompts: bool = True  # tokens of a prompt count, too


def read_modules(directory: Path, options: Optimum) -> Modules:
    """The modules of a checkpoint, or of the recipe where it names them. Raises CheckpointError for other kinds."""
    path = directory / MODULES
    if not path.is_file():
        if options.pooling is not None:
            return Modules(options.pooling, options.normalize is not False)
        raise CheckpointError(
            f"{path}: expected the modules of an embedding model, found no such file.",
            hint="say how its tokens become a vector: optimum: {pooling: mean}, cls or lasttoken",
        )
    try:
        kinds, places = _listed(path)
    except EdgeshipRuntimeError as error:
        if options.pooling is not None and options.normalize is not None:
            return Modules(options.pooling, options.normalize)
        way_out = f"; or say all in the recipe: optimum: {{pooling: {options.pooling}, normalize: true}}"
        raise CheckpointError(f"{error.message}.", hint=DAMAGED + (way_out if options.pooling else "")) from None
    if not (kinds in KINDS or (options.pooling is not None and set(kinds) <= set(KINDS[-1]))):
        raise CheckpointError(
            f"{path}: expected Transformer, Pooling and perhaps Normalize, found {', '.join(kinds) or 'none'}.",
            hint="further layers are not exported; their answers would be missing from every vector",
        )
    normalize = kinds[-1:] == ["Normalize"] if options.normalize is None else options.normalize
    if options.pooling is not None:
        return Modules(options.pooling, normalize)
    if not is_plain(places[1]):
        raise CheckpointError(f"{path}: expected a directory beside it, found {show(places[1])}.", hint=DAMAGED)
    pooling, prompts = _mode(directory / places[1] / CONFIG)
    return Modules(pooling, normalize, prompts or pooling != "mean")


def _listed(path: Path) -> tuple[list[str], list[str]]:
    """The kinds of the modules that a file lists, and their directories. Raises EdgeshipRuntimeError."""
    top = Fields({"modules": parse_json(read_limited(path), str(path))}, str(path), "", ("modules",))
    items = [Fields(each, str(path), "", ("type", "path"), open=True) for each in top.items("modules", 16)]
    return [each.text("type").rpartition(".")[2] for each in items], [each.text("path", empty=True) for each in items]


def _mode(path: Path) -> tuple[str, bool]:
    """The one way of pooling that a module's config.json asks for, and whether a prompt's tokens take part."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected how tokens become a vector, found no such file.",
            hint="download it again with its directories, or say optimum: {pooling: mean}, cls or lasttoken",
        )
    config = parse_object(read_limited(path), str(path), "the pooling")
    prefix = "pooling_mode_"
    asked = [key.removeprefix(prefix) for key, on in config.items() if key.startswith(prefix) and on is True]
    asked = [MODES.get(each, each) for each in asked] or [str(config.get("pooling_mode", "nothing"))]
    if len(asked) != 1 or asked[0] not in MODES.values():
        raise CheckpointError(
            f"{path}: expected pooling by mean, cls or lasttoken, found {show(' and '.join(asked))}.",
            hint="other ways are not known here",
        )
    return asked[0], config.get("include_prompt") is not False


def module_files(modules: Modules, size: int, length: int) -> dict[str, Any]:
    """The module files as sentence-transformers reads them, by name: JSON values."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if modules.normalize else [])]
    paths = ["", POOLING, "2_Normalize"]
    return {
        MODULES: [
            {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ],
        f"{POOLING}/{CONFIG}": {
            "word_embedding_dimension": size,
            **{f"pooling_mode_{name}": modules.pooling == kind for kind, name in POOLINGS.items()},
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        SENTENCE: {"max_seq_length": length, "do_lower_case": False},
    }


def sequence_limit(directory: Path, tokenizer: Tokenizer, options: Optimum, positions: int) -> int:
    """Tokens read of a text: by the recipe, sentence_bert_config.json, tokenizer_config.json, or the room there is.

    Raises CheckpointError for a limit beyond `positions`, and for texts that would have to be lowercased first.
    """
    said = read_optional(directory / SENTENCE)
    if said.get("do_lower_case") is True and any(
        tokenizer.encode(text).ids != tokenizer.encode(text.lower()).ids for text in TEXTS
    ):
        raise CheckpointError(
            f"{directory / SENTENCE}: do_lower_case: expected a tokenizer that does it, found one that does not.",
            hint="use a tokenizer.json whose normalizer lowercases",
        )
    if options.max_length is not None:
        if options.max_length > positions:
            raise CheckpointError(
                f"optimum.max_length: expected at most {positions}, found {options.max_length}.", hint="lower it"
            )
        return options.max_length
    limits = [said.get("max_seq_length"), read_optional(directory / TOKENIZER_CONFIG).get("model_max_length")]
    return min([positions, *(each for each in limits if isinstance(each, int) and each >= 8)])
