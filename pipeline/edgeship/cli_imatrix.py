"""The command `edgeship imatrix`: options in, one function call, what was written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: edgeship imatrix my-recipe.yaml --out my-model.imatrix.gguf")(imatrix)


def imatrix(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe with calibration text: a name, or a file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write (GGUF).")],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="A checkpoint here, in place of the recipe's source."),
    ] = None,
    max_ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory it stays under; else what its calibration needs.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object; errors too.")] = False,
) -> None:
    """Measure which inputs of a model matter, and write it for llama-quantize.

    The file is an importance matrix as llama-imatrix writes it. A recipe takes it as `imatrix`; one that has
    calibration text needs no file, and measures the same for itself.
    """
    from edgeship import catalog, show
    from edgeship.calibrate.imatrix import make_imatrix
    from edgeship.progress import progress_for
    from edgeship.sizes import format_size, parse_size

    made = make_imatrix(
        catalog.find(name),
        checkpoint=checkpoint,
        out=out,
        max_ram=None if max_ram is None else parse_size(max_ram, "--max-ram"),
        force=force,
        progress=progress_for(quiet=as_json),
    )
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
        return
    rows = [
        ("written", f"{made.file}, {made.matrices} matrices, {made.tokens} tokens of text"),
        ("took", f"{made.seconds:.1f} s, {format_size(made.peak_rss_mb * 1e6)} of memory at most"),
    ]
    show.show([show.Table("", (), rows)])
