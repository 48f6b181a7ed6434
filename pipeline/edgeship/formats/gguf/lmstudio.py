"""Where LM Studio looks for a model: MODELS/PUBLISHER/MODEL-GGUF/FILE.gguf (its documentation, "Import Models")."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from edgeship.errors import ArtifactError

DEFAULT = "~/.lmstudio/models"


def place(file: Path, models: Path, repo: str) -> Path:
    """Put a GGUF file into LM Studio's folder of models and return its new path.

    `repo` names publisher and model ("Qwen/Qwen2.5-1.5B-Instruct"). The file is linked where both lie on one disk, so
    that it takes no space twice, and copied elsewhere; a file of that name is replaced. Raises ArtifactError where the
    folder cannot be written.
    """
    publisher, _, model = repo.rpartition("/")
    folder = models.expanduser() / (_safe(publisher) or "edgeship") / f"{_safe(model) or file.stem}-GGUF"
    target = folder / file.name
    beside = folder / f".{file.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        try:
            os.link(file, beside)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, beside)
        beside.replace(target)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ArtifactError(
            f"{folder}: the GGUF file cannot be placed there: {error.strerror}. The artifact itself is complete.",
            hint=f"give the folder that LM Studio shows under My Models, usually {DEFAULT}",
        ) from error
    return target


def _safe(name: str) -> str:
    """One part of a path: a repository's name may come from a stranger's recipe."""
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-")
