"""Time to the first token in a long chat: first turn, second turn, and second turn after a restart.

compare_prefix.py ARTIFACT... [--tokens 1500] [--repeats 3] [--threads N] [--json]

ARTIFACT: a directory of one format. Each measurement is two processes: the first talks two turns and ends, the second
loads the artifact anew and asks the second turn again; reading and checking the saved prefix is part of its time,
loading the artifact is not. Exits with 1 when the second turn takes more than a tenth of the first, or after a restart
more than a fifth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from artifacts import options, tell
from process import measure, median

SECOND, RESTART = 0.1, 0.2
"""Of the first turn's time, at most."""
MEMORY = 1 << 30


def main() -> int:
    tokens, repeats = (1500, "of the first turn's prompt, about"), (3, "of which the median counts")
    parser = options(__doc__, tokens=tokens, repeats=repeats)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(talk(args.artifact[0], args.worker, args.tokens, args.threads)))
        return 0
    reports = [report(path, args) for path in args.artifact]
    tell(reports, lines, as_json=args.json)
    return int(any(each["second"] > SECOND or each["restart"] > RESTART for each in reports))


def lines(found: dict[str, Any]) -> list[str]:
    """What is printed of an artifact."""
    return [
        f"{found['artifact']}, {found['engine']}, {found['prompt_tokens']} tokens:",
        f"  first turn            {found['first_s']:.3f} s",
        f"  second turn           {found['second_s']:.3f} s, {found['second']:.1%} (at most {SECOND:.0%})",
        f"  second, after restart {found['restart_s']:.3f} s, {found['restart']:.1%} (at most {RESTART:.0%})",
    ]


def report(artifact: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one artifact; ratios are medians of the pairs."""
    runs = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(artifact), "--tokens", str(args.tokens), "--worker", folder]
            command += ["--threads", str(args.threads)] if args.threads else []
            first = json.loads(measure(command).output)
            again = json.loads(measure(command).output)
            assert again["text"] == first["text"], "the saved prefix changed the answer"
            runs.append(first | {"restart_s": again["second_s"], "restart_cached": again["cached"]})
    found = {name: median([run[name] for run in runs]) for name in ("first_s", "second_s", "restart_s")}
    ratios = {
        "second": median([run["second_s"] / run["first_s"] for run in runs]),
        "restart": median([run["restart_s"] / run["first_s"] for run in runs]),
    }
    kept = {name: runs[0][name] for name in ("engine", "prompt_tokens", "second_tokens", "cached", "restart_cached")}
    return {"artifact": str(artifact), **kept, **found, **ratios}


def talk(artifact: Path, folder: Path, tokens: int, threads: int | None) -> dict[str, Any]:
    """Two turns where the folder is empty; else the second alone, with what the first process left there."""
    import edgeship_runtime
    from edgeship_runtime.prefix import remember

    told = "\n".join(
        f"Box number {i} is {3 * i} centimetres wide and holds {i % 7} spoons." for i in range(tokens // 20)
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"{told}\nWhich box holds most?"}]
    state = folder / "turn.json"
    with edgeship_runtime.load(artifact, threads=threads, context=tokens * 2) as model:
        model.generate("warm", max_tokens=2)
        model.forget()
        cache = remember(model, MEMORY, folder / "prefixes")
        found: dict[str, Any] = {"engine": model.engine.name}
        if not state.exists():
            first = model.generate(messages, max_tokens=24, temperature=0.0)
            state.write_text(json.dumps(first.text))
            found |= {"first_s": first.stats.ttft_s, "prompt_tokens": first.stats.prompt_tokens}
            cache.keep(model.engine, model.held)
            model.prefixes = None  # the second turn is not saved
        messages.append({"role": "assistant", "content": json.loads(state.read_text())})
        messages.append({"role": "user", "content": "And which box is the widest of all?"})
        second = model.generate(messages, max_tokens=8, temperature=0.0)
        stats = second.stats
        return found | {
            "second_s": stats.ttft_s,
            "second_tokens": stats.prompt_tokens,
            "cached": stats.cached_tokens,
            "text": second.text,
        }


if __name__ == "__main__":
    sys.exit(main())
