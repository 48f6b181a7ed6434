"""What is looked at before a server starts, so that a wrong option is said there and not to the first client."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path

from edgeship_runtime.engines import FORMAT_OF, engine_module, formats
from edgeship_runtime.engines.checks import check_context, choose_threads
from edgeship_runtime.errors import UsageError, missing_package
from edgeship_runtime.manifest import locate, read_manifest
from edgeship_runtime.server.settings import Settings, check

_MODULES = {"ort": "onnxruntime", "llamacpp": "llama_cpp"}
_PACKAGES = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
}


def check_ready(settings: Settings) -> None:
    """Refuse what cannot be served; raises UsageError, ArtifactError, DependencyError."""
    check(settings)
    if settings.prefix_dir is not None and settings.prefix_dir.exists() and not settings.prefix_dir.is_dir():
        raise UsageError(f"--prefix-dir {settings.prefix_dir}: expected a directory, found something else")
    for path in settings.artifacts.values():
        _check_artifact(path, settings)
    for module, package in _PACKAGES.items():
        try:
            __import__(module)
        except ImportError:
            raise missing_package(package, "server", "serving") from None


def _check_artifact(path: Path, settings: Settings) -> None:
    options = dict(settings.engine_options)
    engine = options.pop("engine", None)
    manifest = read_manifest(locate(path, formats(engine)))
    module = engine_module(manifest.format, engine)
    name = next(each for each, form in FORMAT_OF.items() if form == manifest.format)
    if find_spec(_MODULES[name]) is None:
        raise missing_package(_MODULES[name].replace("llama_cpp", "llama-cpp-python"), name, f"serving {path}")
    choose_threads(settings.threads, manifest)
    if settings.context is not None:
        check_context(settings.context, manifest)
    known = inspect.signature(module.open_engine).parameters
    for option in options:
        if option not in known:
            flag = "--no-mmap" if option == "mmap" else "--" + option.replace("_", "-")
            raise UsageError(f"{flag} is for llama.cpp, and {path} runs on ONNX Runtime")
    for option, name in (("kv_type", "KV_TYPES"), ("flash_attention", "FLASH_ATTENTION")):
        choices = getattr(module, name, None)
        if option in options and choices is not None and options[option] not in choices:
            flag = option.replace("_", "-")
            raise UsageError(f"--{flag}: expected one of {', '.join(choices)}, found {options[option]!r}")
