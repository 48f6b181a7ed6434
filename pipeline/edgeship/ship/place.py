"""Where things of one artifact lie on a board, and how its runtime is called there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from edgeship.ship.contents import ARTIFACT, Contents
from edgeship.ship.scripts import ROOT


@dataclass(frozen=True)
class Place:
    """Paths are relative to the home directory on the board, or absolute; `python` runs the runtime."""

    bundle: str
    prefix: str
    answers: str
    artifact: str
    python: str
    runner: str = ""
    """The native program that takes the runtime's place; empty where the runtime runs."""

    def command(self, name: str, *given: str) -> list[str]:
        """A command of the runtime that answers in JSON."""
        if self.runner:
            return [self.runner, name, *given, "--json"]
        return [self.python, "-I", "-m", "edgeship_runtime", name, *given, "--json"]

    def answer(self, name: str) -> str:
        """The file that keeps what a command answered."""
        return f"{self.answers}/{name}.json"


def installed(contents: Contents) -> Place:
    """Where a bundle is pushed to and installed: a folder of its own for each version."""
    prefix = f"{ROOT}/{contents.name}/{contents.digest12}"
    return Place(
        bundle=f"{ROOT}/.bundles/{contents.name}/{contents.digest12}",
        prefix=prefix,
        answers=f"{ROOT}/.answers/{contents.name}",
        artifact=f"{prefix}/{ARTIFACT}",
        python=f"{prefix}/venv/bin/python",
    )


def native(contents: Contents) -> Place:
    """Where a bundle for a phone is pushed to, and run from there: nothing of it needs a Python."""
    path = f"{ROOT}/.bundles/{contents.name}/{contents.digest12}"
    return Place(
        bundle=path,
        prefix=path,
        answers=f"{ROOT}/.answers/{contents.name}",
        artifact=f"{path}/{ARTIFACT}",
        python="",
        runner=f"{path}/runner/edgeship-runner",
    )


def sent(contents: Contents) -> Place:
    """Where an artifact alone is pushed to, for the Python and the runtime that the board has."""
    path = f"{ROOT}/.bundles/{contents.name}/{contents.digest12}"
    return Place(bundle=path, prefix=path, answers=f"{ROOT}/.answers/{contents.name}", artifact=path, python="python3")


def where_it_lies(contents: Contents) -> Place:
    """An artifact on this machine, with the Python and the runtime that this command runs on."""
    path = str(Path(contents.path).absolute())
    return Place(
        bundle=path, prefix=path, answers=f"{ROOT}/.answers/{contents.name}", artifact=path, python=sys.executable
    )
