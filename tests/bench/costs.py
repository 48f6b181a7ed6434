"""What must cost next to nothing, each held to its limit: starting, plans, headers, templates, choosing a token.

python tests/bench/costs.py [--repeats 5] [--json]

Milliseconds of processor time, medians. Everything measured is made here: no model, no artifact and no engine. Whole
tokens are measured by overhead.py, schemas over a real vocabulary by compare_schema.py. Exits with 1 beyond a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: the tests' own modules

from edgeship import catalog
from edgeship.fit import fit
from edgeship.plan import make_plan, read_plan
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.gguf import read_header
from edgeship_runtime.sampling import GenerationOptions, Sampler
from edgeship_runtime.talk.structured import Matcher, grammar, json_rule
from gguf_bytes import ARRAY, STRING, model
from process import machine, measure, median

IMPORT_MS = 100.0
"""`import edgeship_runtime` in a fresh interpreter: what a command line may take before its own work."""

START_MS = 500.0
"""A command that does nothing, with the interpreter's own start: nobody waits for it."""

HEADER_MS = 500.0
"""A GGUF header with a vocabulary of 150,000: little beside the weights, which are read next."""

PLANS_MS = 1000.0
"""The plans of the whole catalogue: `edgeship recipes` makes them before it prints a line."""

FITS_MS = 5000.0
"""Every recipe on every device, their files read and checked: a command shows one row or column of it."""

TEMPLATE_MS = 5000.0
"""A thousand messages, a megabyte of text: half of what a template is given before it counts as an attack."""

SAMPLING_MS = 2.0
"""A token: a tenth of a decode step at 50 tokens/s."""

FIRST_MASK_MS = 5.0
"""A grammar and its first mask of tokens, once for an answer: less than a token of the smallest models."""

MASK_MS = 1.0
"""What a grammar adds to a token: a twentieth of a decode step at 50 tokens/s."""

