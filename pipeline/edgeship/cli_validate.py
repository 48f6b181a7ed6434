"""The commands `edgeship validate` and `edgeship report`: options in, one function call, tables out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeship.errors import ArtifactError, UsageError, VerdictError

if TYPE_CHECKING:
    from edgeship.ship.contents import Contents
    from edgeship.ship.course import Options
    from edgeship.ship.report import History
    from edgeship.ship.transports import Transport
    from edgeship.ship.validate import Outcome

_JSON = typer.Option("--json", help="Answer with one JSON object; errors too.")
_MARKS = {True: "pass", False: "FAIL", None: "–"}
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 86400.0  # seconds


def register(app: typer.Typer) -> None:
    """Add both commands to the command line."""
    app.command(epilog="Example: edgeship validate artifacts/tiny-int4 --device raspberry-pi-5-8gb --host pi@10.0.0.7")(
        validate
    )
    app.command(epilog="Example: edgeship report reports --json")(report)


def validate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT|BUNDLE", help="An artifact, or a bundle's folder.")],
    device: Annotated[str, typer.Option("--device", metavar="D", help="The profile of the board.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="H",
            help="[USER@]HOST[:PORT] over ssh, adb[:SERIAL], or local (what it is for --device local); "
            "several are done at once.",
        ),
    ] = None,
    transport: Annotated[
        str | None, typer.Option("--transport", metavar="T", help="ssh, adb or local; else what --host says.")
    ] = None,
    installed: Annotated[
        bool,
        typer.Option("--installed", help="Android: run the edgeship-runtime that Termux has, not the native runner."),
    ] = False,
    engine: Annotated[str | None, typer.Option("--engine", metavar="E", help="ort or llamacpp.")] = None,
    bundles: Annotated[Path, typer.Option("--bundles", metavar="DIR", help="Where bundles go.")] = Path("dist/bundles"),
    wheels: Annotated[Path | None, typer.Option("--wheels", metavar="DIR", help="Wheels kept between bundles.")] = None,
    reports: Annotated[Path, typer.Option("--reports", metavar="DIR", help="Where reports go.")] = Path("reports"),
    ssh_option: Annotated[
        list[str] | None,
        typer.Option("--ssh-option", metavar="KEY=VALUE", help="An option of OpenSSH, such as ProxyJump=gate."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, max=1000, help="Runs of the benchmark.")] = 3,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens to prefill.")] = 512,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", min=2, help="Tokens to decode.")] = 64,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Engine threads.")] = None,
    soak: Annotated[str, typer.Option("--soak", metavar="TIME", help="Run the benchmark so long, such as 10m.")] = "0",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Longest run of one command there.")
    ] = "30m",
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Install and verify again, though neither files nor board changed since."),
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove older versions from the board at the end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run and sent; connect nowhere.")
    ] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Install an artifact on a board that may have no internet, verify and measure it there: one verdict.

    Only what changed is sent, and what was cut off goes on when the same command is run again. The board needs a
    POSIX shell and Python. Exits with 14 where the verdict is fail.

    A second validation of an unchanged artifact hashes its files again and measures again; the answer of verify
    stands, and the report says so, until the board is restarted or --fresh asks anew.

    No bundle is made for --device local, which is validated where it lies. On Android, over adb, the bundle's native
    runner verifies and measures; it needs no Python, and renders no chat templates. adb was tested with stand-ins of
    a device, and with no phone.
    """
    from edgeship import catalog
    from edgeship.device import LOCAL
    from edgeship.ship.contents import is_bundle, read_plain
    from edgeship.ship.course import Options
    from edgeship.ship.installer import ANDROID
    from edgeship.ship.teller import teller_for
    from edgeship.ship.validate import validate as run

    profile = catalog.find_device(device)
    if profile.os == "browser":
        hint = "edgeship bundle ARTIFACT --device phone-web, then edgeship serve-web BUNDLE: the page sends its verdict"
        raise UsageError(f"{profile.name}: a browser is validated by the page itself", hint=hint)
    options = Options(
        device=profile,
        repeats=repeats,
        soak=seconds(soak, "--soak"),
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        threads=threads,
        timeout=max(1.0, seconds(timeout, "--timeout")),
        prune=prune,
        fresh=fresh,
    )
    hosts = _hosts(host or [], transport) or (["local"] if device == LOCAL else [])
    if not hosts:
        raise UsageError(
            "--host is missing", hint="for instance --host pi@10.0.0.7, or --device local for this machine"
        )
    phone = profile.os == ANDROID and not installed
    if installed and profile.os != ANDROID:
        raise UsageError("--installed is for Android", hint="elsewhere a bundle brings the runtime")
    plain = (installed or (device == LOCAL and hosts == ["local"])) and not is_bundle(artifact)
    done = run(
        read_plain(artifact, profile, engine)
        if plain
        else _contents(artifact, options, engine, bundles, wheels, quiet=as_json),
        hosts,
        options,
        open_transport=lambda each: _open(each, ssh_option or (), phone=phone, dry_run=dry_run, as_json=as_json),
        reports=reports,
        teller=teller_for(sys.stderr, quiet=as_json or dry_run),
        plain=plain,
    )
    if len(done) == 1 and done[0].error:
        raise done[0].error
    if as_json:
        print(json.dumps({"results": [each.to_json() for each in done]}, indent=2))
    elif not dry_run:
        _show(done)
    code = next((each.exit_code for each in done if each.error), max(each.exit_code for each in done))
    if code:
        raise typer.Exit(code)


