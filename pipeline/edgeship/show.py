"""What the commands print: rich tables on a terminal, plain aligned text on a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    recipe, memory = plan.recipe, plan.memory
    head = [
        ("recipe", recipe.name + (f": {recipe.description}" if recipe.description else "")),
        ("source", source_text(plan)),
        ("architecture", _architecture(plan)),
        ("parameters", format_count(plan.parameters)),
        ("formats", ", ".join(recipe.formats)),
        ("on disk", f"about {format_size(plan.size_bytes)}, {plan.bits_per_weight:.2f} bits per weight"),
    ]
    ram = [
        ("scales and vectors", format_size(memory.weights), ""),
        ("weights, repacked", format_size(memory.repacked), ""),
        ("KV cache", format_size(memory.kv_total), f"{format_size(memory.kv_per_token)} per token"),
        ("runtime, tokenizer", format_size(memory.runtime), "estimate"),
        ("all", format_size(memory.total), ""),
    ]
    remarks = [f"conflict: {c}" for c in plan.conflicts] + [f"note: {n}" for n in plan.notes]
    return [
        Table("", (), head),
        Table("", ("part", "encoding", ">tensors", ">weights", ">size", ">bits/weight"), _parts(plan)),
        Table("", (f"RAM at context {recipe.context}", ">size", ""), ram),
        *(["\n".join(remarks)] if remarks else []),
    ]


def _parts(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (p.part, p.encoding, str(p.tensors), format_count(p.weights), format_size(p.nbytes), f"{p.bits_per_weight:.2f}")
        for p in plan.parts
    ]
    rows.append(("rotary tables", "float32", "2", "", format_size(plan.rope_bytes), ""))
    tensors = sum(p.tensors for p in plan.parts) + 2
    total = format_count(plan.parameters), format_size(plan.size_bytes), f"{plan.bits_per_weight:.2f}"
    rows.append(("all", "", str(tensors), *total))
    return rows


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
    """The catalogue, a row per recipe."""
    rows = [
        (
            p.recipe.name,
            p.recipe.source.repo,
            p.decoder.model_type,
            format_count(p.parameters),
            f"{p.bits_per_weight:.2f}",
            format_size(p.size_bytes),
            format_size(p.memory.total),
        )
        for p in plans
    ]
    headers = ("name", "source", "architecture", ">parameters", ">bits/weight", ">size", ">RAM")
    return Table("", headers, rows)


def recipe_json(plan: Plan) -> dict[str, object]:
    """What `recipes --json` says of one recipe."""
    return {
        "name": plan.recipe.name,
        "description": plan.recipe.description,
        "source": plan.recipe.source.model_dump(mode="json", exclude={"path"}),
        "architecture": plan.decoder.model_type,
        "parameters": plan.parameters,
        "bits_per_weight": plan.bits_per_weight,
        "size_bytes": plan.size_bytes,
        "ram_bytes": plan.memory.total,
    }
