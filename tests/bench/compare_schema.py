"""What a JSON schema adds to a token, and what the first mask of tokens costs: one model, with and without, in turns.

compare_schema.py ARTIFACT... [--tokens 48] [--repeats 6] [--threads N] [--json]

ARTIFACT: a directory of one format; its vocabulary should be a real one, of 150,000 tokens. The time added is that of
choosing a token (grammar, mask, sampling, following) with the schema, less without it, over the model's own logits:
whole tokens differ by more than that from one to the next, and are printed beside it. Exits with 1 beyond the limits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifacts import options, tell
from process import median

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
    parser = options(__doc__, tokens=(48, "of an answer"), repeats=(6, "answers of each kind"))
    args = parser.parse_args()
    reports = [report(path, args) for path in args.artifact]
    tell(reports, lines, as_json=args.json)
    return int(any(each["added_ms"] > ADDED_MS or each["first_ms"] > FIRST_MS for each in reports))


def lines(found: dict[str, Any]) -> list[str]:
    """What is printed of an artifact."""
    return [
        f"{found['artifact']}, {found['engine']}, {found['vocabulary']} tokens (read once, {found['once_s']:.2f} s)",
        f"  a token takes {found['plain_ms']:.2f} ms, with the schema {found['schema_ms']:.2f} ms",
        f"  of it choosing {found['choose_plain_ms']:.3f} and {found['choose_schema_ms']:.3f} ms",
        f"  the schema adds {found['added_ms']:.3f} ms (at most {ADDED_MS:g})",
        f"  schema to first mask {found['first_ms']:.2f} ms (at most {FIRST_MS:g})",
    ]


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
