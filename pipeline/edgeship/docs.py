"""Tables of the documentation that are made from the code: `python -m edgeship.docs README.md [--check]`.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`, NAME being a key of TABLES.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic_core import PydanticUndefined

from edgeship import catalog, errors, fields
from edgeship.encodings import ENCODINGS
from edgeship.plan import read_plan
from edgeship.recipe import Recipe
from edgeship.schema import EXTENDS
from edgeship.sizes import format_count, format_size

_BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fields_table() -> str:
    """Every field of a recipe: what it may hold, its default, what it means."""
    rows = [("`extends`", "text", "–", EXTENDS)]
    for name, info in fields.walk(Recipe):
        if name == "name":
            continue
        inner = fields.submodel(info.annotation)
        holds = "mapping" if inner else fields.expected(info).removeprefix("a ").replace("one of ", "")
        rows.append((f"`{name}`", holds, _default(info.default, required=info.is_required()), info.description or ""))
    return _markdown(("field", "value", "default", "meaning"), rows)


def _default(value: object, *, required: bool) -> str:
    if required or value is PydanticUndefined:
        return "required"
    if value is None or hasattr(value, "model_fields_set") or value == "":
        return "–"
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def encodings_table() -> str:
    """Every stored form of a weight."""
    rows = [
        (f"`{e.name}`", str(e.bits), str(e.group or "–"), f"{_stored_bits(e.bits, e.group):g}", e.onnx, e.gguf or "–")
        for e in ENCODINGS.values()
    ]
    return _markdown(("encoding", "bits", "group", "bits per weight in ONNX", "ONNX node", "GGUF type"), rows)


def _stored_bits(bits: int, group: int) -> float:
    return bits + (32 / group if group else 0)


def catalogue_table() -> str:
    """Every recipe of the catalogue, with the sizes it comes to."""
    rows = []
    for plan in (read_plan(catalog.find(name)) for name in catalog.names()):
        sizes = f"{plan.bits_per_weight:.2f}", format_size(plan.size_bytes), format_size(plan.memory.total)
        rows.append((f"`{plan.recipe.name}`", plan.recipe.source.repo, format_count(plan.parameters), *sizes))
    return _markdown(("recipe", "source", "parameters", "bits per weight", "size", "RAM at its context"), rows)


def exit_codes_table() -> str:
    """Every exit code of the commands."""
    kinds = sorted(errors.EdgeshipError.__subclasses__(), key=lambda kind: kind.exit_code)
    rows = [("0", "Done"), ("1", "A defect of edgeship itself")]
    rows += [(str(kind.exit_code), (kind.__doc__ or "").rstrip(".")) for kind in kinds]
    return _markdown(("exit code", "meaning"), [*rows, ("130", "Interrupted")])


TABLES: dict[str, Callable[[], str]] = {
    "recipe fields": fields_table,
    "encodings": encodings_table,
    "catalogue": catalogue_table,
    "exit codes": exit_codes_table,
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
