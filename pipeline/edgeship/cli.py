"""The command line: parses, and calls one function per command. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeship import __version__, cli_evaluate, cli_exporters, cli_imatrix, cli_ship, cli_validate, cli_web, signals
from edgeship.errors import ArtifactError, EdgeshipError, PlanError, UsageError

DEFECT, INTERRUPTED = 1, 130  # exit codes beside those of errors.py

app = typer.Typer(
    name="edgeship",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A recipe of the catalogue, or the path of a YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object; errors too.")]
Algorithm = Annotated[
    str | None,
    typer.Option(
        "--algorithm",
        metavar="NAME",
        help="rtn, rtn-search or gptq in place of the recipe's: rtn takes seconds where gptq takes minutes.",
    ),
]
Reports = Annotated[
    Path, typer.Option("--reports", metavar="DIR", help="Reports of `validate`: what they measured replaces estimates.")
]
CheckpointDir = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="DIR", help="A checkpoint on this machine, in place of the recipe's source."),
]


def _version(asked: bool) -> None:
    if asked:
        print(f"edgeship {__version__}")
        raise typer.Exit


@app.callback(epilog="Start with: edgeship export tiny-int4 (offline, a few seconds)")
def edgeship(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One recipe in, one artifact out: language models as ONNX and GGUF for small machines."""


@app.command(epilog="Example: edgeship recipes --device raspberry-pi-5-8gb")
def recipes(
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Rank them by how they do on this device.")
    ] = None,
    reports: Reports = Path("reports"),
    as_json: Json = False,
) -> None:
    """List the recipes of the catalogue, with the sizes they come to."""
    from edgeship import catalog, show
    from edgeship.plan import read_plan

    if device is not None:
        from edgeship import cli_devices

        ranked = cli_devices.ranked_recipes(catalog.find_device(device), reports)
        if as_json:
            _print_json(cli_devices.recipes_json(ranked))
        else:
            show.show(cli_devices.recipe_blocks(ranked))
        return
    plans = [read_plan(catalog.find(name)) for name in catalog.names()]
    if as_json:
        _print_json({"recipes": [show.recipe_json(p) for p in plans]})
    else:
        show.show([show.recipe_table(plans)])


@app.command(epilog="Example: edgeship devices --recipe qwen2.5-1.5b-int4")
def devices(
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help="Rank them by how this recipe does on them.")
    ] = None,
    reports: Reports = Path("reports"),
    as_json: Json = False,
) -> None:
    """List the devices of the catalogue, and this machine as `local`."""
    from edgeship import catalog, cli_devices, show
    from edgeship.plan import read_plan

    made = read_plan(catalog.find(recipe)) if recipe is not None else None
    listed = cli_devices.all_devices()
    ranked = cli_devices.ranked_devices(made, listed, reports) if made is not None else None
    if as_json:
        _print_json(cli_devices.devices_json(listed, ranked))
    else:
        show.show(cli_devices.device_blocks(listed, ranked))


@app.command(epilog="Example: edgeship plan qwen2.5-1.5b-int4 --device raspberry-pi-5-8gb")
def plan(
    name: Name,
    checkpoint: CheckpointDir = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="DEVICE", help="A device's name, `local`, or a profile's path; repeatable."),
    ] = None,
    algorithm: Algorithm = None,
    reports: Reports = Path("reports"),
    as_json: Json = False,
) -> None:
    """Say what an export would do: sizes, memory, conflicts. Downloads at most config.json, writes nothing.

    With --device also whether and how fast the artifact runs there. Exits with 4 where the recipe cannot be exported,
    or where it cannot be used on a device named.
    """
    from edgeship import catalog, cli_devices, show
    from edgeship.checkpoint.adapters import open_adapters
    from edgeship.plan import read_plan
    from edgeship.recipe import with_algorithm

    found = [catalog.find_device(d) for d in dict.fromkeys(device or ())]
    recipe = with_algorithm(catalog.find(name), algorithm)
    if recipe.exporter != "native" and not found:
        cli_exporters.plan(recipe, as_json=as_json)
        return
    made = read_plan(recipe, checkpoint)
    if not made.conflicts:  # of which a missing directory is one
        open_adapters(recipe.adapters, made.decoder)
    fits = cli_devices.fits_on(made, found, reports)
    if as_json:
        _print_json(made.to_json() | ({"devices": [f.to_json() for f in fits]} if fits else {}))
    else:
        show.show([*show.plan_blocks(made), *cli_devices.fit_blocks(fits)])
    if made.conflicts or not all(f.usable for f in fits):
        raise typer.Exit(PlanError.exit_code)


