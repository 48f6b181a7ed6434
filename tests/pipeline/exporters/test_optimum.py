"""Encoders through a stand-in for Optimum: what is asked of it, what is sealed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import NO_LIMIT, write_safetensors
from command_line import Ended
from edgeship import cli, exporters
from edgeship.errors import ArtifactError, CheckpointError, EdgeshipError, FidelityError, RecipeError, ResourceError
from edgeship.exporters import optimum
from edgeship.exporters.optimum import _classified, _embedded
from edgeship.exporters.texts import TEXTS
from edgeship.progress import Progress, Silent
from edgeship.recipe_file import read_recipe
from edgeship_runtime import load
from edgeship_runtime.encoder import Scores
from edgeship_runtime.manifest import read_manifest
from edgeship_runtime.verify import verify
from encoders import LABELS, SIZE, WORDS, modules, write_files, write_words
from exporter_standin import asked, stand_in
from exports import Listener, recipe

CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "id2label": {str(i): label for i, label in enumerate(LABELS)},
}


def checkpoint(directory: Path, **files: Any) -> Path:
    """The files of an embedding model but its weights, which only Optimum would read; None takes one away."""
    directory.mkdir(parents=True)
    write_words(directory)
    write_safetensors(directory / "model.safetensors", {"embeddings.position_ids": ("I64", np.arange(4))})
    (directory / "LICENSE").write_text("free")
    write_files(directory, {"config.json": CONFIG, "tokenizer_config.json": {"model_max_length": 48}, **modules()})
    for name, value in files.items():
        write_files(directory, {name: value}) if value is not None else (directory / name).unlink()
    return directory


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Exports a checkpoint by a recipe through the stand-in; returns the artifact's directory."""

    def run(
        text: str = "",
        files: dict[str, Any] | None = None,
        *,
        force: bool = False,
        heard: Progress | None = None,
        **how: Any,
    ) -> Path:
        run.environment = stand_in(tmp_path / "environments", "optimum", monkeypatch, **how)  # type: ignore[attr-defined]
        source = tmp_path / "checkpoint"
        if not source.exists():
            checkpoint(source, **(files or {}))
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(f"source: {{repo: me/mine}}\nexporter: optimum\n{text}")
        report = exporters.export(
            read_recipe(recipe), checkpoint=source, out=tmp_path / "out", force=force, progress=heard or Silent()
        )
        assert report.formats == ("onnx",)
        return report.artifact / "onnx"

    return run


def test_an_embedding_model_is_sealed_and_embeds(export: Any, tmp_path: Path) -> None:
    directory = export("accept: {cosine: 0.9, size_mb: 1}")
    (request,) = asked(export.environment)
    assert (request["task"], request["quantization"], request["per_channel"]) == ("feature-extraction", "dynamic", True)
    assert max(map(len, request["cases"])) <= 48
    manifest = read_manifest(directory)
    assert manifest.model.task == "feature-extraction"
    assert (manifest.model.default_context, manifest.model.hidden_size) == (48, SIZE)
    assert manifest.budgets.size_mb == 1
    assert manifest.source.repo == "me/mine"
    assert "ai.onnx.Gather" in manifest.ops
    assert {"LICENSE", "README.md", "config.json", "modules.json", "1_Pooling/config.json"} <= set(manifest.files)
    assert "base_model: me/mine" in (directory / "README.md").read_text()
    verdict = verify(directory)
    assert verdict.verdict == "pass"
    assert verdict.agreement is not None
    assert verdict.agreement.cosine == pytest.approx(1, abs=1e-4)
    with load(directory) as model:
        np.testing.assert_allclose(np.linalg.norm(model.embed(["the cat"])), 1, rtol=1e-6)


