"""What a JSON schema adds to a token, and what the first mask of tokens costs: one model, with and without, in turns.

compare_schema.py ARTIFACT... [--tokens 48] [--repeats 6] [--threads N] [--json]

ARTIFACT: a directory of one format; its vocabulary should be a real one, of 150,000 tokens. The time added is that of
choosing a token (grammar, mask, sampling, following) with the schema, less without it, over the model's own logits:
whole tokens differ by more than that from one to the next, and are printed beside it. Exits with 1 beyond the limits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from process import machine, median

ADDED_MS, FIRST_MS = 1.0, 5.0
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "places": {
            "type": "array",
            "minItems": 40,
            "items": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "minLength": 3, "maxLength": 30},
                    "kind": {"enum": ["home", "work", "other"]},
                    "since": {"type": "string", "format": "date"},
                },
                "required": ["city", "kind", "since"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["name", "age", "places"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
ASKED = [{"role": "user", "content": "Tell me about a person."}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer (%(default)s)")
    parser.add_argument("--repeats", type=int, default=6, help="answers of each kind (%(default)s)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    reports = [report(path, args) for path in args.artifact]
    if args.json:
        print(json.dumps({"machine": machine(), "artifacts": reports}, indent=1))
    else:
        print(machine())
        for each in reports:
            print(
                f"{each['artifact']}, {each['engine']}, {each['vocabulary']} tokens (read once, {each['once_s']:.2f} s)"
            )
            print(f"  a token takes {each['plain_ms']:.2f} ms, with the schema {each['schema_ms']:.2f} ms")
            print(f"  of it choosing {each['choose_plain_ms']:.3f} and {each['choose_schema_ms']:.3f} ms")
            print(f"  the schema adds {each['added_ms']:.3f} ms (at most {ADDED_MS:g})")
            print(f"  schema to first mask {each['first_ms']:.2f} ms (at most {FIRST_MS:g})")
    return int(any(each["added_ms"] > ADDED_MS or each["first_ms"] > FIRST_MS for each in reports))


def report(artifact: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one artifact; medians over tokens."""
    import edgeship_runtime
    from edgeship_runtime.talk import converse
    from edgeship_runtime.talk.structured import Matcher, format_rule, grammar

    with edgeship_runtime.load(artifact, threads=args.threads, context=1024) as model:
        first, scores = [], model.engine.evaluate([1, 2, 3]).copy()
        started = time.perf_counter()
        Matcher(model, grammar(format_rule({"type": "json_object"}), []))
        once = time.perf_counter() - started
        for _ in range(20):
            started = time.perf_counter()
            rule = format_rule(FORM)
            Matcher(model, grammar(rule, [])).restrict(scores)
            first.append(time.perf_counter() - started)
        chosen: dict[bool, list[float]] = {False: [], True: []}
        whole: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(args.repeats * 2):
            formed = bool(turn % 2)
            form = {"response_format": FORM} if formed else {}
            spans: list[float] = []
            with (
                watched(spans),
                converse(
                    model, ASKED, enable_thinking=False, max_tokens=args.tokens, temperature=0.7, seed=turn // 2, **form
                ) as events,
            ):
                for _ in events:
                    pass
            stats = events.answer.stats
            if turn > 1:  # the first of each warms up
                chosen[formed] += spans[1:]
                whole[formed].append(stats.decode_s / max(1, stats.steps))
        found = {
            "choose_plain_ms": 1e3 * median(chosen[False]),
            "choose_schema_ms": 1e3 * median(chosen[True]),
            "plain_ms": 1e3 * median(whole[False]),
            "schema_ms": 1e3 * median(whole[True]),
            "first_ms": 1e3 * median(first),
        }
        added = found["choose_schema_ms"] - found["choose_plain_ms"]
        facts = {"artifact": str(artifact), "engine": model.engine.name, "vocabulary": model.engine.vocab_size}
        return {**facts, "once_s": once, **found, "added_ms": added}


@contextmanager
def watched(spans: list[float]) -> Generator[None, None, None]:
    """Collect how long each choice of a token takes within the block."""
    from edgeship_runtime.sampling import Sampler

    choose = Sampler.choose

    def timed(self: Sampler, logits: Any) -> int:
        started = time.perf_counter()
        token = choose(self, logits)
        spans.append(time.perf_counter() - started)
        return token

    Sampler.choose = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sampler.choose = choose  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
