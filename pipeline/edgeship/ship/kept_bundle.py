"""A bundle that was made for a validation before, where it would be made of the same again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import edgeship_runtime
from edgeship import __version__
from edgeship.device import Device
from edgeship.errors import EdgeshipError
from edgeship.ship.contents import Contents, read_contents, read_plain
from edgeship.ship.llamacpp_wheel import find_wheel


class KeptBundle:
    """What the bundle of an artifact for a device is made of; the registry's newest wheels are left out on purpose.

    A second validation is of what the first one was of, though a package was published in between.
    """

    def __init__(self, artifact: Path, device: Device, engine: str | None, bundles: Path, wheels: Path | None) -> None:
        self._device, self._bundles, self._wheels = device, bundles, wheels
        self._plain: Contents | None = None
        with suppress(EdgeshipError):  # making the bundle says it as well, and better
            self._plain = read_plain(artifact, device, engine)

    def find(self) -> Contents | None:
        """The bundle, every file checked; None where there is none, or one that was made of anything else."""
        if self._plain is None:
            return None
        with suppress(EdgeshipError, OSError, UnicodeDecodeError):
            if self._note(self._plain).read_text(encoding="ascii") == _digest(self._plain, self._device, self._wheels):
                return read_contents(self._bundles / _title(self._plain))
        return None

    def remember(self) -> None:
        """Note what the bundle that was just made is made of."""
        if self._plain is None:
            return
        with suppress(EdgeshipError, OSError):  # then it is made again the next time
            made_of = _digest(self._plain, self._device, self._wheels)
            self._note(self._plain).write_text(made_of, encoding="ascii")

    def _note(self, plain: Contents) -> Path:
        return self._bundles / f".{_title(plain)}.made-of"


def _title(plain: Contents) -> str:
    return f"{plain.name}-{plain.device}-{plain.engine}"


def _digest(plain: Contents, device: Device, wheels: Path | None) -> str:
    """Artifact, profile, wheels that were given, and this program with the runtime that it packs."""
    here, runtime = Path(__file__).parent, Path(edgeship_runtime.__file__).parent
    llama = find_wheel(device) if plain.engine == "llamacpp" else None
    given = [*sorted(wheels.glob("*.whl") if wheels else ()), *([llama] if llama else ())]
    made_of = {
        "artifact": plain.artifact_digest,
        "engine": plain.engine,
        "device": device.model_dump(mode="json"),
        "wheels": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in given],
        "edgeship": __version__,
        "program": [*_sums(here), *_sums(runtime)],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _sums(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            yield f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
