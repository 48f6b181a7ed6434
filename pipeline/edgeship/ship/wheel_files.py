"""Wheel files: what a name says, what lies inside, and writing one so that the same files give the same bytes."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeship.errors import ArtifactError
from edgeship_runtime.manifest import describe_file

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.+!]+)(-[0-9][A-Za-z0-9_.]*)?"
    r"-(?P<python>[a-z0-9_.]+)-(?P<abi>[a-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl"
)
_GLIBC = re.compile(r"manylinux_([0-9]+)_([0-9]+)_")
_OLD_GLIBC = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_MEMBER_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """One wheel: package, version, tags, size in bytes as packed and unpacked, sha256 in hex."""

    path: Path
    name: str
    version: str
    python: str
    platform: str
    size: int
    unpacked: int
    sha256: str

    @property
    def glibc(self) -> tuple[int, int] | None:
        """The oldest glibc it runs on, by its platform tags (PEP 600); None where they name none."""
        found = [tuple(map(int, m.groups())) for tag in self.platform.split(".") if (m := _GLIBC.match(tag))]
        found += [v for tag in self.platform.split(".") for old, v in _OLD_GLIBC.items() if tag.startswith(f"{old}_")]
        return min(found) if found else None  # type: ignore[return-value]

    def suits(self, arch: str) -> bool:
        """Whether it is for machines of `arch` (aarch64, x86_64) or for all."""
        names = (arch, "universal2", *(("arm64",) if arch == "aarch64" else ()))
        return self.platform == "any" or any(t.endswith(f"_{n}") for t in self.platform.split(".") for n in names)


def normal(name: str) -> str:
    """A package's name as the registry compares it: `llama_cpp_python` and `llama-cpp-python` are one (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_wheel(path: Path) -> Wheel:
    """Describe a wheel file; raises ArtifactError for one that is none."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ArtifactError(f"{path}: expected the name of a wheel, found {path.name!r}.", hint="remove the file")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        entry = describe_file(path)
    except (OSError, zipfile.BadZipFile) as error:
        hint = "remove the file, and it is fetched or built again"
        raise ArtifactError(
            f"{path}: expected a wheel, found a file that cannot be read: {error}.", hint=hint
        ) from error
    return Wheel(
        path=path,
        name=normal(match["name"]),
        version=match["version"],
        python=match["python"],
        platform=match["platform"],
        size=entry.size,
        unpacked=unpacked,
        sha256=entry.sha256,
    )


def write_wheel(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a wheel of `files` by name and add its RECORD; times and modes are fixed, names sorted. Raises OSError."""
    info = next(name.split("/")[0] for name in files if name.endswith(".dist-info/WHEEL"))
    record = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in sorted(files.items())]
    record.append(f"{info}/RECORD,,\n")
    # The metadata comes last, as PEP 427 recommends.
    order = sorted(files, key=lambda name: (name.startswith(info), name))
    members = [(name, files[name]) for name in order] + [(f"{info}/RECORD", "".join(record).encode())]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members:
            member = zipfile.ZipInfo(name, _MEMBER_TIME)
            member.external_attr = (0o100755 if ".so" in Path(name).suffixes else 0o100644) << 16
            member.create_system = 3  # Unix, whatever the machine: modes are read with it
            archive.writestr(member, data, zipfile.ZIP_DEFLATED, 9)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