def test_the_recipe_overrules_the_module_files(export: Any) -> None:
    directory = export("optimum: {pooling: lasttoken, normalize: false, max_length: 16}")
    pooling = json.loads((directory / "1_Pooling" / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_lasttoken"]
    assert len(json.loads((directory / "modules.json").read_text())) == 2
    assert read_manifest(directory).model.context_length == 16


@pytest.mark.parametrize(
    ("text", "files", "normalized"),
    [
        ("pooling: mean", {}, True),
        ("pooling: mean", modules(normalize=False), False),
        ("pooling: mean", {"modules.json": None}, True),
        ("pooling: mean, normalize: false", {}, False),
        ("pooling: mean, normalize: true", modules(normalize=False), True),
        ("pooling: mean, normalize: true", {"modules.json": {}}, True),
        ("normalize: true", modules(normalize=False), True),
        ("max_length: 16", modules(normalize=False), False),
    ],
)
def test_vectors_get_the_length_that_the_recipe_or_the_modules_say(
    export: Any, text: str, files: dict[str, Any], normalized: bool
) -> None:
    directory = export(f"optimum: {{{text}}}", files)
    assert len(json.loads((directory / "modules.json").read_text())) == 2 + normalized


def test_modules_that_cannot_be_read_do_not_decide_in_silence(export: Any) -> None:
    with pytest.raises(CheckpointError, match=r"modules\.json") as caught:
        export("optimum: {pooling: mean}", {"modules.json": {}})
    assert "optimum: {pooling: mean, normalize: true}" in str(caught.value.hint)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_classifier_is_sealed_and_classifies(export: Any, task: str) -> None:
    directory = export(f"optimum: {{task: {task}, quantization: none}}")
    assert verify(directory).verdict == "pass"
    assert not (directory / "modules.json").exists()
    with load(directory) as model:
        assert {each.name for labels in model.classify(["the cat", "a dog"]) for each in labels} <= set(LABELS)


def test_texts_to_calibrate_on_are_tokenized_here(export: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the cat\n\na dog ran\n")
    export("optimum: {quantization: static, calibration: texts.txt}")
    (request,) = asked(export.environment)
    assert request["calibration"] == [
        [2, WORDS.index("the"), WORDS.index("cat"), 3],
        [2, *map(WORDS.index, ("a", "dog", "ran")), 3],
    ]


def without(*keys: str, **more: Any) -> dict[str, Any]:
    return {"config.json": {key: value for key, value in CONFIG.items() if key not in keys} | more}


def prompts(default: Any = None) -> dict[str, Any]:
    """The file that says what sentence-transformers puts before a text."""
    given = {"query": "query: ", "document": "passage: ", "plain": ""}
    return {"config_sentence_transformers.json": {"prompts": given, "default_prompt_name": default}}


MAX = {"1_Pooling/config.json": {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}}


@pytest.mark.parametrize(
    ("text", "files", "kind", "said"),
    [
        ("", {"modules.json": None}, CheckpointError, "modules.json"),
        ("", {"1_Pooling/config.json": None}, CheckpointError, "how tokens become a vector"),
        ("", MAX, CheckpointError, "max_tokens"),
        ("", modules(more="Dense"), CheckpointError, "Dense"),
        ("optimum: {pooling: mean}", modules(more="Dense"), CheckpointError, "found .*Dense"),
        ("optimum: {pooling: cls, normalize: true}", modules(more="Dense"), CheckpointError, "found .*Dense"),
        ("", prompts("document"), CheckpointError, 'begins every text with "passage: "'),
        ("optimum: {pooling: cls}", prompts("document"), CheckpointError, "default_prompt_name"),
        ("", prompts("none"), CheckpointError, "expected the name of a prompt"),
        ("", prompts([]), CheckpointError, "expected the name of a prompt"),
        ("", {"config_sentence_transformers.json": {"prompts": ["a"]}}, CheckpointError, "expected texts by name"),
        ("", {"modules.json": {}}, CheckpointError, "modules"),
        ("optimum: {max_length: 65}", {}, CheckpointError, "at most 64"),
        ("", without("hidden_size"), CheckpointError, "hidden_size"),
        ("", without(is_encoder_decoder=True), CheckpointError, "expected an encoder"),
        ("", without(auto_map={"AutoModel": "a.B"}), CheckpointError, "auto_map"),
        ("", without(vocab_size=5), CheckpointError, "vocab_size"),
        ("", {"model.safetensors": None, "pytorch_model.bin": {}}, CheckpointError, "pickle"),
        ("optimum: {task: text-classification}", without(id2label={"1": "a"}), CheckpointError, "id2label"),
        ("optimum: {task: text-classification}", without("id2label", num_labels=0), CheckpointError, "num_labels"),
        ("optimum: {quantization: static, calibration: none.txt}", {}, RecipeError, "none.txt: .*: No such file"),
        ("optimum: {quantization: static, calibration: .}", {}, RecipeError, "but: Is a directory"),
        ("", {"model.safetensors": {}}, CheckpointError, "model.safetensors"),
        ("", {"modules.json": []}, CheckpointError, "found none"),
        ("accept: {size_mb: 0.0001}", {}, FidelityError, "size_mb"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    export: Any, tmp_path: Path, text: str, files: dict[str, Any], kind: type[EdgeshipError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        export(text, files)
    assert not (tmp_path / "out").exists()
    if kind is not FidelityError:
        assert not (export.environment.directory / "asked.json").exists(), "it was refused after the long work"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_cut_short_it_leaves_nothing(
    export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(optimum, "write_manifest", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises((KeyboardInterrupt, ResourceError)):
        export()
    assert not (tmp_path / "out").exists()


def test_one_too_far_from_the_float_model_is_not_sealed(export: Any, tmp_path: Path) -> None:
    with pytest.raises(FidelityError, match=r"expected at least 0\.99 to the float model, found"):
        export("accept: {cosine: 0.99}", far="mirrored")
    assert not list((tmp_path / "out").rglob("edgeship.json"))


@pytest.mark.parametrize(
    ("text", "default", "said"),
    [
        ("", True, "{quantization: none} keeps float32"),
        ("accept: {cosine: 0.9}", False, "{quantization: none} keeps float32"),
        ("optimum: {per_channel: false}", True, "dynamic with per_channel: true loses least"),
        ("optimum: {quantization: none}", True, "the graph itself answers otherwise"),
    ],
)
def test_what_would_come_closer_is_not_what_was_done(export: Any, text: str, default: bool, said: str) -> None:
    with pytest.raises(FidelityError) as caught:
        export(text, far="mirrored")
    assert said in str(caught.value.hint)
    assert ("(the default)" in caught.value.message) == default


def test_the_text_that_is_too_far_is_readable() -> None:
    place = next(i for i, text in enumerate(TEXTS) if "東京" in text)
    one = np.ones(2, np.float32)
    pairs = [(one, -one if i == place else one) for i in range(len(TEXTS))]
    for close in (lambda: _embedded(pairs, recipe()), lambda: _classified(Scores(("a", "b"), "none"), pairs, recipe())):
        with pytest.raises(FidelityError, match=f'at "{TEXTS[place]}"'):
            close()


def named(labels: int, **more: Any) -> dict[str, Any]:
    return without(id2label={str(i): f"LABEL_{i}" for i in range(labels)}, **more)


CLASSIFY = "optimum: {task: text-classification}"


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (1, "single_label_classification"),
        (1, "regression"),
        (2, "single_label_classification"),
        (3, "multi_label_classification"),
    ],
)
def test_a_classifier_of_few_labels_is_compared_by_its_logits(
    export: Any, tmp_path: Path, labels: int, problem: str
) -> None:
    files = named(labels, problem_type=problem)
    for far in ("flipped", "far off", "a tenth", "the same"):
        with pytest.raises(
            FidelityError, match=r"expected at least 0\.95 \(the default\) of the logits .* they differ most, by"
        ):
            export(CLASSIFY, files, labels=labels, far=far)
        assert not list((tmp_path / "out").rglob("edgeship.json"))
    directory = export(CLASSIFY, files, labels=labels)
    assert json.loads((directory / "acceptance" / "encoder.json").read_text())["schema"] == 2
    verdict = verify(directory)
    assert (verdict.verdict, verdict.failures) == ("pass", ())


def test_labels_that_are_only_counted_have_transformers_names(export: Any) -> None:
    files = without("id2label", num_labels=4)
    with load(export(CLASSIFY, files, labels=4)) as model:
        assert {each.name for each in model.classify("the cat")[0]} == {f"LABEL_{i}" for i in range(4)}


def test_a_classifier_with_a_decoder_is_not_sent_to_another_task(export: Any) -> None:
    with pytest.raises(CheckpointError, match="expected an encoder") as caught:
        export(CLASSIFY, without(is_encoder_decoder=True, architectures=["BartForSequenceClassification"]))
    assert "classifiers with a decoder are not exported" in str(caught.value.hint)


def test_positions_of_roberta_begin_after_its_padding(export: Any) -> None:
    directory = export("", without(model_type="roberta", max_position_embeddings=34, pad_token_id=1))
    assert read_manifest(directory).model.context_length == 32


def test_a_tokenizer_without_a_limit_reads_as_much_as_the_model(export: Any) -> None:
    directory = export("", {"tokenizer_config.json": {"model_max_length": NO_LIMIT}})
    assert read_manifest(directory).model.context_length == 64
    assert verify(directory).verdict == "pass"


@pytest.mark.parametrize("default", [None, "plain"])
def test_prompts_are_told_and_left_to_people(export: Any, default: Any) -> None:
    listed = '"query: " (query), "passage: " (document)'
    directory = export("", prompts(default), heard=(heard := Listener()))
    for text in ("\n".join(heard.notes), (directory / "README.md").read_text()):
        assert f"begin them with the model's prompts yourself: {listed}" in text
        assert "plain" not in text


def test_prompts_that_the_mean_leaves_out_cannot_be_used(export: Any) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    directory = export("", prompts() | {"1_Pooling/config.json": pooling})
    assert "with its prompts the model cannot be used here" in (directory / "README.md").read_text()


def test_lowercasing_is_left_to_a_tokenizer_that_does_it(export: Any, tmp_path: Path) -> None:
    lower = {"sentence_bert_config.json": {"do_lower_case": True}}
    assert export("", lower).is_dir()
    write_words(tmp_path / "checkpoint", cased=True)
    with pytest.raises(CheckpointError, match="do_lower_case: expected a tokenizer that does it"):
        export("", force=True)


def test_an_artifact_that_is_there_is_kept(export: Any) -> None:
    export()
    with pytest.raises(ArtifactError, match="exists already"):
        export()
    assert export(force=True).is_dir()


def test_after_an_interrupt_it_starts_over(export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(directory: Path, _: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporters.optimum, "write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export()
    assert not (tmp_path / "out" / "mine" / "onnx").exists()
    assert verify(export()).verdict == "pass"
    assert [path.name for path in (tmp_path / "out" / "mine").iterdir()] == ["onnx"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(tmp_path / "environments", "optimum", monkeypatch)
    source = checkpoint(tmp_path / "checkpoint")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("source: {repo: me/mine}\nexporter: optimum\n")

    def run(*arguments: str) -> Ended:
        code = cli.run([*arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    planned = run("plan", str(recipe))
    assert (planned.code, "feature-extraction" in planned.out) == (0, True)
    assert json.loads(run("plan", str(recipe), "--json").out)["recipe"]["exporter"] == "optimum"
    assert run("plan", str(recipe), "--device", "raspberry-pi-5-8gb").code == 4
    made = run("export", str(recipe), "--checkpoint", str(source), "--out", str(tmp_path / "out"))
    assert made.code == 0
    assert "edgeship-runtime embed" in made.out
    assert "cosine similarity" in made.err
    evaluated = run("evaluate", str(tmp_path / "out" / "mine"), "--reference", str(source))
    assert (evaluated.code, "found one for feature-extraction" in evaluated.err) == (2, True)
    refused = run("export", str(recipe), "--checkpoint", str(source), "--format", "gguf", "--json")
    assert (refused.code, json.loads(refused.out)["error"]["kind"]) == (2, "usage")
    monkeypatch.setenv("EDGESHIP_EXPORTERS", str(tmp_path / "none"))
    missing = run("export", str(recipe), "--checkpoint", str(source), "--force", "--out", str(tmp_path / "out"))
    assert (missing.code, "edgeship install-exporter optimum" in missing.err) == (10, True)
