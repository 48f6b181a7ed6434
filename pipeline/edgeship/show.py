"""What the commands print: rich tables on a terminal, plain aligned text on a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from edgeship.plan import Plan
from edgeship.sizes import format_count, format_size


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; a header that starts with `>` is of a column of numbers."""

    title: str
    headers: Sequence[str]  # empty for a table of names and values
    rows: Sequence[Sequence[str]]


def show(blocks: Iterable[Table | str], stream: TextIO | None = None) -> None:
    """Print tables and paragraphs to a stream (default: standard output), a blank line between them."""
    stream = stream or sys.stdout
    draw = _rich if stream.isatty() else _plain
    for i, block in enumerate(blocks):
        if i:
            print(file=stream)
        draw(block, stream)


def _plain(block: Table | str, stream: TextIO) -> None:
    if isinstance(block, str):
        print(block, file=stream)
        return
    lines = [[h.lstrip(">") for h in block.headers], *block.rows] if block.headers else list(block.rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    right = [h.startswith(">") for h in block.headers] or [False] * len(widths)
    if block.title:
        print(block.title, file=stream)
    for line in lines:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        print("  ".join(cells).rstrip(), file=stream)


def _rich(block: Table | str, stream: TextIO) -> None:
    from rich import box  # not at the top: plain output does without
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    if isinstance(block, str):
        console.print(Text(block))
        return
    columns = block.headers or [""] * len(block.rows[0])
    table = RichTable(
        title=Text(block.title) if block.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD if block.headers else None,
        show_header=bool(block.headers),
        show_edge=False,
        pad_edge=False,
    )
    for i, header in enumerate(columns):
        table.add_column(
            Text(header.lstrip(">")),
            justify="right" if header.startswith(">") else "left",
            style="bold" if i == 0 else None,
            overflow="fold",
        )
    for row in block.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def plan_blocks(plan: Plan) -> list[Table | str]:
    """A plan as a page: what goes in, what each part takes, memory at run time, conflicts and notes."""
    recipe = plan.recipe
    head = [
        ("recipe", recipe.name + (f": {recipe.description}" if recipe.description else "")),
        ("source", source_text(plan)),
        ("architecture", _architecture(plan)),
        ("parameters", format_count(plan.parameters)),
        ("formats", ", ".join(plan.formats)),
    ]
    if recipe.adapters:
        head.append(("adapters", ", ".join(Path(path).name for path in recipe.adapters)))
    for form, made in plan.footprints.items():
        size = f"about {format_size(made.size_bytes)}, {made.bits_per_weight:.2f} bits per weight"
        head.append((f"{form} on disk", size))
    tables = [_parts(plan), _memory(plan)] if plan.footprints else []
    remarks = [f"conflict: {c}" for c in plan.conflicts] + [f"note: {n}" for n in plan.notes]
    return [Table("", (), head), *tables, *(["\n".join(remarks)] if remarks else [])]


def _parts(plan: Plan) -> Table:
    """A row per part and encoding, and a size with its bits per weight for each format."""
    made = plan.footprints
    columns = [c for f in made for c in (f">{f}" if len(made) > 1 else ">size", ">bits/weight")]
    rows = []
    for same in zip(*(m.parts for m in made.values()), strict=True):
        p = same[0]
        sizes = [c for part in same for c in (format_size(part.nbytes), f"{part.bits_per_weight:.2f}")]
        rows.append((p.part, p.encoding, str(p.tensors), format_count(p.weights), *sizes))
    for form, name, encoding in (("onnx", "rotary tables", "float32"), ("gguf", "vocabulary", "")):
        if form in made:
            sizes = [c for f, m in made.items() for c in (format_size(m.overhead) if f == form else "", "")]
            rows.append((name, encoding, "", "", *sizes))
    totals = [c for m in made.values() for c in (format_size(m.size_bytes), f"{m.bits_per_weight:.2f}")]
    tensors = sum(1 for _ in plan.stored())
    rows.append(("all", "", str(tensors), format_count(plan.parameters), *totals))
    return Table("", ("part", "encoding", ">tensors", ">weights", *columns), rows)


def _memory(plan: Plan) -> Table:
    """RAM at run time, a column for each format."""
    made = [m.memory for m in plan.footprints.values()]
    per_token = " and ".join(format_size(m.kv_per_token) for m in made)
    rows = [
        ("weights, mapped", *(format_size(m.weights) for m in made), "what stays in use of the file"),
        ("weights, repacked", *(format_size(m.repacked) for m in made), "the engine's own copy"),
        ("KV cache", *(format_size(m.kv_total) for m in made), f"{per_token} per token"),
        ("runtime, tokenizer", *(format_size(m.runtime) for m in made), "estimate"),
        ("all", *(format_size(m.total) for m in made), ""),
    ]
    columns = [f">{form}" for form in plan.footprints] if len(made) > 1 else [">size"]
    return Table("", (f"RAM at context {plan.recipe.context}", *columns, ""), rows)


def source_text(plan: Plan) -> str:
    """The source in words: `huggingface Qwen/Qwen3-0.6B, revision main`."""
    source = plan.recipe.source
    where = f", {source.path}" if source.path else f", revision {source.revision}"
    return f"{source.host} {source.repo}{where}"


def _architecture(plan: Plan) -> str:
    d = plan.decoder
    heads = f"{d.heads} heads" + (f" ({d.kv_heads} for K and V)" if d.kv_heads != d.heads else "")
    return (
        f"{d.model_type}: {d.layers} layers of {d.hidden_size}, feed-forward {d.feed_forward}, "
        f"{heads} of {d.head_dim}, vocabulary {d.vocab_size}{', tied' if d.tied else ''}, {d.max_positions} positions"
    )


def recipe_table(plans: Sequence[Plan]) -> Table:
    """The catalogue, a row per recipe, with size and RAM in each format."""
    rows = [
        (p.recipe.name, p.recipe.source.repo, p.decoder.model_type, format_count(p.parameters), *format_cells(p))
        for p in plans
    ]
    return Table("", ("name", "source", "architecture", ">parameters", *FORMAT_HEADERS), rows)


FORMAT_HEADERS = (">ONNX", ">RAM", ">GGUF", ">RAM")


def format_cells(plan: Plan) -> list[str]:
    """Size and RAM in ONNX and in GGUF; a dash where the recipe does not make it."""
    made = [plan.footprints.get("onnx"), plan.footprints.get("gguf")]
    return [c for m in made for c in ((format_size(m.size_bytes), format_size(m.memory.total)) if m else ("–", "–"))]


def recipe_json(plan: Plan) -> dict[str, object]:
    """What `recipes --json` says of one recipe."""
    return {
        "name": plan.recipe.name,
        "description": plan.recipe.description,
        "source": plan.recipe.source.model_dump(mode="json", exclude={"path"}),
        "architecture": plan.decoder.model_type,
        "parameters": plan.parameters,
        "formats": {
            form: {
                "bits_per_weight": made.bits_per_weight,
                "size_bytes": made.size_bytes,
                "ram_bytes": made.memory.total,
            }
            for form, made in plan.footprints.items()
        },
    }
