"""Ways to ask, as data: a system message with settings to fill in, sampling options, thinking on or off.

A preset is a TOML file: of this package, of the user's folder `~/.config/edgeship/presets`, or anywhere by its path.

    about = "Code in one language."
    system = "You write {language}."
    thinking = false            # left out: the template decides
    [settings.language]
    about = "the language"
    default = "Python"          # left out: it must be given; empty: a line of `system` that needs it is left out
    [options]                   # of GenerationOptions
    temperature = 0.7
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeship_runtime.errors import ArtifactError, UsageError
from edgeship_runtime.sampling import GenerationOptions
from edgeship_runtime.strict import nearest, read_bytes, show

_OWN = Path(__file__).with_name("preset_files")
_MAX_BYTES = 1 << 16
_PLACE = re.compile(r"\{([a-z_]+)\}")
_MEMBERS = ("about", "system", "thinking", "settings", "options")


@dataclass(frozen=True)
class Filled:
    """A preset with its settings filled in."""

    system: str
    thinking: bool | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """A preset as its file has it; `settings` are names to defaults, None where one must be given."""

    name: str
    about: str
    system: str
    thinking: bool | None
    settings: Mapping[str, str | None]
    options: dict[str, Any]

    def fill(self, given: Mapping[str, str]) -> Filled:
        """Put settings into the system message; raises UsageError for one that is unknown or lacks."""
        for name in given:
            if name not in self.settings:
                raise UsageError(
                    f"the preset {self.name} has no setting {show(name)}", hint=nearest(name, self.settings)
                )
        missing = [name for name, default in self.settings.items() if default is None and name not in given]
        if missing:
            raise UsageError(f"the preset {self.name} needs {', '.join(missing)}", hint=f"--set {missing[0]}=...")
        values = {name: given.get(name, default or "") for name, default in self.settings.items()}
        lines = [
            _PLACE.sub(lambda found: values[found[1]], line)
            for line in self.system.strip().splitlines()
            if all(values[name] for name in _PLACE.findall(line))
        ]
        return Filled("\n".join(lines), self.thinking, self.options)


def preset_names() -> list[str]:
    """Names of the presets that can be read without a path."""
    return sorted({path.stem for folder in (_user_folder(), _OWN) for path in folder.glob("*.toml")})


def read_preset(name: str) -> Preset:
    """Read a preset by its name, the user's before ours, or by the path of its file; raises UsageError."""
    if name.endswith(".toml") or "/" in name or os.sep in name:
        return _read(Path(name))
    for folder in (_user_folder(), _OWN):
        path = folder / f"{name}.toml"
        if path.is_file():
            return _read(path)
    names = preset_names()
    raise UsageError(f"there is no preset {show(name)}; there are: {', '.join(names)}", hint=nearest(name, names))


def _user_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgeship" / "presets"


def _read(path: Path) -> Preset:
    try:
        members = tomllib.loads(read_bytes(path, _MAX_BYTES).decode("utf-8"))
    except ArtifactError as error:
        raise UsageError(error.message, hint="check the preset's path") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError(f"{path}: the preset is not TOML ({error})") from None
    problem = _problem(members)
    if problem:
        raise UsageError(f"{path}: {problem}", hint="see the presets of edgeship_runtime/talk/preset_files")
    settings = {name: each.get("default") for name, each in members.get("settings", {}).items()}
    options = members.get("options", {})
    try:
        GenerationOptions(**options)
    except UsageError as error:
        raise UsageError(f"{path}: options: {error.message}", hint=error.hint) from None
    return Preset(path.stem, members["about"], members["system"], members.get("thinking"), settings, options)


def _problem(members: Mapping[str, Any]) -> str:
    """What is wrong with a preset's members; empty when nothing is."""
    unknown = [name for name in members if name not in _MEMBERS]
    if unknown:
        return f"there is no member {show(unknown[0])}; there are: {', '.join(_MEMBERS)}"
    for name in ("about", "system"):
        if not isinstance(members.get(name), str) or not members[name].strip():
            return f"{name}: expected text"
    if not isinstance(members.get("thinking", False), bool):
        return f"thinking: expected true or false, found {show(members['thinking'])}"
    settings, options = members.get("settings", {}), members.get("options", {})
    if not isinstance(settings, dict) or not all(map(_is_setting, settings.values())):
        return "settings: expected tables with about (text) and, where there is one, default (text)"
    used = set(_PLACE.findall(members["system"]))
    if used != set(settings):
        return f"settings: {', '.join(sorted(used ^ set(settings)))} is in one of system and settings alone"
    wrong = [name for name in options if name not in GenerationOptions.names()] if isinstance(options, dict) else ["?"]
    return f"options: there is no option {show(wrong[0])}" if wrong else ""


def _is_setting(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("about"), str):
        return False
    return set(value) <= {"about", "default"} and isinstance(value.get("default", ""), str)
