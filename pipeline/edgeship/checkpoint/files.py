"""Which files make a checkpoint: the same choice for a directory, Hugging Face and ModelScope.

Weights are `model.safetensors`, or `model.safetensors.index.json` with the shards it names, as transformers writes
them. Both together are refused (unless the index names only that file): one of them is a leftover, and nothing says
which. Other safetensors files (`consolidated.safetensors`, ...) are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgeship.checkpoint.strict_json import DAMAGED, parse_object, show, some
from edgeship.errors import CheckpointError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODULES = "modules.json"
SENTENCE = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
SIDE_FILES = (
    *(CONFIG, "generation_config.json", "tokenizer*.json", "chat_template.jinja", "LICENSE*"),
    *(MODULES, SENTENCE, PROMPTS),
)
"""What is read or shipped beside the weights, as patterns."""

JSON_LIMIT = 50_000_000  # bytes of config.json or an index: the largest seen (a MoE's index) has 5 MB
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin.index.json")


def side_files(names: Collection[str]) -> list[str]:
    """Those of `names` that are read or shipped beside the weights, sorted."""
    return sorted(n for n in names if any(fnmatchcase(n, p) for p in SIDE_FILES))


def is_module_config(name: str) -> bool:
    """Whether a name is that of a module's config.json, in a directory beside the weights."""
    directory, _, file = name.partition("/")
    return file == CONFIG and is_plain(directory)


def module_configs(blob: bytes, names: Collection[str]) -> list[str]:
    """Those of `names` that are config.json of a module that modules.json, `blob`, lists; none if it is damaged.

    An embedding model's exporter refuses a damaged one; nothing else reads it.
    """
    try:
        modules = parse_object(b'{"modules":%s}' % blob, MODULES, "the list of modules")["modules"]
    except CheckpointError:
        return []
    paths = [each.get("path") for each in modules if isinstance(each, dict)] if isinstance(modules, list) else []
    configs = {f"{path}/{CONFIG}" for path in paths if isinstance(path, str)}
    return sorted(name for name in configs & set(names) if is_module_config(name))


def require_tokenizer(names: Collection[str], place: str) -> None:
    """Raise CheckpointError unless tokenizer.json is among `names`, the files of `place`."""
    if TOKENIZER not in names:
        raise CheckpointError(
            f"{place}: expected {TOKENIZER}, found none: text cannot be turned into this model's tokens.",
            hint='make it from the older tokenizer files: python -c "from transformers import AutoTokenizer as T; '
            "T.from_pretrained('DIR').save_pretrained('DIR')\"; where that writes none, transformers has the "
            "tokenizer in its slow form only (Marian, M2M100, ProphetNet), and the model cannot be exported",
        )


def choose_weights(names: Collection[str], place: str, read_index: Callable[[], bytes]) -> tuple[str, ...]:
    """The weight files among `names` (the files of `place`, top level): one file, or the shards of the index.

    `read_index` gives the bytes of the index and is called only when there is one. Raises CheckpointError when there
    are no safetensors weights, saying what was found instead; when shards are missing; or when the choice is unclear.
    """
    shards = {n for n in names if SHARD.fullmatch(n)}
    if INDEX in names:
        listed = sorted(set(parse_index(read_index(), f"{place}/{INDEX}").values()))
        if SINGLE in names and listed != [SINGLE]:
            raise _two_checkpoints(place, f"{INDEX} ({len(listed)} files)")
        missing = [n for n in listed if n not in names]
        if missing:
            raise CheckpointError(
                f"{place}: {INDEX} names {len(listed)} files, {len(missing)} of them missing:\n" + some(missing),
                hint="download the missing files; every shard is needed",
            )
        extra = sorted(shards.difference(listed))
        if extra:
            raise CheckpointError(
                f"{place}: found {len(extra)} shards that {INDEX} does not name:\n" + some(extra),
                hint="shards of two downloads are mixed here; remove the ones that do not belong, or download again",
            )
        return tuple(listed)
    if shards and SINGLE in names:
        raise _two_checkpoints(place, f"{len(shards)} shards")
    if SINGLE in names:
        return (SINGLE,)
    if shards:
        raise CheckpointError(
            f"{place}: found {len(shards)} shards but no {INDEX}, which says what they hold.",
            hint=f"download {INDEX} from the same place",
        )
    raise _no_weights(names, place)


def read_limited(file: Path) -> bytes:
    """The bytes of a JSON file; raises CheckpointError when it cannot be read or is over the limit."""
    try:
        with file.open("rb") as f:
            blob = f.read(JSON_LIMIT + 1)
    except OSError as e:
        raise CheckpointError(f"{file}: cannot be read: {e.strerror}.", hint="check the path and its rights") from e
    if len(blob) > JSON_LIMIT:
        raise CheckpointError(f"{file}: expected JSON of at most {JSON_LIMIT} bytes, found more.", hint=DAMAGED)
    return blob


def parse_index(blob: bytes, file: str) -> dict[str, str]:
    """Tensor name -> file name, from the bytes of an index; raises CheckpointError at anything but plain file names."""
    weight_map: Any = parse_object(blob, file, "the index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{file}: expected an object 'weight_map' of tensors and files, found none.", hint=DAMAGED
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not (is_plain(name) and name.endswith(".safetensors")):
            found = show(name) if isinstance(name, str) else repr(name)[:60]
            raise CheckpointError(
                f"{file}: tensor {show(tensor)}: expected the name of a .safetensors file beside it, found {found}.",
                hint="an index points at files of its own directory only; do not use this checkpoint if others do not",
            )
    return weight_map


def is_plain(name: str) -> bool:
    """Whether a name that came from outside is a file name and nothing else: no directory, no drive, not hidden."""
    return (
        0 < len(name.encode(errors="replace")) <= 255
        and not name.startswith(".")
        and not any(c in '/\\:*?"<>|' for c in name)
        and name.isprintable()
    )


def _two_checkpoints(place: str, other: str) -> CheckpointError:
    return CheckpointError(
        f"{place}: found both {SINGLE} and {other}: which of them is the model cannot be told.",
        hint="keep one: remove (or leave out of a local copy) the files that are left over from another version",
    )


CONVERT = (
    'convert it where you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('DIR').save_pretrained('OUT', safe_serialization=True)\""
)


def _no_weights(names: Collection[str], place: str) -> CheckpointError:
    def found(*patterns: str) -> list[str]:
        return sorted(n for n in names if any(fnmatchcase(n.lower(), p) for p in patterns))

    wanted = f"{place}: expected {SINGLE}, or {INDEX} and its shards"
    kinds: Mapping[str, tuple[list[str], str]] = {
        "pickle checkpoint(s), which can run code when they are read and are refused": (found(*PICKLES), CONVERT),
        "GGUF files, which are exports themselves": (
            found("*.gguf"),
            "export from the original checkpoint (config.json and safetensors); quantizing twice only loses",
        ),
        "an adapter, which is a difference to a model": (
            found("adapter_model.*", "adapter_config.json"),
            "merge it into its base model first (peft: merge_and_unload, save_pretrained) and export the result",
        ),
        "safetensors under other names": (
            found("*.safetensors"),
            f"if this one file is the whole model, name it {SINGLE}",
        ),
    }
    # An adapter may be pickled too (adapter_model.bin): what it is matters more than how it is stored.
    order = sorted(kinds.items(), key=lambda kind: not kind[0].startswith("an adapter"))
    for text, (files, hint) in order:
        if files:
            return CheckpointError(f"{wanted}; found {text}:\n" + some(files), hint=hint)
    return CheckpointError(f"{wanted}; found no weights at all.", hint="check the path, and that the download finished")
