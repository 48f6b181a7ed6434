"""One runtime, one artifact, one process: load, prefill and greedy decode, timed. Prints one JSON object.

generate.py edgeship-runtime|onnxruntime-genai ARTIFACT THREADS PROMPT_TOKENS DECODE_TOKENS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

REPEATS = 3


def main() -> None:
    side, artifact, threads, prompt, decode = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    facts = json.loads((artifact / "genai_config.json").read_text())["model"]
    ids = np.random.default_rng(0).integers(0, min(facts["vocab_size"], 100_000) // 2, prompt).tolist()
    measure = edgeship_runtime if side == "edgeship-runtime" else onnxruntime_genai
    load, prefill, per_token, rss = measure(artifact, threads, ids, decode)
    print(json.dumps({"load_s": load, "prefill": prompt / prefill, "decode": 1 / per_token, "rss_mb": rss}))


def edgeship_runtime(artifact: Path, threads: int, ids: list[int], decode: int) -> tuple[float, float, float, float]:
    started = time.perf_counter()
    import edgeship_runtime

    model = edgeship_runtime.load(artifact, threads=threads, context=len(ids) + decode)
    load = time.perf_counter() - started
    engine = model.engine
    prefills, steps = [], []
    for _ in range(REPEATS):
        engine.truncate(0)
        started = time.perf_counter()
        token = int(engine.evaluate(ids).argmax())
        prefills.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(decode - 1):
            token = int(engine.evaluate([token]).argmax())
        steps.append((time.perf_counter() - started) / (decode - 1))
    return load, float(np.median(prefills)), float(np.median(steps)), rss_mb()


def onnxruntime_genai(artifact: Path, threads: int, ids: list[int], decode: int) -> tuple[float, float, float, float]:
    started = time.perf_counter()
    import onnxruntime_genai as og

    config = og.Config(str(artifact))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    og.Tokenizer(model)
    load = time.perf_counter() - started
    prefills, steps = [], []
    for _ in range(REPEATS):
        parameters = og.GeneratorParams(model)
        # min_length: random weights may well choose an end token
        parameters.set_search_options(max_length=len(ids) + decode, min_length=len(ids) + decode, do_sample=False)
        generator = og.Generator(model, parameters)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        prefills.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(decode - 1):
            generator.generate_next_token()
        steps.append((time.perf_counter() - started) / (decode - 1))
        del generator
    return load, float(np.median(prefills)), float(np.median(steps)), rss_mb()


def rss_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
