"""The command `edgeship evaluate`: options in, one function call, a table out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeship.evaluate.evaluate import Evaluation
    from edgeship.show import Table


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: edgeship evaluate artifacts/my-int4 artifacts/my-int8 --reference ~/models/my-model")(
        evaluate
    )


def evaluate(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifacts, or GGUF files; both formats of each.")
    ],
    reference: Annotated[
        Path, typer.Option("--reference", metavar="CHECKPOINT", help="The checkpoint's directory: the float model.")
    ],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter", metavar="DIR", help="A LoRA adapter that was merged into the artifacts; repeatable, in order."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text, in which <|im_start|> and the like are the special tokens; else one that Python brings.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", min=8, help="Tokens of the text.")] = 4096,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", metavar="N", min=8, help="Tokens read at a time, else 512; the second half is judged."
        ),
    ] = None,
    greedy: Annotated[
        int, typer.Option("--greedy", metavar="N", min=0, help="Tokens of greedy text, for its repetition.")
    ] = 48,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of the engine.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a PNG: size against mean KL divergence.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object; errors too.")] = False,
) -> None:
    """Measure what artifacts lost against the float model they were made from.

    The artifact's logits come from the engine that runs it on a device, the float model's from the checkpoint.
    """
    from edgeship import show
    from edgeship.evaluate import plot as plots
    from edgeship.evaluate.evaluate import evaluate as measure
    from edgeship.progress import progress_for

    if plot is not None:
        plots.require(plot)
    found = measure(
        artifacts,
        reference,
        text=text,
        tokens=tokens,
        window=window,
        greedy=greedy,
        threads=threads,
        progress=progress_for(quiet=as_json),
        adapters=adapter or (),
    )
    if plot is not None:
        names = _names(found)
        points = [
            plots.Point(name, each.size_mb, each.fidelity.kl_mean)
            for name, each in zip(names, found.artifacts, strict=True)
        ]
        plots.write_plot(points, plot)
    if as_json:
        print(json.dumps(found.to_json() | ({"plot": str(plot)} if plot else {}), indent=2))
        return
    show.show(_blocks(found, plot))


def _names(found: Evaluation) -> list[str]:
    """A short name for each artifact; its whole path where two would have the same."""
    engines = [each.engine.partition(" ")[0] for each in found.artifacts]
    several = len(set(engines)) > 1 or len(engines) == 1
    short = [
        f"{each.name} {engine}" if several else each.name for each, engine in zip(found.artifacts, engines, strict=True)
    ]
    return [each.artifact if short.count(name) > 1 else name for name, each in zip(short, found.artifacts, strict=True)]


def _blocks(found: Evaluation, plot: Path | None) -> list[Table | str]:
    from edgeship.show import Table

    headers = (
        "artifact", ">MB", ">bits", ">perplexity", ">KL mean", ">KL 95 %", ">KL 99.9 %", ">top 1", ">top 5", ">repeats",
    )  # fmt: skip
    rows = []
    for name, each in zip(_names(found), found.artifacts, strict=True):
        f = each.fidelity
        kl = f"{f.kl_mean:.5f} ±{f.kl_error:.5f}"
        spread = (f"{f.kl_95:.4f}", f"{f.kl_999:.4f}", f"{100 * f.top1:.1f} %", f"{100 * f.top5:.1f} %")
        size = (f"{each.size_mb:.2f}", f"{each.bits_per_weight:.2f}")
        rows.append((name, *size, f"{f.perplexity:.3f}", kl, *spread, _share(each.repetition)))
    first = found.artifacts[0].fidelity
    said = (
        f"float model: perplexity {first.reference_perplexity:.3f}, repeats {_share(found.reference_repetition)}; "
        f"{first.positions} positions of {found.text}, windows of {found.window}"
    )
    return [Table("", headers, rows), said, *([f"plot: {plot}"] if plot else [])]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