def seconds(text: str, option: str) -> float:
    """Seconds of a text such as 90, 90s, 10m or 1h; at most a day. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smh]?)", text.strip(), re.ASCII)
    found = float(match[1]) * _UNITS[match[2]] if match else -1.0
    if not 0 <= found <= _LONGEST:
        hint = f"for instance {option} 10m"
        raise UsageError(f"{option}: expected a time of up to 24h, found {text[:40]!r}", hint=hint)
    return found


def _hosts(hosts: Sequence[str], transport: str | None) -> list[str]:
    """The hosts as `open_transport` reads them; raises UsageError."""
    from edgeship.ship.transports import TRANSPORTS, way_of

    if transport is None:
        return list(hosts)
    if transport not in TRANSPORTS:
        raise UsageError(
            f"--transport: expected one of {', '.join(TRANSPORTS)}, found {transport[:40]!r}", hint="--transport adb"
        )
    if transport == "local" and set(hosts) - {"local"}:
        raise UsageError("--transport local has no --host: it is this machine", hint="leave one of them out")
    if transport == "ssh":
        return [each if "://" in each else f"ssh://{each}" for each in hosts]
    return [each if way_of(each) == transport else f"{transport}:{each}" for each in hosts] or [transport]


def _open(host: str, options: Sequence[str], *, phone: bool, dry_run: bool, as_json: bool) -> Transport:
    from edgeship.ship.transports import open_transport
    from edgeship.ship.transports.dry_run import DryRunTransport

    # Connects when first used, and says what is wrong with the host now.
    opened = open_transport(host, options, native=phone)
    if not dry_run:
        return opened
    stream = sys.stderr if as_json else sys.stdout
    return DryRunTransport(host, lambda text: print(f"{host}: {text}", file=stream))


def _contents(
    artifact: Path, options: Options, engine: str | None, bundles: Path, wheels: Path | None, *, quiet: bool
) -> Contents:
    """What is sent: the bundle given, or one made of the artifact, now or for a validation before."""
    from edgeship.progress import progress_for
    from edgeship.ship.contents import is_bundle, read_contents

    path, device, contents = artifact, options.device, None
    if not is_bundle(artifact):
        from edgeship.ship.bundle import make_bundle  # not at the top: a bundle that is there needs none of it
        from edgeship.ship.kept_bundle import KeptBundle

        kept = KeptBundle(artifact, device, engine, bundles, wheels)
        contents = None if options.fresh else kept.find()
        if contents is None:
            progress = progress_for(quiet=quiet)
            path = make_bundle(artifact, device, engine, bundles, wheels=wheels, kind=None, progress=progress).path
            kept.remember()
    contents = contents or read_contents(path)
    for name, wanted, there in (("--device", device.name, contents.device), ("--engine", engine, contents.engine)):
        if wanted is not None and wanted != there:
            hint = f"give {name} {there}, or the artifact in place of the bundle"
            raise UsageError(f"{path}: a bundle for {there}, and {name} is {wanted}", hint=hint)
    return contents


def _show(done: Sequence[Outcome]) -> None:
    from edgeship.show import Table, show

    blocks: list[Table | str] = []
    for each in done:
        if each.report:
            r = each.report
            rows = [(_MARKS[c.passed], c.name, c.found, c.wanted) for c in r.checks]
            blocks.append(Table(f"{each.host}: {r.artifact}, {r.engine}", ("", "check", "found", "wanted"), rows))
            worse = [f"worse than before: {text}" for text in each.regressions]
            page = each.path.with_suffix(".html") if each.path else ""
            blocks.append("\n".join([*worse, *(f"note: {n}" for n in r.notes), f"verdict: {r.verdict}, {page}"]))
        elif each.error:
            blocks.append(f"{each.host}: error: {each.error}")
    show(blocks)


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where reports are.")] = Path("reports"),
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="Only of this device.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="DIR", help="Write a page for each artifact on each device.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Compare the reports of validations: the latest of each artifact, engine and device with those before it.

    Exits with 14 where something regressed.
    """
    from edgeship.ship.report import histories, read_reports
    from edgeship.yaml_model import NAME

    if device is not None and not re.fullmatch(NAME, device):
        raise UsageError(f"--device: expected a device's name, found {device[:80]!r}", hint="edgeship devices")
    found, wrong = read_reports(directory, device)
    if not found:
        hint = "edgeship validate ARTIFACT --device DEVICE --host HOST makes the first report"
        raise ArtifactError(f"{directory}: no report{' that can be read: ' + wrong[0] if wrong else ''}", hint=hint)
    made = histories([each for _, each in found])
    pages = _pages(made, html) if html else []
    if as_json:
        body: dict[str, Any] = {"histories": [h.to_json() for h in made], "unreadable": wrong}
        print(json.dumps(body | ({"pages": pages} if html else {}), indent=2))
    else:
        _show_histories(made, wrong, pages)
    if any(h.regressions() for h in made):
        raise typer.Exit(VerdictError.exit_code)


