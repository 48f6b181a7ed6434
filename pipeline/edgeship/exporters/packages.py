"""The packages of an exporter: those of edgeship's extra of its name, of versions that run together."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement

from edgeship.errors import DependencyError


@cache
def packages(name: str) -> tuple[str, ...]:
    """What pip is asked for, a line per package. Raises DependencyError where this edgeship was installed without."""
    found = []
    for wanted in map(Requirement, metadata.requires("edgeship") or ()):
        if wanted.marker and wanted.marker.evaluate({"extra": name}) and not wanted.marker.evaluate({"extra": ""}):
            wanted.marker = None
            found.append(str(wanted))
    if not found:
        raise DependencyError(
            f"exporter: {name}: expected an extra of this name in edgeship's own metadata, found none.",
            hint="edgeship was installed before it knew this exporter: install it again",
        )
    return tuple(sorted(found))


def digest(name: str) -> str:
    """Identifies the packages of an exporter."""
    return hashlib.sha256("\n".join(packages(name)).encode()).hexdigest()


def installed_here(name: str) -> bool:
    """Whether this interpreter has all of them: `pip install 'edgeship[NAME]'`."""
    try:
        return all(metadata.version(each.name) in each.specifier for each in map(Requirement, packages(name)))
    except metadata.PackageNotFoundError:
        return False
