"""What each way of rounding loses on one checkpoint, at equal bytes: compare_fidelity.py CHECKPOINT [--tokens N].

CHECKPOINT is a directory that train_model.py wrote: it calibrates on the `calibration.txt` in there, or on text that
the model writes itself, as the catalogue's recipes do, and judges on `held-out.txt`. The embedded tiny model has no
such files: it writes its text, and its held-out text is made anew. All run as GGUF in llama.cpp. Q4_0 and Q4_K_M are
ggml's quantizer; in a narrow model, whose rows K-quants do not divide, Q4_K_M consists of what it falls back to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

INT4 = {"body": "int4", "embeddings": "int8", "head": "int8"}
SCHEMES: dict[str, dict[str, Any]] = {
    "rtn": INT4,
    "rtn-search": INT4 | {"algorithm": "rtn-search"},
    "gptq": INT4 | {"algorithm": "gptq"},
    "gptq, own text": INT4 | {"algorithm": "gptq"},
    "int8": INT4 | {"body": "int8"},
    "Q4_0, imatrix": {"mix": "Q4_0"},
    "Q4_K_M": {"mix": "Q4_K_M"},
    "Q4_K_M, imatrix": {"mix": "Q4_K_M"},
}
PLAIN = ("rtn", "int8", "Q4_K_M")
OWN_TEXT = {"sequence": 128}
LADDER = ["q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k"]
NARROW = ["iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0"]  # groups of 32
HEADERS = ("scheme", "bits", "MB", "KL mean", "KL 99.9 %", "top 1", "seconds", "peak MB")


def edgeship(*arguments: str) -> dict[str, Any]:
    """What a command answers with --json."""
    command = [sys.executable, "-m", "edgeship.cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {answer['error']['message']}")
    return answer


def export(checkpoint: Path, name: str, scheme: dict[str, Any], home: Path, tokens: int) -> dict[str, Any]:
    """The report of an export of the checkpoint with a scheme, and in it the GGUF file."""
    recipe = {
        "source": {"host": "local", "repo": f"bench/{checkpoint.name}", "path": str(checkpoint.resolve())},
        "formats": ["gguf"],
        "context": 512,
        "scheme": scheme,
    }
    if name not in PLAIN:
        text = (checkpoint / "calibration.txt").resolve()
        own = name.endswith("own text") or not text.exists()
        recipe["calibration"] = {"tokens": tokens} | (OWN_TEXT if own else {"text": str(text)})
    file = home / f"{name.replace(', ', '-').replace(' ', '-')}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    made = edgeship("export", str(file), "--out", str(home / "out"), "--max-ram", "2GB")
    [made["file"]] = map(str, (Path(made["artifact"]) / "gguf").glob("*.gguf"))
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare what quantization schemes lose.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=4096, help="of the held-out text")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens of the calibration text")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        text = asked.checkpoint / "held-out.txt"
        width = json.loads((asked.checkpoint / "config.json").read_text())["hidden_size"]
        schemes = {n: s for n, s in SCHEMES.items() if text.exists() or not n.endswith("own text")}
        made = {n: export(asked.checkpoint, n, s, Path(home), asked.calibration) for n, s in schemes.items()}
        budget = round(made["Q4_K_M, imatrix"]["bits_per_weight"] + 0.001, 3)  # what is printed is rounded
        mixed = {"mixed": {"types": LADDER if width % 256 == 0 else NARROW, "bits_per_weight": budget}}
        made["mixed"] = export(asked.checkpoint, "mixed", mixed, Path(home), asked.calibration)
        found = edgeship(
            "evaluate", *(m["file"] for m in made.values()), "--reference", str(asked.checkpoint),
            "--tokens", str(asked.tokens), "--greedy", "0", *(("--text", str(text)) if text.exists() else ()),
        )  # fmt: skip
    rows = [HEADERS]
    for (name, m), each in zip(made.items(), found["artifacts"], strict=True):
        size = (f"{m['bits_per_weight']:.2f}", f"{m['size_mb']:.1f}")
        loss = (f"{each['kl_mean']:.5f}", f"{each['kl_999']:.4f}", f"{each['top1']:.1%}")
        rows.append((name, *size, *loss, f"{m['seconds']:.0f}", f"{m['peak_rss_mb']:.0f}"))
    for row in rows:
        print("  ".join(cell.rjust(10) if i else cell.ljust(16) for i, cell in enumerate(row)))


if __name__ == "__main__":
    main()