def _pages(made: Sequence[History], folder: Path) -> list[str]:
    from edgeship.ship.report_html import page

    pages = []
    for h in made:
        path = folder / f"{h.device}-{h.artifact}-{h.engine}{'-emulated' if h.emulated else ''}.html"
        draft = path.with_suffix(".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draft.write_text(page(h), encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            hint = "give --html a directory that you may write to"
            raise ArtifactError(f"{path}: cannot be written: {error.strerror}", hint=hint) from None
        pages.append(str(path))
    return pages


def _show_histories(made: Sequence[History], wrong: Sequence[str], pages: Sequence[str]) -> None:
    from edgeship.show import Table, show

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    rows = []
    for h in made:
        r = h.latest
        told = (number(r.decode), number(r.prefill), number(r.peak))
        device = f"{h.device}{' (emulated)' if h.emulated else ''}"
        rows.append((device, h.artifact, h.engine, str(len(h.reports)), r.time, r.verdict, *told))
    headers = ("device", "artifact", "engine", ">runs", "latest", "verdict", ">decode", ">prefill", ">peak MB")
    blocks: list[Table | str] = [Table("", headers, rows)]
    worse = [f"worse: {h.device}, {h.artifact}, {h.engine}: {text}" for h in made for text in h.regressions()]
    said = [*worse, *(f"not read: {text}" for text in wrong), *(f"wrote {path}" for path in pages)]
    show([*blocks, *(["\n".join(said)] if said else [])])
