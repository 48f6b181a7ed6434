"""Embedding and classifying: against numpy over the same table, for every task, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import Ended
from edgeship_runtime import Label, Model, errors, load
from edgeship_runtime.bench import measure
from edgeship_runtime.info import describe
from encoders import (
    EMBED,
    LABELS,
    LENGTH,
    SIZE,
    TEXT,
    TEXTS,
    TOKENS,
    WORDS,
    Answer,
    config,
    ids_of,
    modules,
    seal,
    sigmoid,
    softmax,
    with_golden,
    write_encoder,
)
from toy_artifact import write_toy


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("positions", [True, False])
def test_vectors_are_pooled_as_the_modules_say(tmp_path: Path, pooling: str, normalize: bool, positions: bool) -> None:
    files = modules(pooling=pooling, normalize=normalize)
    directory, answer = write_encoder(tmp_path / "a", EMBED, files, positions=positions)
    with load(directory) as model:
        found = model.embed(TEXTS, batch_size=2)
    assert found.shape == (len(TEXTS), SIZE)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        rows = answer(ids_of(directory, text)).astype(np.float64)
        wanted = {"mean_tokens": rows.mean(axis=0), "cls_token": rows[0], "lasttoken": rows[-1]}[pooling]
        wanted = wanted / np.linalg.norm(wanted) if normalize else wanted
        np.testing.assert_allclose(vector, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "a", EMBED)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from([*WORDS[4:], "other"]), max_size=15).map(" ".join), max_size=7))
def test_the_batch_does_not_matter(embedding: tuple[Path, Answer], texts: list[str]) -> None:
    with load(embedding[0]) as model:
        together = model.embed(texts, batch_size=3)
        alone = [model.embed(text)[0] for text in texts]
    assert len(together) == len(texts)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_int8_ranges_are_not_shared_between_texts(tmp_path: Path) -> None:
    directory, _ = write_encoder(tmp_path / "a", EMBED, dynamic=True)
    with load(directory) as model:
        alone = [model.embed(text)[0] for text in TEXTS]
        np.testing.assert_array_equal(model.embed(TEXTS), alone)
        assert np.abs(model.embed(TEXTS, batch_size=32) - alone).max() > 1e-3


def test_a_text_of_no_tokens_is_named(tmp_path: Path) -> None:
    directory, _ = write_encoder(tmp_path / "a", EMBED)
    plain(directory)
    with load(directory) as model, pytest.raises(errors.UsageError, match="text 2 has no tokens"):
        model.embed(["the cat", "", "a dog"])


def plain(directory: Path) -> None:
    """Take the tokens around a text away."""
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    seal(directory, EMBED)


def test_a_smaller_context_cuts_texts(embedding: tuple[Path, Answer]) -> None:
    with load(embedding[0], context=4) as short, load(embedding[0]) as whole:
        np.testing.assert_array_equal(short.embed("the cat sat on a mat"), whole.embed("the cat"))


def test_texts_get_their_labels(tmp_path: Path) -> None:
    directory, answer = write_encoder(tmp_path / "a", TEXT)
    with load(directory) as model:
        found = model.classify(TEXTS, batch_size=3)
    for text, labels in zip(TEXTS, found, strict=True):
        wanted = softmax(answer(ids_of(directory, text)))
        assert [each.name for each in labels] == [LABELS[i] for i in np.argsort(-wanted)]
        np.testing.assert_allclose([each.score for each in labels], sorted(wanted, reverse=True), rtol=1e-4, atol=1e-7)


def test_labels_that_are_not_exclusive(tmp_path: Path) -> None:
    config = {"id2label": {str(i): label for i, label in enumerate(LABELS)}}
    several = {"config.json": config | {"problem_type": "multi_label_classification"}}
    directory, answer = write_encoder(tmp_path / "a", TEXT, several)
    with load(directory) as model:
        (labels,) = model.classify("the cat")
    wanted = 1 / (1 + np.exp(-answer(ids_of(directory, "the cat")).astype(np.float64)))
    assert {each.name: pytest.approx(each.score, rel=1e-4) for each in labels} == dict(zip(LABELS, wanted, strict=True))


@pytest.mark.parametrize(
    ("labels", "problem", "wanted"),
    [
        (1, None, sigmoid),
        (1, "single_label_classification", sigmoid),
        (1, "regression", np.asarray),
        (3, "regression", np.asarray),
        (3, "multi_label_classification", sigmoid),
        (3, None, softmax),
    ],
)
def test_scores_are_those_of_transformers_pipeline(tmp_path: Path, labels: int, problem: Any, wanted: Any) -> None:
    said = config(labels, **({"problem_type": problem} if problem else {}))
    directory, answer = write_encoder(tmp_path / "a", TEXT, said, labels=labels)
    with load(directory) as model:
        (found,) = model.classify("the cat sat")
    scores = wanted(answer(ids_of(directory, "the cat sat")))
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert {each.name: each.score for each in found} == pytest.approx(
        {f"LABEL_{i}": score for i, score in enumerate(scores)}, rel=1e-4
    )


def test_two_labels_without_names_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import BertConfig

    said = BertConfig(num_labels=2).to_diff_dict()
    assert "id2label" not in said
    directory, _ = write_encoder(tmp_path / "two", TEXT, {"config.json": said}, labels=2)
    with load(directory) as model:
        assert {each.name for each in model.classify("the cat")[0]} == set(BertConfig(num_labels=2).id2label.values())
    directory, _ = write_encoder(tmp_path / "three", TEXT, {"config.json": said})
    with load(directory) as model, pytest.raises(errors.EngineError, match=r"knows 3 labels, config\.json 2"):
        model.classify("a")


def test_labels_of_tokens_are_exclusive_whatever_the_problem(tmp_path: Path) -> None:
    said = config(3, problem_type="multi_label_classification")
    directory, answer = write_encoder(tmp_path / "a", TOKENS, said)
    with load(directory) as model:
        (labels,) = model.classify("the cat")
    wanted = softmax(answer(ids_of(directory, "the cat")))[1:-1]
    np.testing.assert_allclose([each.score for each in labels], wanted.max(axis=1), rtol=1e-4)


def test_tokens_get_a_label_and_their_place(tmp_path: Path) -> None:
    directory, answer = write_encoder(tmp_path / "a", TOKENS)
    text = "the  cat sat"
    with load(directory) as model:
        (labels,) = model.classify(text)
    wanted = softmax(answer(ids_of(directory, text)))[1:-1]
    assert [text[each.start : each.end] for each in labels] == ["the", "cat", "sat"]
    assert [each.name for each in labels] == [LABELS[row.argmax()] for row in wanted]
    np.testing.assert_allclose([each.score for each in labels], wanted.max(axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda model: model.classify("a"), "classifies no texts"),
        (lambda model: model.generate("a"), "generates no text"),
        (lambda model: model.chat([{"role": "user", "content": "a"}]), "generates no text"),
        (lambda model: model.embed("a", batch_size=0), "batch size"),
        (lambda model: model.embed([1]), "expected texts"),
        (lambda model: model.embed("\ud800"), "tokens"),
        (lambda model: (model.close(), model.embed("a")), "closed"),
    ],
)
def test_what_an_encoder_refuses(embedding: tuple[Path, Answer], ask: Callable[[Model], Any], said: str) -> None:
    with load(embedding[0]) as model, pytest.raises(errors.UsageError, match=said):
        ask(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"kv_type": "q8_0"}, "kv_type"), ({"context": LENGTH + 1}, "context"), ({"context": 1}, "special")],
)
def test_options_that_it_does_not_have(embedding: tuple[Path, Answer], options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.UsageError, match=said):
        load(embedding[0], **options)


def test_a_generating_model_embeds_nothing(tmp_path: Path) -> None:
    with load(write_toy(tmp_path / "toy").directory) as model:
        with pytest.raises(errors.UsageError, match="embeds none"):
            model.embed("a")
        with pytest.raises(errors.UsageError, match="classifies none"):
            model.classify("a")


def test_modules_that_are_not_known(tmp_path: Path) -> None:
    both, none = modules(), modules(pooling="max_tokens")
    both["1_Pooling/config.json"]["pooling_mode_cls_token"] = True
    bad: list[tuple[str, dict[str, Any], str]] = [
        (EMBED, modules(more="Dense"), "Dense"),
        (EMBED, both, "one of mean_tokens, cls_token, lasttoken"),
        (EMBED, none, "one of mean_tokens, cls_token, lasttoken"),
        (EMBED, {}, "modules.json"),
        (TEXT, {"config.json": {"id2label": {"1": "a"}}}, "id2label"),
    ]
    for place, (task, files, said) in enumerate(bad):
        directory, _ = write_encoder(tmp_path / str(place), task, files)
        with pytest.raises(errors.ArtifactError, match=said):
            load(directory)


def test_graphs_of_another_kind(tmp_path: Path) -> None:
    directory, _ = write_encoder(tmp_path / "inputs", EMBED, extra_input=True)
    with pytest.raises(errors.ArtifactError, match="pixel_values"):
        load(directory)
    directory, _ = write_encoder(tmp_path / "labels", TEXT, labels=2)
    with load(directory) as model, pytest.raises(errors.EngineError, match="2 labels"):
        model.classify("a")
    directory, _ = write_encoder(tmp_path / "shape", EMBED)
    seal(directory, TEXT)
    with load(directory) as model, pytest.raises(errors.EngineError, match="shape"):
        model.classify("a")


def test_the_commands(tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = with_golden(tmp_path / "e", EMBED)
    vectors = json.loads(command("embed", directory, "the cat", "a dog", "--json").out)["embeddings"]
    assert np.shape(vectors) == (2, SIZE)
    lines = command("embed", directory, "the cat").out.splitlines()
    np.testing.assert_allclose([float(each) for each in lines[0].split()], vectors[0], rtol=1e-4)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\na dog\n")))
    assert len(command("embed", directory, "-").out.splitlines()) == 2
    texts = write_encoder(tmp_path / "c", TEXT)[0]
    assert command("classify", texts, "the cat").out.splitlines()[0] == "the cat"
    (labels,) = json.loads(command("classify", texts, "the cat", "--json").out)["labels"]
    assert {each["name"] for each in labels} == set(LABELS)
    tokens = write_encoder(tmp_path / "t", TOKENS)[0]
    assert command("classify", tokens, "the cat").out.splitlines()[2].endswith("cat")
    refused = command("run", directory, "hello")
    assert (refused.code, "generates no text" in refused.err) == (2, True)
    assert command("verify", directory).code == 0


def test_other_commands_know_it(tmp_path: Path) -> None:
    directory = with_golden(tmp_path, EMBED)
    assert describe(directory)["kv_cache"]["bytes_per_token"] == 0
    report = measure(directory, prompt_tokens=8, decode_tokens=2, repeats=1)
    assert (report.prompt_tokens, report.decode_tokens) == (8, 0)
    assert report.prefill_tokens_per_s > 0
    assert "answer       " in report.table()
    assert not {"decode", "first"} & {line.split()[0] for line in report.table().splitlines()}


def test_a_label_is_plain() -> None:
    assert vars(Label("a", 0.5)) == {"name": "a", "score": 0.5, "start": None, "end": None}
