"""Bundles: one folder, and one archive of it, that installs an artifact on a device without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeship import __version__
from edgeship.errors import ArtifactError, DependencyError, PlanError
from edgeship.progress import Progress
from edgeship.ship import android_runner, archive, installer, llamacpp_wheel, making, wheels
from edgeship.ship.making import Bundle, Source
from edgeship.ship.wheel_files import Wheel
from edgeship.ship.wheels import LLAMA, Target
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.manifest import (
    MANIFEST_NAME,
    FileEntry,
    collect_files,
    locate,
    read_manifest,
)

SCHEMA = 1
RUNNER = "runner"
"""The folder of the native programs, in bundles for phones."""
_DIGITS = 12  # of the digest, in names
_WITHOUT_MODEL = "runtime"
_SPARE_MB = 60  # bytecode that is written at the first run, and what the file system takes for itself


def make_bundle(
    artifact: Path | None,
    device: Target,
    engine: str | None,
    out: Path,
    *,
    wheels: Path | None = None,
    with_model: bool = True,
    kind: archive.Kind | None = "gz",
    progress: Progress,
) -> Bundle:
    """Make OUT/NAME-DEVICE-ENGINE/ and an archive beside it; one of that name is replaced when all is done.

    `artifact` None, or `with_model` False: the runtime alone. `engine` None: the first of the device's that the
    artifact has a format for. `wheels` keeps wheels between bundles. `kind` None: no archive. Raises UsageError,
    ArtifactError for an artifact that is not intact, PlanError for a device that no bundle can be made for,
    DependencyError where the wheel of llama.cpp (for a phone: the runner) was not built, SourceError and ResourceError.
    """
    if kind == "zst":
        archive.zstandard()  # refused before minutes of work
    engine = _check(device, engine)
    model, engine = _model(artifact, device, engine, progress)
    phone = device.os == installer.ANDROID
    llama = _llama(device, wheels) if engine == "llamacpp" and not phone else None
    programs = _programs() if phone else {}
    name = making.safe_name(model.manifest.name) if model else _WITHOUT_MODEL
    title = f"{name}-{device.name}-{engine}"
    with making.reported(out):
        out.mkdir(parents=True, exist_ok=True)
        with making.alone(out, title), TemporaryDirectory(dir=out, prefix=f".{title}.") as scratch:
            folder = Path(scratch) / title
            (folder / "wheels").mkdir(parents=True)
            _collect(device, engine, folder / "wheels", wheels, llama, progress)
            for program, path in programs.items():
                (folder / RUNNER).mkdir(exist_ok=True)
                shutil.copy(path, folder / RUNNER / program)
            if model and with_model:
                _copy(model, folder / "artifact", progress)
            made = _describe(folder, device, engine, name, model if with_model else None)
            packed = making.pack(folder, kind, progress)
            final, packed = making.publish(folder, packed, out)
    return replace(made, path=final, archive=packed)


def _check(device: Target, engine: str | None) -> str | None:
    making.check_engine(engine)
    if device.os == installer.ANDROID:
        if engine == "ort" or device.arch != android_runner.ARCH:
            raise PlanError(
                f"{device.name}: onnxruntime has no wheels that load there, and the runner of GGUF artifacts is for "
                f"{android_runner.ARCH}; nothing was made.",
                hint="export with --format gguf, or see runtime/APPS.md for onnxruntime inside an app",
            )
        return "llamacpp"
    tags = wheels.platform_tags(device)
    if device.os not in installer.SYSTEMS or not tags:
        raise PlanError(
            f"{device.name}: bundles are for systems with a POSIX shell and published wheels; its system is "
            f"{device.os} with {'wheel tags' if tags else 'no wheel tags'}; nothing was made.",
            hint="install edgeship-runtime there with pip, and copy the artifact's directory",
        )
    return engine


def _model(artifact: Path | None, device: Target, engine: str | None, progress: Progress) -> tuple[Source | None, str]:
    """The artifact, checked byte by byte, and the engine that runs it on `device`."""
    if artifact is not None and device.os == installer.ANDROID:
        _check_task(artifact)
    order = [engine] if engine else [e for e in device.engines if e in making.ENGINES]
    return making.read_source(artifact, order, device.name, progress) if artifact is not None else (None, order[0])


def _check_task(artifact: Path) -> None:
    """Raise PlanError for a model that the runner for phones has no use for."""
    with suppress(EdgeshipRuntimeError):  # what cannot be read is refused later, for the format that is needed
        if (task := read_manifest(locate(artifact)).model.task) != GENERATE:
            text = f"{artifact}: a model for {task}; the runner for phones is for text generation; nothing was made."
            raise PlanError(text, hint="see runtime/APPS.md for onnxruntime inside an app")


def _llama(device: Target, keep: Path | None) -> Path:
    given = wheels.read_wheels(keep) if keep is not None and keep.is_dir() else []
    found = [w.path for w in given if w.name == LLAMA and w.suits(device.arch)]
    path = found[0] if found else llamacpp_wheel.find_wheel(device)
    if path is None:
        raise DependencyError(
            f"{device.name}: there is no wheel of llama.cpp for {device.arch} yet, and the registry has none.",
            hint=f"edgeship wheel-llamacpp --device {device.name} (once, some ten CPU minutes), or --engine ort",
        )
    return path


def _programs() -> Mapping[str, Path]:
    runner = android_runner.find_runner()
    if runner is None:
        hint = "edgeship runner-android (once, some ten CPU minutes)"
        raise DependencyError("the runner for phones was not built yet.", hint=hint)
    return runner.files


def _collect(
    device: Target, engine: str, into: Path, keep: Path | None, llama: Path | None, progress: Progress
) -> None:
    if device.os == installer.ANDROID:
        wheels.collect_pure(device, into, keep=keep, progress=progress)
    else:
        wheels.collect(device, engine, into, keep=keep, llama=llama, progress=progress)
    for wheel in wheels.read_wheels(into):
        if not wheel.suits(device.arch):
            text = f"{wheel.path.name}: expected a wheel for {device.arch}, found one for {wheel.platform}."
            raise PlanError(text, hint=f"check `wheel_tags` of the device {device.name}")


def _copy(model: Source, to: Path, progress: Progress) -> None:
    names = sorted([MANIFEST_NAME, *model.manifest.files])
    progress.start(sum(entry.size for entry in model.manifest.files.values()), "artifact")
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.directory / name, to / name)
        progress.advance(model.manifest.files[name].size if name in model.manifest.files else 0, name)
    progress.finish()


def _describe(folder: Path, device: Target, engine: str, name: str, model: Source | None) -> Bundle:
    """Write what a bundle says of itself: requirements.txt, install.sh, README.md and bundle.json."""
    found = wheels.read_wheels(folder / "wheels")
    (folder / "requirements.txt").write_text(wheels.requirements(found), encoding="utf-8")
    files = collect_files(folder)
    _check_copy(files, model)
    carried = {"device": device.name, "engine": engine, "files": {n: e.sha256 for n, e in files.items()}}
    digest = hashlib.sha256(json.dumps(carried, sort_keys=True).encode()).hexdigest()
    model_bytes = sum(entry.size for n, entry in files.items() if n.startswith("artifact/"))
    facts = installer.Facts(
        name=name,
        digest=digest[:_DIGITS],
        device=device.name,
        os=device.os,
        arch=device.arch,
        pythons=device.python,
        glibc=wheels.glibc(found) if device.os == "linux" else "",
        engine=engine,
        needs_mb=(wheels.installed_bytes(found) + model_bytes) // 1_000_000 + _SPARE_MB,
        pip=next(w.path.name for w in found if w.name == wheels.INSTALLER),
        artifact=model is not None,
        sums="\n".join(f"{e.sha256}  {n}" for n, e in files.items() if n.startswith((f"{RUNNER}/", "wheels/"))),
    )
    (folder / "install.sh").write_text(installer.install_script(facts), encoding="utf-8")
    (folder / "install.sh").chmod(0o755)
    (folder / "README.md").write_text(installer.readme(facts), encoding="utf-8")
    files = dict(sorted((files | collect_files(folder, skip=files)).items()))
    body = _body(facts, digest, files, found, model)
    (folder / "bundle.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return Bundle(folder, None, name, device.name, engine, digest, files, _sizes(found, files))


def _sizes(found: Sequence[Wheel], files: Mapping[str, FileEntry]) -> dict[str, int]:
    """Bytes by wheel file and by program, and of the artifact."""
    sizes = {w.path.name: w.size for w in found}
    sizes |= {name: e.size for name, e in files.items() if name.startswith(f"{RUNNER}/")}
    model = sum(entry.size for name, entry in files.items() if name.startswith("artifact/"))
    return sizes | ({"artifact": model} if model else {})


def _check_copy(files: Mapping[str, FileEntry], model: Source | None) -> None:
    for name, entry in model.manifest.files.items() if model else ():
        if files[f"artifact/{name}"] != entry:
            hint = "it was changed meanwhile; run it again"
            raise ArtifactError(
                f"{name}: the copy is not what the artifact's manifest says; nothing was made.", hint=hint
            )


def _body(
    facts: installer.Facts, digest: str, files: Mapping[str, FileEntry], found: Sequence[Wheel], model: Source | None
) -> dict[str, Any]:
    artifact = None
    if model:
        sealed = files[f"artifact/{MANIFEST_NAME}"].sha256  # names every other file with its hash
        artifact = {"name": model.manifest.name, "format": model.manifest.format, "digest": sealed}
    return {
        "schema": SCHEMA,
        "edgeship": __version__,
        "name": facts.name,
        "device": facts.device,
        "engine": facts.engine,
        "digest": digest,
        "artifact": artifact,
        "target": {"os": facts.os, "arch": facts.arch, "python": list(facts.pythons), "glibc": facts.glibc},
        "needs_mb": facts.needs_mb,
        "wheels": [{"file": w.path.name, "name": w.name, "version": w.version, "size": w.size} for w in found],
        "files": {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in files.items()},
    }
