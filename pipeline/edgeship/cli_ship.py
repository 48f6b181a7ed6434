"""The commands that make bundles and the wheel of llama.cpp for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeship.errors import UsageError

if TYPE_CHECKING:
    from edgeship.device import Device
    from edgeship.ship.archive import Kind
    from edgeship.ship.making import Bundle

Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object; errors too.")]
DeviceName = Annotated[
    str, typer.Option("--device", metavar="D", help="A device of the catalogue, or the path of a YAML file.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: edgeship bundle artifacts/tiny-int4 --device raspberry-pi-5-8gb")(bundle)
    app.command("wheel-llamacpp", epilog="Example: edgeship wheel-llamacpp --device raspberry-pi-4-8gb")(wheel_llamacpp)
    app.command("runner-android", epilog="Example: edgeship runner-android --jobs 2")(runner_android)


def bundle(
    device: DeviceName,
    artifact: Annotated[Path | None, typer.Argument(metavar="[ARTIFACT]", help="The artifact's directory.")] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="E", help="ort or llamacpp; else the first of the device's that fits.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where bundles go.")] = Path("dist/bundles"),
    wheels: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keeps wheels: those in it are used, those fetched are added."),
    ] = None,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Leave the artifact out: runtime and engine only.")
    ] = False,
    archive: Annotated[str, typer.Option(metavar="KIND", help="gz, zst or none.")] = "gz",
    app: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For a browser: an app that was built; else npm builds it, once."),
    ] = None,
    split: Annotated[
        bool,
        typer.Option("--split", help="For a browser: parts of 8 MiB as files, for hosts that limit sizes."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a folder and an archive that install an artifact on a device without a network.

    Same inputs, same bytes. On the device: sh install.sh. For the device phone-web it is a static site instead, which
    `edgeship serve-web` or any https host serves, and which runs offline once it is installed. For Android it holds
    the native runner (`edgeship runner-android`), and installs in Termux or over adb.
    """
    from edgeship import catalog
    from edgeship.progress import progress_for
    from edgeship.ship.archive import KINDS
    from edgeship.ship.bundle import make_bundle
    from edgeship.ship.web_bundle import BROWSER

    if artifact is None and not no_model:
        raise UsageError("expected an artifact, found none.", hint="give its directory, or --no-model")
    kinds: dict[str, Kind | None] = {"none": None, **{kind: kind for kind in KINDS}}
    if archive not in kinds:
        raise UsageError(f"--archive: expected gz, zst or none, found {archive[:40]!r}.", hint="gz opens everywhere")
    profile = catalog.find_device(device)
    if profile.os == BROWSER:
        if artifact is None or no_model or wheels is not None:
            hint = "give the artifact's directory, without --no-model and --wheels"
            raise UsageError(f"{profile.name}: a site holds an artifact, and no wheels.", hint=hint)
        _bundle_web(artifact, profile, engine, out, app, kinds[archive], split=split, as_json=as_json)
        return
    if app is not None or split:
        option = "--app" if app is not None else "--split"
        raise UsageError(
            f"{option} is for bundles for a browser, and {profile.name} is none.", hint="--device phone-web"
        )
    made = make_bundle(
        artifact,
        profile,
        engine,
        out,
        wheels=wheels,
        with_model=not no_model,
        kind=kinds[archive],
        progress=progress_for(quiet=as_json),
    )
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
    else:
        _show(made)


def _bundle_web(
    artifact: Path,
    device: Device,
    engine: str | None,
    out: Path,
    app: Path | None,
    kind: Kind | None,
    *,
    split: bool,
    as_json: bool,
) -> None:
    from edgeship.progress import progress_for
    from edgeship.ship.web_bundle import make_web_bundle

    progress = progress_for(quiet=as_json)
    made = make_web_bundle(artifact, device, engine, out, app=app, split=split, kind=kind, progress=progress)
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
    else:
        _show_web(made)


