"""EleutherAI's lm-eval (`local-completions`) against a running server, on both engines; see `make test-clients`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship_runtime import Model, load
from served import Served
from tolerances import SERVED_LOGPROB

TASKS = Path(__file__).parent / "lm_eval"
PROGRAM = Path(__file__).parents[3] / ".cache" / "lm-eval" / "bin" / "lm-eval"
Samples = dict[str, list[dict[str, Any]]]

pytestmark = [
    pytest.mark.skipif(not PROGRAM.exists(), reason="lm-eval is not installed: make test-clients installs it"),
    pytest.mark.timeout(1000),  # on a busy machine it is minutes before the program has read its own imports
]


@pytest.fixture(scope="session")
def samples(served: Served, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """What lm-eval logged of each request, by task."""
    out = tmp_path_factory.mktemp("lm-eval")
    model = {"model": "tiny", "base_url": f"{served.url}/v1/completions", "tokenizer": str(tiny / "onnx")}
    options = {"tokenizer_backend": "huggingface", "max_retries": 1, "max_length": 512}
    command = [
        *(str(PROGRAM), "run", "--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in (model | options).items())),
        *("--tasks", "edgeship_opposites,edgeship_stories,edgeship_endings", "--include_path", str(TASKS)),
        *("--batch_size", "3", "--output_path", str(out), "--log_samples"),
    ]
    # Nothing of the hub's is needed, and the harness must not look for it.
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "home")}
    found = subprocess.run(
        command, cwd=TASKS, env=os.environ | offline, capture_output=True, text=True, timeout=900, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    read: Samples = {}
    for path in out.rglob("samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        read[path.name.removeprefix("samples_").rpartition("_")[0]] = lines
    return read


@pytest.fixture(scope="session")
def model(served: Served) -> Any:
    with load(served.server.settings.artifacts["tiny"], threads=1) as found:
        yield found


def scores(model: Model, ids: list[int], start: int) -> tuple[float, bool]:
    """Log probability of the tokens from `start` on, and whether each was the likeliest; from the engine itself."""
    total, greedy = 0.0, True
    model.engine.truncate(0)
    for place in range(len(ids) - 1):
        logits = model.engine.evaluate([ids[place]]).astype(np.float64)
        if place + 1 >= start:
            total += float(logits[ids[place + 1]] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
            greedy = greedy and int(logits.argmax()) == ids[place + 1]
    return total, greedy


def test_choices_have_the_likelihoods_of_the_model(samples: Samples, model: Model) -> None:
    found = samples["edgeship_opposites"]
    assert len(found) == 4
    for sample in found:
        totals = []
        asked = [list(each.values()) for each in sample["arguments"].values()]
        for (context, continuation), (response,) in zip(asked, sample["resps"], strict=True):
            ids, start = model.encode(context + continuation), len(model.encode(context))
            total, greedy = scores(model, ids, start)
            assert float(response[0]) == pytest.approx(total, abs=SERVED_LOGPROB * (len(ids) - start))
            assert response[1] in (greedy, str(greedy))
            totals.append(total)
        assert sample["acc"] == (totals.index(max(totals)) == sample["doc"]["answer"])


def test_whole_texts_have_the_likelihoods_of_the_model(samples: Samples, model: Model) -> None:
    found = samples["edgeship_stories"]
    assert len(found) == 2
    for sample in found:
        ids = [model.manifest.model.eos_token_ids[0], *model.encode(sample["doc"]["text"])]
        total, _ = scores(model, ids, 1)
        assert float(sample["resps"][0][0]) == pytest.approx(total, abs=SERVED_LOGPROB * len(ids))


def test_texts_are_those_of_the_model(samples: Samples, model: Model) -> None:
    found = samples["edgeship_endings"]
    assert len(found) == 2
    for sample in found:
        prompt = sample["doc"]["text"].split(",")[0]
        expected = model.generate(prompt, temperature=0, repetition_penalty=1, max_tokens=12, stop=["."]).text
        assert sample["resps"][0][0] == expected
