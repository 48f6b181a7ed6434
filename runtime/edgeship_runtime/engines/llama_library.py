"""llama.cpp's shared library through llama-cpp-python's low-level module, and the models it holds.

Of the package only the ctypes declarations are imported: the rest of it costs 100 ms and packages that are not needed
here. What llama.cpp logs is not shown; its errors are kept for our messages.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeship_runtime.errors import ArtifactError, EdgeshipRuntimeError, EngineError, ResourceError, missing_package

_ERROR_LEVEL = 4  # ggml_log_level
_MAX_ERRORS = 20  # the first says it; the rest follow from it
_ERROR_LINES = 400  # characters of a message that fit one screen
_NO_VOCABULARY = 0  # LLAMA_VOCAB_TYPE_NONE: asking it for tokens aborts the process
_NEEDED = (
    "llama_decode",
    "llama_get_logits_ith",
    "llama_memory_seq_rm",
    "llama_set_adapters_lora",
    "LLAMA_LOAD_MODE_MMAP",
)
_said = threading.local()  # llama.cpp logs in the thread that called it


@cache
def library() -> ModuleType:
    """llama-cpp-python's low-level module, its log silenced; raises DependencyError."""
    try:
        module = _import_declarations()
    except (ImportError, OSError, RuntimeError) as error:  # a library that does not load raises the last two
        missing = missing_package("llama-cpp-python", "llamacpp", "running a GGUF file")
        missing.hint += " (on Linux it is compiled from source: some ten minutes, with a C++ compiler)"
        if not isinstance(error, ImportError):
            missing.message += f": {' '.join(str(error).split())[:_ERROR_LINES]}"
        raise missing from None
    lacking = [name for name in _NEEDED if not hasattr(module, name)]
    if lacking:
        missing = missing_package("llama-cpp-python>=0.3.36", "llamacpp", "running a GGUF file")
        missing.message += f"; the one installed lacks {lacking[0]}"
        raise missing
    module.llama_log_set(_listener(module), None)  # before it looks at the processor
    _load_variants(module)
    module.llama_backend_init()
    return module


def _load_variants(module: ModuleType) -> None:
    """Load the CPU backend that fits this processor, where the build has several as libraries of their own."""
    folder = Path(module._base_path)
    if any(folder.glob("libggml-cpu-*.so")):
        load = module._lib.ggml_backend_load_all_from_path
        load.argtypes, load.restype = [ctypes.c_char_p], None
        load(os.fsencode(folder))


def _import_declarations() -> ModuleType:
    """Import `llama_cpp.llama_cpp` without `llama_cpp/__init__.py`, unless that was imported already."""
    name = "llama_cpp"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return importlib.import_module(f"{name}.{name}")
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
    try:
        with _short_spin():
            return importlib.import_module(f"{name}.{name}")
    finally:
        del sys.modules[name]  # whoever imports the package itself gets it whole


@contextmanager
def _short_spin() -> Iterator[None]:
    """Let OpenMP's threads wait for each other about 3 ms awake, and not 10, where the user has not chosen.

    GNU's library reads this once, when it is loaded. On a machine where other programs run too, threads that wait awake
    for one that is not running cost it the very time it needs: verifying the tiny model on four busy cores took 128 s,
    and so 3. On idle cores the two decode alike; a tenth of this costs decode some per cent. ARM's turns are shorter.
    """
    name = "GOMP_SPINCOUNT"
    if name in os.environ or "OMP_WAIT_POLICY" in os.environ or platform.machine() not in ("x86_64", "AMD64"):
        yield
        return
    os.environ[name] = "100000"
    try:
        yield
    finally:
        del os.environ[name]


@cache  # llama.cpp keeps the pointer, so the object must stay
def _listener(module: ModuleType) -> Any:
    def listen(level: int, text: bytes | None, _: object) -> None:
        if level == _ERROR_LEVEL and text and len(errors()) < _MAX_ERRORS:
            errors().append(text.decode("utf-8", "replace"))

    return module.llama_log_callback(listen)


def errors() -> list[str]:
    """What llama.cpp has logged as errors in this thread, since the list was last cleared."""
    if not hasattr(_said, "errors"):
        _said.errors = []
    found: list[str] = _said.errors
    return found


def listen() -> None:
    """Take llama.cpp's log and clear `errors`: whoever else in the process uses llama.cpp may have taken it since."""
    lib = library()
    lib.llama_log_set(_listener(lib), None)
    errors().clear()


def failure(what: str, kind: type[EdgeshipRuntimeError], hint: str) -> EdgeshipRuntimeError:
    """An error of `kind` with the first thing llama.cpp said about it; ResourceError where that is memory."""
    said = next((re.sub(r"^[\w:~]+: ", "", line.strip()) for line in errors()), "llama.cpp did not say why")
    errors().clear()
    text = " ".join(said.split())
    text = text if len(text) <= _ERROR_LINES else f"{text[:_ERROR_LINES]}…"
    if "alloc" in text:
        return ResourceError(
            f"{what}: not enough memory ({text})", hint="a smaller context or a smaller model needs less"
        )
    return kind(f"{what}: {text}", hint=hint)


class LoadedModel:
    """A model (or only its vocabulary) in llama.cpp; shared by engine and tokenizer, closed once for both.

    `with model:` keeps it from being freed meanwhile, and raises EngineError when it is closed.
    """

    def __init__(self, path: Path, *, mmap: bool = True, vocabulary_only: bool = False) -> None:
        """Load a GGUF file whose header was checked; raises ArtifactError, ResourceError, DependencyError."""
        lib = library()
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if mmap else lib.LLAMA_LOAD_MODE_NONE
        params.n_gpu_layers = 0  # this runtime is about processors: a build with a GPU must measure alike
        params.vocab_only = vocabulary_only
        listen()
        self.path = path
        self.pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            hint = "check it with `edgeship-runtime verify`; a newer llama-cpp-python may know what this one does not"
            raise failure(f"{path}: llama.cpp cannot load it", ArtifactError, hint)
        self._lock = threading.RLock()
        self._free = weakref.finalize(self, lib.llama_model_free, self.pointer)
        self._free.atexit = False  # the system frees it faster
        self.vocabulary = lib.llama_model_get_vocab(self.pointer)
        if lib.llama_vocab_type(self.vocabulary) == _NO_VOCABULARY:
            self.close()
            raise ArtifactError(f"{path}: it has no vocabulary, so there is no text to be had from it")
        self.vocab_size: int = lib.llama_vocab_n_tokens(self.vocabulary)

    def __enter__(self) -> LoadedModel:
        self._lock.acquire()
        if self.pointer is None:
            self._lock.release()
            raise EngineError("the model is closed", hint="load the artifact again")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def text(self, key: str) -> str | None:
        """A metadata value as text, None when there is none; at most 1,000 bytes."""
        buffer = ctypes.create_string_buffer(1000)
        with self:
            size = library().llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return None if size < 0 else buffer.value.decode("utf-8", "replace")

    def close(self) -> None:
        """Free it; a second call does nothing."""
        with self._lock:
            self.pointer = self.vocabulary = None
            self._free()
