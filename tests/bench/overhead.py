"""What our Python takes for a token at a vocabulary of 151,936: choosing it, its text, its event, the server.

python tests/bench/overhead.py artifacts/tiny-int4/onnx

The engine is a script that has its logits ready, so that what is left is ours; the artifact gives tokenizer and
template. Milliseconds of processor time, medians of several answers: `stream` is `Model.stream`, `events` those of a
conversation, `server` all of a server's process that streams them, `its own` what it adds to the events, `flat` a
stream over logits without peaks, the worst case of top-p. Exits with 1 above 2 ms a token.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.chat import load_template
from edgeship_runtime.manifest import read_manifest
from edgeship_runtime.model import Model
from edgeship_runtime.talk.conversation import converse
from edgeship_runtime.tokens import find_tokenizer
from process import machine

VOCABULARY = 151_936
MOST_MS = 2.0
TOKENS = 400
ASKED = [{"role": "user", "content": "What is the opposite of hot?"}]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "Qwen's defaults": {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    "temperature and top-p": {"temperature": 0.8, "top_p": 0.95},
    "temperature alone": {"temperature": 1.0},
    "everything": {
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "logit_bias": tuple((token, -1.0) for token in range(40)),
        "stop": ("\n\n\n", "<never>"),
    },
}


class Scripted:
    """An engine whose logits are noise with a few likely tokens on top, as a language model's are."""

    name = "scripted"
    threads = 1
    vocab_size = VOCABULARY

    def __init__(self, likely: Sequence[int], *, flat: bool = False) -> None:
        """`likely`: tokens that come in turn; `flat`: hardly likelier than the rest, the worst case of top-p."""
        random = np.random.default_rng(0)
        self.context = 4096
        self.length = 0
        self._rows = []
        for start in range(8):
            row = random.normal(0, 2, VOCABULARY).astype(np.float32)
            for place in range(30):
                row[likely[(start * 30 + place) % len(likely)]] = (9.0 if flat else 22.0) - 0.4 * place
            self._rows.append(row)

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.length += len(tokens)
        return self._rows[self.length % len(self._rows)]

    def truncate(self, length: int) -> None:
        self.length = length

    def close(self) -> None:
        pass


def scripted_model(directory: Path, *, flat: bool = False) -> Model:
    """The artifact's tokenizer and template on the scripted engine."""
    manifest = read_manifest(directory)
    manifest = replace(manifest, model=replace(manifest.model, vocab_size=VOCABULARY))
    tokenizer = find_tokenizer(directory, manifest)
    assert tokenizer is not None
    ends = set(manifest.model.eos_token_ids)
    likely = [token for token in range(tokenizer.vocab_size) if token not in ends and tokenizer.bytes_of(token)]
    engine = Scripted(likely, flat=flat)
    return Model(engine, tokenizer, manifest, load_template(directory, manifest), directory=directory)


def answered(model: Model, talk: bool, options: dict[str, Any]) -> int:
    """Give one answer; how many tokens it has."""
    more = {"max_tokens": TOKENS, "seed": 1, "ignore_eos": True, **options}
    if talk:
        with converse(model, ASKED, **more) as events:
            for _ in events:
                pass
        return len(events.answer.tokens)
    return len(model.generate(ASKED, **more).tokens)


def cpu_ms(work: Callable[[], int], repeats: int) -> float:
    """Milliseconds of this thread's processor time for a token; the median of several answers."""
    work()
    found = []
    for _ in range(repeats):
        started = time.thread_time()
        tokens = work()
        found.append(1e3 * (time.thread_time() - started) / tokens)
    return median(found)


def serve(directory: Path) -> None:
    """A server of the scripted model until its standard input ends."""
    import threading

    from edgeship_runtime.server.serve import build, listen, uvicorn_server
    from edgeship_runtime.server.settings import Settings
    from edgeship_runtime.server.telemetry import Log

    settings = Settings(artifacts={"scripted": directory}, requests_per_minute=0)
    server = build(settings, log=Log(lambda _: None), open_model=lambda path: scripted_model(path))
    listener = listen("127.0.0.1", 0)
    running = uvicorn_server(server)
    print(listener.getsockname()[1], flush=True)

    def wait() -> None:
        sys.stdin.read()
        running.should_exit = True

    threading.Thread(target=wait, daemon=True).start()
    running.run([listener])


def used_s(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served_ms(directory: Path, options: dict[str, Any], repeats: int) -> float:
    """Milliseconds of processor time of a whole server for a streamed token."""
    command = [sys.executable, __file__, str(directory), "--serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    body = {"model": "scripted", "messages": ASKED, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    taken = {name: value for name, value in options.items() if name != "logit_bias"}
    try:
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}/v1/chat/completions"

        def stream() -> None:
            with httpx.stream("POST", url, json={**body, "seed": 1, **taken}, timeout=60) as response:
                response.raise_for_status()
                for _ in response.iter_raw():
                    pass

        stream()
        started = used_s(process.pid)
        for _ in range(repeats):
            stream()
        return 1e3 * (used_s(process.pid) - started) / (repeats * TOKENS)
    finally:
        process.stdin.close()
        process.wait(30)


def main() -> int:
    """0 when a token takes at most 2 ms however it is chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="a directory with a manifest and a tokenizer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.artifact)
        return 0
    rows: list[dict[str, Any]] = []
    peaked, flat = scripted_model(args.artifact), scripted_model(args.artifact, flat=True)
    for name, options in WAYS.items():
        stream = cpu_ms(partial(answered, peaked, False, options), args.repeats)
        talk = cpu_ms(partial(answered, peaked, True, options), args.repeats)
        whole = served_ms(args.artifact, options, args.repeats)
        worst = cpu_ms(partial(answered, flat, False, options), args.repeats)
        rows.append({"way": name, "stream": stream, "events": talk, "server": whole, "flat": worst})
    if args.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    else:
        print(machine())
        heads = ("stream", "events", "server", "its own", "flat")
        print(f"{'milliseconds a token':24}" + "".join(f"{head:>9}" for head in heads))
        for row in rows:
            values = {**row, "its own": row["server"] - row["events"]}
            print(f"{row['way']:24}" + "".join(f"{values[head]:9.3f}" for head in heads))
    return int(any(max(row["server"], row["flat"]) > MOST_MS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