@app.command(epilog="Example: edgeship export qwen2.5-1.5b-int4 --checkpoint /data/Qwen2.5-1.5B-Instruct")
def export(
    name: Name,
    checkpoint: CheckpointDir = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where artifacts go.")] = Path("artifacts"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", metavar="FORMAT", help="Only this format of the recipe's.")
    ] = None,
    algorithm: Algorithm = None,
    max_ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory the export stays under; else 600MB, or what the recipe's calibration needs."
        ),
    ] = None,
    no_fidelity: Annotated[
        bool,
        typer.Option(
            "--no-fidelity",
            help="Leave out what the float model predicts, a pass over its weights: `verify` cannot say how far the "
            "artifact is from it.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")] = False,
    lm_studio: Annotated[
        Path | None,
        typer.Option(
            "--lm-studio", metavar="DIR", help="Also place the GGUF file in LM Studio's models, ~/.lmstudio/models."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the artifact OUT/NAME/ of a recipe, a directory per format.

    An interrupted export is resumed by the same command.
    """
    from edgeship import catalog, show
    from edgeship.progress import progress_for
    from edgeship.recipe import chosen_formats, with_algorithm
    from edgeship.sizes import format_size, parse_size

    memory = None if max_ram is None else parse_size(max_ram, "--max-ram")
    recipe = with_algorithm(catalog.find(name), algorithm)
    chosen = chosen_formats(recipe, formats or ())
    if lm_studio and "gguf" not in chosen:
        hint = "leave --lm-studio out, or choose a recipe with formats: [gguf]"
        raise UsageError(f"--lm-studio: expected a GGUF file to place, found formats {', '.join(chosen)}.", hint=hint)
    if recipe.exporter != "native" and (memory is not None or no_fidelity):
        option = "--no-fidelity" if memory is None else "--max-ram"
        text = f"{option}: expected a recipe of edgeship's own exporter, found exporter: {recipe.exporter}."
        raise UsageError(text + " It would have no effect.", hint="leave it out")
    from edgeship import build  # after what is cheap to refuse: it brings onnx

    telling = progress_for(quiet=as_json)
    if recipe.exporter == "native":
        report = build.export(
            recipe,
            checkpoint=checkpoint,
            out=out,
            formats=chosen,
            max_ram=memory,
            force=force,
            fidelity=not no_fidelity,
            progress=telling,
        )
    else:
        from edgeship import exporters

        report = exporters.export(recipe, checkpoint=checkpoint, out=out, force=force, progress=telling)
    placed = None
    if lm_studio:
        from edgeship.formats.gguf import lmstudio

        file = next((report.artifact / "gguf").glob("*.gguf"))
        placed = lmstudio.place(file, lm_studio, recipe.source.repo)
    if as_json:
        _print_json(report.to_json() | ({"lm_studio": str(placed)} if placed else {}))
        return
    rows = [
        ("artifact", str(report.artifact)),
        ("size", f"{format_size(report.size_mb * 1e6)}, {report.bits_per_weight:.2f} bits per weight"),
        ("took", f"{report.seconds:.1f} s, {format_size(report.peak_rss_mb * 1e6)} of memory at most"),
        ("source revision", report.source_revision),
        ("run it", cli_exporters.example(recipe, report.artifact)),
    ]
    if placed:
        rows.append(("LM Studio", str(placed)))
    show.show([show.Table("", (), rows)])


@app.command(epilog="Example: edgeship diff artifacts/tiny-int4")
def diff(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact with onnx/ and gguf/ in it.")],
    as_json: Json = False,
) -> None:
    """Compare the weights of an artifact's two formats, number by number. Exits with 8 where they differ."""
    from edgeship import show
    from edgeship.diff import diff as compare
    from edgeship.progress import progress_for

    found = compare(artifact, progress_for(quiet=as_json))
    if as_json:
        _print_json(found.to_json())
    else:
        rows = [(t.name, str(t.values), str(t.different), f"{t.largest:.3g}") for t in found.different]
        table = show.Table("", ("tensor", ">values", ">different", ">largest difference"), rows)
        counts = f"{found.tensors} tensors and {found.values:,} values compared, {len(rows)} tensors differ"
        show.show([*([table] if rows else []), counts])
    if found.different:
        raise typer.Exit(ArtifactError.exit_code)


@app.command(epilog="Example: edgeship schema --out recipe.schema.json")
def schema(
    devices: Annotated[bool, typer.Option("--devices", help="Of device profiles, in place of recipes.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write to a file.")] = None,
    as_json: Json = False,
) -> None:
    """Print the JSON Schema of recipes, or of device profiles, for editors.

    In a recipe: # yaml-language-server: $schema=recipe.schema.json
    """
    from edgeship.schema import device_schema, recipe_schema

    made = device_schema() if devices else recipe_schema()
    if out is None:
        _print_json(made)
        return
    try:
        out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    except OSError as e:
        hint = "give --out a file in a directory that you may write to"
        raise ArtifactError(f"{out}: cannot be written: {e.strerror}.", hint=hint) from e
    if as_json:
        _print_json({"schema": str(out)})
    else:
        print(f"wrote {out}")


cli_evaluate.register(app)
cli_exporters.register(app)
cli_imatrix.register(app)
cli_ship.register(app)
cli_validate.register(app)
cli_web.register(app)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; every failure is reported here, and nowhere else."""
    as_json = "--json" in arguments
    try:
        code = int(app(args=list(arguments) or ["--help"], prog_name="edgeship", standalone_mode=False) or 0)
        sys.stdout.flush()
    except EdgeshipError as e:
        return _report(e, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if hasattr(e, "format_message"):  # the parser's own errors; typer does not export their base class
            return _report(_usage(e), as_json)
        if os.environ.get("EDGESHIP_DEBUG"):
            traceback.print_exc()
        hint = "run it again with EDGESHIP_DEBUG=1 and report the traceback"
        return _report(EdgeshipError(f"this is a defect of edgeship: {type(e).__name__}: {e}", hint=hint), as_json)
    if code == INTERRUPTED:  # typer turns the exception into this code, or passes it on
        print("interrupted", file=sys.stderr)
        return signals.exit_code(INTERRUPTED)
    return code


def _usage(e: Any) -> UsageError:
    context = getattr(e, "ctx", None)
    command = context.command_path if context is not None else "edgeship"
    return UsageError(str(e.format_message()), hint=f"{command} --help")


def _report(error: EdgeshipError, as_json: bool) -> int:
    if as_json:
        body = {"kind": error.kind, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        _print_json({"error": body})
    else:
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def main() -> None:
    """The entry point `edgeship`."""
    # The stream and the reference pass bring their own threads; those that numpy's OpenBLAS starts spin before they
    # sleep, 0.3 CPU seconds at each start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What numpy says of numbers that grow too large is found, and said by name, where it matters.
    warnings.simplefilter("ignore", RuntimeWarning)
    signals.raise_on_signals()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
