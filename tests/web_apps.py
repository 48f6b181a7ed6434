"""A stand-in of the built browser app, small files in the layout of the real one; and what its browser calls itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeship_runtime.files import describe_file

AGENT = "Mozilla/5.0 (Linux; Android 16) AppleWebKit/537.36 Chrome/156.0 Mobile"
INDEX = "<!doctype html><html lang=en><title>stand-in</title><script type=module src=assets/app.js></script></html>\n"
AUDIT: dict[str, Any] = {"metadata": {"vulnerabilities": {"low": 0, "high": 0, "total": 0}}}
LICENCE = {"name": "onnxruntime-web", "version": "1.30.0", "licence": "MIT", "text": "Permission is hereby granted\n"}


def write_app(folder: Path, *, onnx: str = "\0asm onnx", **files: str) -> Path:
    """Write the app; `onnx` is its engine, `files` are laid over its own, by name with `/` as `__`."""
    own = {
        "index.html": INDEX,
        "sw.js": "self.addEventListener('install', () => self.skipWaiting());\n",
        "manifest.webmanifest": '{"name": "stand-in"}\n',
        "icon.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>\n',
        "assets/app.js": "document.title = 'ready';\n",
        "engines/onnx/ort.wasm": onnx,
        "engines/gguf/wllama.wasm": "\0asm gguf",
        "audit.json": json.dumps(AUDIT),
        "licences.json": json.dumps([LICENCE]),
    }
    for name, text in own.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "engines.json").write_text(json.dumps(_engines(folder)))
    for name, text in files.items():
        (folder / name.replace("__", "/")).write_text(text)
    return folder


def _engines(folder: Path) -> dict[str, Any]:
    def listed(url: str) -> dict[str, Any]:
        entry = describe_file(folder / url)
        return {"url": url, "size": entry.size, "sha256": entry.sha256}

    onnx, gguf = listed("engines/onnx/ort.wasm"), listed("engines/gguf/wllama.wasm")
    return {"onnx": {"wasm": [onnx]}, "gguf": {"wasm": [gguf]}}
