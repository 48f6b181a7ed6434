"""Compare our GGUF with what llama.cpp makes of the same checkpoint: bytes of every tensor, and every key.

    python tests/llamacpp/compare.py --llama-cpp SOURCES --bin BUILD/bin [--checkpoint DIR ...] [--types ...]

`SOURCES` is a llama.cpp source tree (the llama-cpp-python sdist has one in vendor/llama.cpp), for
`convert_hf_to_gguf.py`, which needs torch, transformers and sentencepiece; `BUILD/bin` holds `llama-quantize`. Without
`--checkpoint`, the tiny ones of tests/ggufs.py are made, and `--record` writes what the tests compare with.

llama.cpp's way is an f32 conversion, then `llama-quantize --pure` with the same type for embeddings and output, so that
every matrix has the type asked for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "pipeline"), str(TESTS.parent / "runtime")]

from ggufs import (  # noqa: E402
    CASES,
    RECORDED,
    TYPES,
    case,
    compare_keys,
    digest,
    keys,
    reason_to_differ,
    tensors,
    write_gguf,
)

# Converts with a name for pre-tokenizers that llama.cpp has not hashed: argv is sources, name, then the converter's.
CONVERT = """
import runpy, sys
root, name = sys.argv[1:3]
sys.path.insert(0, root)
sys.argv = [root + "/convert_hf_to_gguf.py", *sys.argv[3:]]
import conversion.base as base
known = base.TextModel.get_vocab_base_pre
def named(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        return name
base.TextModel.get_vocab_base_pre = named
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp's sources")
    parser.add_argument("--bin", type=Path, required=True, help="directory of llama-quantize")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help="instead of the tiny ones")
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--pre", default="qwen2", help="for tokenizers whose hash llama.cpp does not know")
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        recorded: dict[str, Any] = {}
        different: dict[str, tuple[str, str | None]] = {}
        wrong = 0
        for checkpoint in options.checkpoint or [case(name, work) for name in CASES]:
            recorded[checkpoint.name], problems = compare(options, checkpoint, work, different)
            wrong += problems
        for key, (example, reason) in different.items():
            print(f"{key}: {reason or 'NOT EXPECTED'}\n    {example}")
            wrong += reason is None
    if options.record and not options.checkpoint:
        RECORDED.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("equal, but for the keys listed" if not wrong else f"{wrong} DIFFERENCES")
    return int(wrong > 0)


def compare(
    options: argparse.Namespace, checkpoint: Path, work: Path, different: dict[str, tuple[str, str | None]]
) -> tuple[dict[str, Any], int]:
    """What llama.cpp made of a checkpoint, and how many tensors of ours differ, of all types.

    Keys that differ are added to `different`, with an example and the reason.
    """
    converted, theirs, ours = work / "f32.gguf", work / "theirs.gguf", work / "ours.gguf"
    arguments: list[str | Path] = [checkpoint, "--outtype", "f32", "--outfile", converted]
    run(sys.executable, "-c", CONVERT, options.llama_cpp, options.pre, *arguments)
    digests: dict[str, str] = {}
    wrong = 0
    for kind in options.types:
        pure = [options.bin / "llama-quantize", "--pure", "--token-embedding-type", kind, "--output-tensor-type", kind]
        run(*pure, converted, theirs, kind)
        write_gguf(checkpoint, ours, kind, chunk=1 << 12)
        digests[kind] = digest(theirs)
        problems = compare_tensors(ours, theirs)
        print(f"{checkpoint.name} {kind}: {len(list(tensors(ours)))} tensors, {problems} different")
        wrong += problems
        for key, (mine, other) in compare_keys(keys(ours), keys(theirs)).items():
            example = f"{checkpoint.name} {kind}: ours {mine}, llama.cpp's {other}"
            different[key] = (example, reason_to_differ(key) or dropped_tokens(checkpoint, key))
    return {"keys": keys(converted), "digests": digests}, wrong


def compare_tensors(ours: Path, theirs: Path) -> int:
    """Tensors that are not the same in both files: missing, of another type or shape, or other bytes."""
    mine, other = ({name: rest for name, *rest in tensors(path)} for path in (ours, theirs))
    different = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    for name in different[:10]:
        print(f"  {name}: {[rest[:2] if rest else None for rest in (mine.get(name), other.get(name))]}")
    return len(different)


def dropped_tokens(checkpoint: Path, key: str) -> str | None:
    """Why tokens differ: transformers goes by tokenizer_config.json, tokenizers (and our runtime) by tokenizer.json."""
    added = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
    listed = json.loads((checkpoint / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
    dropped = [token["content"] for token in added if str(token["id"]) not in listed]
    if not dropped or key not in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        return None
    return (
        f"tokenizer.json adds {' '.join(dropped)}, which tokenizer_config.json does not list: transformers drops them"
    )


def run(*command: str | Path) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{command[0]} failed:\n{(result.stdout + result.stderr)[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
