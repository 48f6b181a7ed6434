"""The texts that a bundle brings beside its files: install.sh and README.md, filled from templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

ANDROID = "android"
SYSTEMS = {"linux": "Linux", "macos": "Darwin", ANDROID: "Linux"}
"""What `uname -s` says, by the profile's operating system; install.sh runs on these."""

_CHECKS = {
    "ort": "import jinja2, onnxruntime, tokenizers, edgeship_runtime.engines.ort",
    "llamacpp": "import jinja2; from edgeship_runtime.engines.llama_library import library; library()",
}


@dataclass(frozen=True)
class Facts:
    """What the templates say: `digest` is the short one, `glibc` empty where none is needed, `needs_mb` of disk."""

    name: str
    digest: str
    device: str
    os: str
    arch: str
    pythons: tuple[str, ...]
    glibc: str
    engine: str
    needs_mb: int
    pip: str
    artifact: bool
    sums: str = ""
    """For Android: lines of sha256 and name that install.sh checks there, where no Python may be."""


def install_script(facts: Facts) -> str:
    """install.sh, with every value quoted for the shell."""
    values = {
        "NAME": facts.name,
        "DIGEST": facts.digest,
        "DEVICE": facts.device,
        "SYSTEM": SYSTEMS[facts.os],
        "ARCH": facts.arch,
        "PYTHONS": " ".join(facts.pythons),
        "GLIBC": facts.glibc,
        "NEEDS": str(facts.needs_mb),
        "PIP": facts.pip,
        "HAS_ARTIFACT": "yes" if facts.artifact else "",
        "CHECK": _CHECKS[facts.engine],
        "SUMS": facts.sums,
    }
    # Quoted even where it need not be: the checker of shell scripts takes a bare a-b for arithmetic.
    quoted = {key: "'" + value.replace("'", "'\"'\"'") + "'" for key, value in values.items()}
    title = {"TITLE": f"{facts.name} on {facts.device}"}
    # What both installers do stands in a part of its own; a bundle holds one whole script.
    return _filled(f"install{_kind(facts)}.sh", {"COMMON": _template("install-common.sh").rstrip()} | quoted | title)


def readme(facts: Facts) -> str:
    """README.md of the bundle."""
    folder = f"$HOME/edgeship/{facts.name}/current"
    artifact = f'"{folder}/artifact"' if facts.artifact else "ARTIFACT"
    run = f'```sh\n"{folder}/venv/bin/edgeship-runtime" run {artifact} "Hello"\n```'
    values = {
        "TITLE": f"{facts.name} for {facts.device}",
        "NAME": facts.name,
        "DIGEST": facts.digest,
        "DEVICE": facts.device,
        "SYSTEM": SYSTEMS[facts.os],
        "ARCH": facts.arch,
        "PYTHONS": " or ".join(facts.pythons),
        "LIBC": f", glibc {facts.glibc} or newer" if facts.glibc else "",
        "NEEDS": str(facts.needs_mb),
        "VERIFY": ", and the artifact is verified here before `current` is switched" if facts.artifact else "",
        "RUN": run,
        "ENGINE": facts.engine,
        "ARTIFACT_ROW": "| `artifact/` | the model, as it was sealed |\n" if facts.artifact else "",
    }
    return _filled(f"README{_kind(facts)}.md", values)


def _kind(facts: Facts) -> str:
    return "-android" if facts.os == ANDROID else ""


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = _template(template)
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _template(name: str) -> str:
    return (files("edgeship.ship") / "templates" / name).read_text(encoding="utf-8")
