"""/v1/embeddings: many texts in one request are answered as each by itself, and one that cannot be is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeship_runtime import load
from served import serving

pytest.importorskip("onnx")

from encoders import seal, write_encoder

TEXTS = [*["the cat sat", "a dog", "the red house is not blue and we sat on a mat", "zebra"] * 20, "we"]


def test_int8_ranges_are_not_shared_between_texts(tmp_path: Path) -> None:
    directory, _ = write_encoder(tmp_path / "a", "feature-extraction", dynamic=True)
    with serving({"encoder": directory}) as running, load(directory) as model:
        answer = running.post("/v1/embeddings", {"model": "encoder", "input": TEXTS}).json()
        alone = [model.embed(text)[0] for text in TEXTS]
    np.testing.assert_array_equal(np.array([each["embedding"] for each in answer["data"]], np.float32), alone)


def test_a_text_of_no_tokens_is_named(tmp_path: Path) -> None:
    directory, _ = write_encoder(tmp_path / "a", "feature-extraction")
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    seal(directory, "feature-extraction")
    with serving({"encoder": directory}) as running:
        texts = [*["the cat"] * 40, " ", "a dog"]
        answer = running.post("/v1/embeddings", {"model": "encoder", "input": texts})
    assert answer.status_code == 400
    assert "text 41 has no tokens" in answer.json()["error"]["message"]
