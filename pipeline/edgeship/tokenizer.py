"""The checkpoint's tokenizer, checked against the model, and the special tokens its files agree on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeship.checkpoint.strict_json import DAMAGED, parse_object, show
from edgeship.errors import CheckpointError

TOKENIZER, TOKENIZER_CONFIG, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,50}")
SIZE_LIMIT = 200_000_000  # bytes: the largest vocabularies in use (256,000 tokens) make files of 35 MB


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that steer generation: `eos` ends it, any of them; `bos` and `pad` may not exist."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def open_tokenizer(file: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a tokenizer.json, padding and truncation off.

    Raises CheckpointError when it does not load, or holds an id that a model of `vocab_size` tokens has no row for.
    """
    blob = read_limited(file)
    try:
        tokenizer = Tokenizer.from_buffer(blob)
    except BaseException as error:  # tokenizers raises plain Exception for whatever is wrong, and panics beside it
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise CheckpointError(
            f"{file}: expected a tokenizer that the tokenizers library loads, found: {_one_line(error)}.", hint=DAMAGED
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1], default=("", -1))
    if largest[1] >= vocab_size:
        raise CheckpointError(
            f"{file}: expected ids below {vocab_size} (config.json: vocab_size), found token {show(largest[0])} "
            f"with id {largest[1]}. The model has no row for it.",
            hint="use the tokenizer.json that belongs to this checkpoint; added tokens need a resized embedding",
        )
    return tokenizer


def special_tokens(directory: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> SpecialTokens:
    """Special tokens of a checkpoint: generation_config.json, else config.json, else tokenizer_config.json.

    The end-of-turn token that tokenizer_config.json names always ends generation: many a config.json knows only the end
    of a text. Raises CheckpointError at an id that is no token, and when nothing says where generation ends.
    """
    generation, named = read_optional(directory / GENERATION), read_optional(directory / TOKENIZER_CONFIG)
    vocab_size = int(config["vocab_size"])

    def ids(kind: str) -> list[int]:
        for file, values in ((GENERATION, generation), ("config.json", config)):
            value = values.get(f"{kind}_token_id")
            if value is not None and value != -1:  # -1 says none, in old Llama configs
                return _ids(f"{directory / file}: {kind}_token_id", value, vocab_size)
        return by_name(kind)

    def by_name(kind: str) -> list[int]:
        token = named.get(f"{kind}_token")
        content = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.token_to_id(content) if isinstance(content, str) else None
        return [] if found is None else [found]

    eos = list(dict.fromkeys(ids("eos") + by_name("eos")))
    if not eos:
        raise CheckpointError(
            f"{directory}: expected eos_token_id in {GENERATION} or config.json, or eos_token in {TOKENIZER_CONFIG}, "
            f"found none. Generation would never end.",
            hint=f'add {{"eos_token_id": ID}} as {GENERATION}, with the id of the token that ends a text or turn',
        )
    return SpecialTokens(next(iter(ids("bos")), None), tuple(eos), next(iter(ids("pad")), None))


def chat_templates(directory: Path) -> dict[str, str]:
    """The chat templates of a checkpoint under the file names that transformers and the runtime read them by.

    chat_template.jinja as it is, else taken out of tokenizer_config.json; named ones beside "default" go to
    additional_chat_templates/. Empty when there is none. Raises CheckpointError where one is not text.
    """
    file = directory / TEMPLATE
    if file.is_file():
        try:
            return {TEMPLATE: read_limited(file).decode()}
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{file}: the template is not UTF-8 (byte {error.start}).", hint=DAMAGED) from None
    where, value = directory / TOKENIZER_CONFIG, read_optional(directory / TOKENIZER_CONFIG).get("chat_template")
    if value is None:
        return {}
    named = {"default": value} if isinstance(value, str) else _named(value)
    if named is None:
        found = type(value).__name__
        raise CheckpointError(
            f"{where}: chat_template: expected text, or a list of objects with name and template, found {found}.",
            hint=DAMAGED,
        )
    if "default" not in named:
        raise CheckpointError(
            f"{where}: chat_template: expected one named 'default', found {', '.join(map(show, named)) or 'none'}.",
            hint="name the template for ordinary conversations 'default'",
        )
    return {
        TEMPLATE if name == "default" else f"additional_chat_templates/{name}.jinja": text
        for name, text in named.items()
    }


def _named(value: Any) -> dict[str, str] | None:
    """Templates by name from a list of {"name", "template"}; None at anything else, names fit for files included."""
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else [None]:
        name, text = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str) or not TEMPLATE_NAME.fullmatch(name):
            return None
        named[name] = text
    return named


def read_optional(file: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing (then empty); raises CheckpointError at anything else."""
    if not file.exists():
        return {}
    values = parse_object(read_limited(file), str(file), "the file")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{file}: expected Unicode text, found half of a surrogate pair.", hint=DAMAGED) from None
    return values


def read_limited(file: Path) -> bytes:
    """The bytes of a side file of the checkpoint; raises CheckpointError when it is missing or absurdly large."""
    try:
        size = file.stat().st_size
        if size > SIZE_LIMIT:
            raise CheckpointError(f"{file}: expected at most {SIZE_LIMIT} bytes, found {size}.", hint=DAMAGED)
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror}).", hint="check the file's permissions"
        ) from None


def _ids(where: str, value: Any, vocab_size: int) -> list[int]:
    values = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < vocab_size:
            raise CheckpointError(
                f"{where}: expected token ids from 0 to {vocab_size - 1}, found {show(str(each))}.",
                hint="restore the value the model was published with",
            )
    return values


def _one_line(error: BaseException) -> str:
    return show(" ".join(str(error).split()), 200)
