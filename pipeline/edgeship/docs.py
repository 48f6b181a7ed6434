"""Tables of the documentation that are made from the code: `python -m edgeship.docs README.md [--check]`.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`, NAME being a key of TABLES.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from edgeship import catalog, errors, fields, show
from edgeship.device import Device
from edgeship.encodings import ENCODINGS
from edgeship.fit import ENGINE_WORDS
from edgeship.plan import read_plan
from edgeship.recipe import Recipe
from edgeship.schema import EXTENDS
from edgeship.sizes import format_count, format_size
from edgeship_runtime.server import options

_BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fields_table() -> str:
    """Every field of a recipe: what it may hold, its default, what it means."""
    return _fields(Recipe, EXTENDS)


def device_fields_table() -> str:
    """Every field of a device profile."""
    return _fields(Device, EXTENDS.replace("recipe", "profile"))


def _fields(model: type[BaseModel], extends: str) -> str:
    rows = [("`extends`", "text", "–", extends)]
    for name, info in fields.walk(model):
        if name == "name":
            continue
        inner = fields.submodel(info.annotation)
        holds = fields.expected(info).removeprefix("a ").replace("one of ", "")
        if inner:
            holds = "list of mappings" if get_origin(info.annotation) is tuple else "mapping"
        rows.append((f"`{name}`", holds, _default(info.default, required=info.is_required()), info.description or ""))
    return _markdown(("field", "value", "default", "meaning"), rows)


def _default(value: object, *, required: bool) -> str:
    if required or value is PydanticUndefined:
        return "required"
    if value is None or hasattr(value, "model_fields_set") or value in ("", ()):
        return "–"
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def encodings_table() -> str:
    """Every stored form of a weight."""
    rows = [
        (
            f"`{e.name}`",
            str(e.bits),
            str(e.group or "–"),
            *((e.onnx, f"{_bits_per_weight(sum(e.onnx_bytes(_ROW))):g}") if e.onnx else ("–", "–")),
            *((e.gguf, f"{_bits_per_weight(e.gguf_bytes(_ROW)):.4g}") if e.gguf else ("–", "–")),
        )
        for e in ENCODINGS.values()
    ]
    headers = ("encoding", "bits", "group", "ONNX node", "bits per weight there", "GGUF type", "bits per weight there")
    return _markdown(headers, rows)


_ROW = (256,)  # elements that every group divides


def _bits_per_weight(nbytes: int) -> float:
    return 8 * nbytes / _ROW[0]


def catalogue_table() -> str:
    """Every recipe of the catalogue, with the sizes it comes to, and RAM at its context."""
    rows = []
    for plan in (read_plan(catalog.find(name)) for name in catalog.names()):
        made = show.format_cells(plan)
        rows.append((f"`{plan.recipe.name}`", plan.recipe.source.repo, format_count(plan.parameters), *made))
    headers = [h.removeprefix(">") for h in show.FORMAT_HEADERS]
    return _markdown(("recipe", "source", "parameters", *headers), rows)


def devices_table() -> str:
    """Every device of the catalogue, with what decides how an artifact does on it."""
    rows = [
        (
            f"`{d.name}`",
            " + ".join(f"{c.count} {c.kind}" for c in d.cores),
            " ".join(d.isa) or "–",
            format_size(d.ram_bytes),
            format_size(d.budget_bytes),
            f"{d.bandwidth_gbps:g}",
            ", ".join(ENGINE_WORDS[e] for e in d.engines),
            ", ".join(d.encodings),
        )
        for d in map(catalog.find_device, catalog.device_names())
    ]
    headers = ("device", "cores", "features", "RAM", "for an artifact", "GB/s read", "engines", "encodings")
    return _markdown(headers, rows)


def exit_codes_table() -> str:
    """Every exit code of the commands."""
    kinds = sorted(errors.EdgeshipError.__subclasses__(), key=lambda kind: kind.exit_code)
    rows = [("0", "Done"), ("1", "A defect of edgeship itself")]
    rows += [(str(kind.exit_code), (kind.__doc__ or "").partition("\n")[0].rstrip(".")) for kind in kinds]
    return _markdown(("exit code", "meaning"), [*rows, ("130, 129, 143", "Interrupted: by Ctrl-C, SIGHUP, SIGTERM")])


def server_limits_table() -> str:
    """Every limit of the server, with its default."""
    rows = [
        (f"`{options.flag(name)}`", options.shown(name, "{}") or "–", text)
        for group in options.GROUPS.values()
        for name, _, text in group
    ]
    return _markdown(("option of `serve`", "default", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "recipe fields": fields_table,
    "encodings": encodings_table,
    "catalogue": catalogue_table,
    "devices": devices_table,
    "device fields": device_fields_table,
    "exit codes": exit_codes_table,
    "server limits": server_limits_table,
}


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def rewrite(text: str) -> str:
    """The text with every generated table made anew; raises UsageError at a marker that names none."""

    def table(match: re.Match[str]) -> str:
        make = TABLES.get(match[2])
        if make is None:
            names = ", ".join(TABLES)
            raise errors.UsageError(f"no table is called {match[2]!r}.", hint=f"generated tables: {names}")
        return match[1] + make() + match[4]

    return _BLOCK.sub(table, text)


def main(arguments: Sequence[str]) -> int:
    """Rewrite the files named, or with `--check` say which are stale and return 1."""
    check, stale = "--check" in arguments, False
    for path in (Path(a) for a in arguments if a != "--check"):
        old = path.read_text(encoding="utf-8")
        new = rewrite(old)
        if old == new:
            continue
        stale = True
        if check:
            print(f"{path} is stale: run python -m edgeship.docs {path}", file=sys.stderr)
        else:
            path.write_text(new, encoding="utf-8")
            print(f"rewrote {path}")
    return int(stale and check)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except errors.EdgeshipError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