VOCABULARY = 151_936  # rows of Qwen2.5's and Qwen3's tables
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "Qwen's defaults": {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    "top-p": {"temperature": 0.7, "top_p": 0.8},
    "temperature alone": {"temperature": 1.0},
    "everything": {
        "temperature": 1.0,
        "top_p": 0.95,
        "min_p": 0.05,
        "presence_penalty": 1.0,
        "repetition_penalty": 1.1,
    },
}
LEFT = (None, 1, 12, 3000)  # tokens that a grammar has left
LOOPS = {
    "lengths": "{{ (messages | length) ~ m.role ~ m.content.strip() + '\n' }}",
    "a filter each": "{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content }}",
    "slices": "{{ messages[loop.index0:][0].content }}{{ m.content.split() | length }}",
    "a growing list": (
        "{% set ns.seen = ns.seen + [m] %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{{ m | tojson }}"
    ),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
ANSWER = '{"name": "Ann of Aachen", "age": 41, "tags": ["short", "déjà vu"]}'


@dataclass(frozen=True)
class Cost:
    """A line of the table."""

    what: str
    measured: float
    limit: float
    unit: str = "ms"


def spent(work: Callable[[], object]) -> float:
    """Milliseconds of processor time that the work takes: what else the machine does is not ours."""
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def starts(repeats: int) -> Iterator[Cost]:
    """Fresh interpreters."""
    program = "import time; start = time.process_time(); import edgeship_runtime; print(time.process_time() - start)"
    imports = [1e3 * float(measure([sys.executable, "-c", program]).output) for _ in range(repeats)]
    yield Cost("import edgeship_runtime", median(imports), IMPORT_MS)
    for name, module in (("edgeship-runtime --version", "edgeship_runtime"), ("edgeship --help", "edgeship.cli")):
        command = [sys.executable, "-m", module, name.rpartition(" ")[2]]
        yield Cost(name, median([1e3 * measure(command).cpu for _ in range(repeats)]), START_MS)


def headers(repeats: int) -> Iterator[Cost]:
    """A GGUF file that is nothing but vocabulary."""
    words = [f"token{number}" for number in range(150_000)]
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "model.gguf"
        path.write_bytes(model().with_key("x", ARRAY, (STRING, words)).bytes())
        found = []
        for turn in range(repeats):
            os.utime(path, ns=(turn, turn))  # a file that has not changed is not read again
            found.append(spent(partial(read_header, path)))
    yield Cost("a GGUF header of 150,000 tokens", median(found), HEADER_MS)


def plans(repeats: int) -> Iterator[Cost]:
    """The whole catalogue."""

    def plan_all() -> None:
        for name in catalog.names():
            recipe = catalog.find(name)
            if recipe.model is not None:
                make_plan(recipe, recipe.model)

    def fit_all() -> None:
        made = [read_plan(catalog.find(name)) for name in catalog.names()]
        devices = [catalog.find_device(name) for name in catalog.device_names()]
        for device in devices:
            for plan in made:
                fit(plan, device).to_json()

    plan_all()  # imports are not counted
    yield Cost("the plans of all recipes", median([spent(plan_all) for _ in range(repeats)]), PLANS_MS)
    yield Cost("all recipes on all devices", median([spent(fit_all) for _ in range(repeats)]), FITS_MS)


def templates(repeats: int) -> Iterator[Cost]:
    """A long conversation, which is no attack."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(1000)]
    for name, body in LOOPS.items():
        source = "{% set ns = namespace(seen=[]) %}{% for m in messages %}" + body + "{% endfor %}"
        render = partial(ChatTemplate(source, time_limit_s=600).render, messages)
        yield Cost(f"a template, 1,000 messages: {name}", median([spent(render) for _ in range(repeats)]), TEMPLATE_MS)


class Allowing:
    """A guide that leaves the first tokens."""

    def __init__(self, count: int) -> None:
        self._count = count

    def forced(self) -> None:
        return None

    def restrict(self, scores: NDArray[np.float32]) -> None:
        scores[self._count :] = -np.inf

    def accept(self, token: int) -> None:
        assert token < self._count


def choices(repeats: int) -> Iterator[Cost]:
    """A token of a large vocabulary over logits without peaks, 4,000 tokens after the first."""
    rows = [
        np.random.default_rng(seed).standard_normal(VOCABULARY, np.float32) * np.float32(3) for seed in range(repeats)
    ]
    for name, values in WAYS.items():
        for left in LEFT:
            guide = None if left is None else Allowing(left)
            sampler = Sampler(GenerationOptions(seed=0, **values), VOCABULARY, range(4000), guide)
            found = [spent(partial(sampler.choose, row)) for _ in range(5) for row in rows]
            what = f"a token: {name}" + ("" if left is None else f", {left:,} left by a grammar")
            yield Cost(what, median(found), SAMPLING_MS)


class Words:
    """A byte-level vocabulary of made-up words, as many and about as long as Qwen's tokens."""

    def __init__(self, size: int) -> None:
        pick = random.Random(0)
        letters = "eeeetttaaaooiinnsshhrrddlluucmwfgypbvkjxqzESTAINOR.,:;-_()/=é語"
        ends = ['"', '",', '":', '"}', "{", "}", "[", "]", "],", '["', '{"', ", ", "\n"]
        made = dict.fromkeys([bytes([value]) for value in range(256)] + [end.encode() for end in ends])
        while len(made) < size:
            word = "".join(pick.choices(letters, k=pick.randint(2, 9)))
            made[((" " if pick.random() < 0.5 else "") + word).encode()] = None
        self.vocab_size = size
        self._ids = {token: place for place, token in enumerate(made)}
        self._longest = max(map(len, made))

    def spellings(self) -> list[bytes]:
        return list(self._ids)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The longest token that fits, each time."""
        raw, ids = text.encode(), list[int]()
        while raw:
            length = next(length for length in range(self._longest, 0, -1) if raw[:length] in self._ids)
            ids.append(self._ids[raw[:length]])
            raw = raw[length:]
        return ids


def masks(repeats: int) -> Iterator[Cost]:
    """A schema: until the first token may be chosen, and along an answer."""
    words, end = Words(VOCABULARY - 1), VOCABULARY - 1
    facts = SimpleNamespace(model=SimpleNamespace(eos_token_ids=(end,)))
    stub: Any = SimpleNamespace(engine=SimpleNamespace(vocab_size=VOCABULARY), tokenizer=words, manifest=facts)
    scores, ids = np.zeros(VOCABULARY, np.float32), words.encode(ANSWER)

    def first(schema: dict[str, Any]) -> Matcher:
        matcher = Matcher(stub, grammar(json_rule(schema), []))
        matcher.restrict(scores)
        return matcher

    def follow(matcher: Matcher, token: int) -> None:
        scores[:] = 0
        matcher.restrict(scores)
        matcher.consume([token])

    first({})  # the vocabulary is read once
    firsts, later = [], []
    for _ in range(repeats):
        firsts.append(spent(lambda: first(SCHEMA)))
        matcher = first(SCHEMA)
        later += [spent(partial(follow, matcher, token)) for token in ids]
    yield Cost("a schema and its first mask", median(firsts), FIRST_MASK_MS)
    yield Cost("a mask more, a token", median(later), MASK_MS)


PARTS: Sequence[Callable[[int], Iterator[Cost]]] = (starts, headers, plans, templates, choices, masks)


def main() -> int:
    """0 when all are within their limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    before = machine()
    if not args.json:
        print(before)
        print(f"{'':54}{'measured':>10}{'limit':>8}")
    found = []
    for cost in (cost for part in PARTS for cost in part(args.repeats)):
        found.append(cost)
        if not args.json:
            beyond = "  beyond" if cost.measured > cost.limit else ""
            print(f"{cost.what:54}{cost.measured:10.2f}{cost.limit:8g} {cost.unit}{beyond}", flush=True)
    after = machine()
    if args.json:
        print(json.dumps({"machine": [before, after], "rows": [asdict(cost) for cost in found]}, indent=1))
    else:
        print(after)
    return int(any(cost.measured > cost.limit for cost in found))


if __name__ == "__main__":
    sys.exit(main())