def _show_web(made: Bundle) -> None:
    from edgeship import show
    from edgeship.sizes import format_size

    sizes = [(name, format_size(size)) for name, size in made.sizes.items()]
    rows = [("site", str(made.path)), ("for", f"{made.device}, {made.engine}")]
    if made.archive:
        rows.append(("archive", f"{made.archive}, {format_size(made.archive.stat().st_size)}"))
    rows += [("npm audit", made.audit), ("try it", f"edgeship serve-web {made.path} --https")]
    show.show([show.Table("", ("part", ">size"), [*sizes, ("all", format_size(made.size))]), show.Table("", (), rows)])


def _show(made: Bundle) -> None:
    from edgeship import show
    from edgeship.sizes import format_size

    sizes = [(name, format_size(size)) for name, size in sorted(made.sizes.items(), key=lambda item: -item[1])]
    rows = [("bundle", str(made.path)), ("for", f"{made.device}, {made.engine}")]
    if made.archive:
        rows.append(("archive", f"{made.archive}, {format_size(made.archive.stat().st_size)}"))
    rows.append(("install it", f"copy it to the device, there: sh {made.path.name}/install.sh"))
    show.show([show.Table("", ("file", ">size"), [*sizes, ("all", format_size(made.size))]), show.Table("", (), rows)])


def wheel_llamacpp(
    device: DeviceName,
    cpu: Annotated[
        str, typer.Option(metavar="CPU", help="all: every processor of the architecture; device: that one alone.")
    ] = "all",
    jobs: Annotated[int | None, typer.Option(min=1, max=1024, help="Compilers at a time; else one per core.")] = None,
    as_json: Json = False,
) -> None:
    """Build llama-cpp-python's wheel for a device, once: some ten CPU minutes.

    The registry has none for Linux. `bundle` finds it by itself.
    """
    from edgeship import catalog, show
    from edgeship.progress import progress_for
    from edgeship.ship.llamacpp_wheel import make_wheel
    from edgeship.sizes import format_size

    made = make_wheel(catalog.find_device(device), cpu=cpu, jobs=jobs, progress=progress_for(quiet=as_json))
    wheel = made.wheel
    if as_json:
        body = {"wheel": str(wheel.path), "size_bytes": wheel.size, "arch": made.build.arch, "cpu": made.build.cpu}
        print(json.dumps(body | {"sha256": wheel.sha256, "seconds": round(made.seconds, 1)}, indent=2))
        return
    rows = [
        ("wheel", str(wheel.path)),
        ("size", format_size(wheel.size)),
        ("for", f"{made.build.arch}, {made.build.cpu}"),
        ("took", f"{made.seconds:.1f} s" if made.seconds else "was built already"),
    ]
    show.show([show.Table("", (), rows)])


def runner_android(
    jobs: Annotated[int | None, typer.Option(min=1, max=1024, help="Compilers at a time; else one per core.")] = None,
    as_json: Json = False,
) -> None:
    """Build the native runner of GGUF artifacts for phones, once: some ten CPU minutes.

    Static programs for 64-bit ARM that verify, measure and generate without Python or a C library. The compiler (zig)
    and llama.cpp's source come from the registry, by their hashes. `bundle` and `validate` find the runner by
    themselves.
    """
    from edgeship import show
    from edgeship.progress import progress_for
    from edgeship.ship.android_runner import make_runner
    from edgeship.sizes import format_size

    made = make_runner(jobs=jobs, progress=progress_for(quiet=as_json))
    sizes = {name: path.stat().st_size for name, path in made.files.items()}
    if as_json:
        print(json.dumps({"runner": str(made.folder), "sizes": sizes, "seconds": round(made.seconds, 1)}, indent=2))
        return
    took = f"{made.seconds:.1f} s" if made.seconds else "was built already"
    rows = [("runner", str(made.folder)), *((name, format_size(size)) for name, size in sizes.items()), ("took", took)]
    show.show([show.Table("", (), rows)])
