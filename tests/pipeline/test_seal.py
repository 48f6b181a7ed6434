"""What lies beside the weights: the right files with the right bytes, or one error that names file and token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoints import CHAT_TEMPLATE, write_checkpoint
from edgeship.errors import CheckpointError
from edgeship_runtime.manifest import check_files, read_manifest
from edgeship_runtime.verify import verify
from exports import FLOAT32, export

FILES = {
    "README.md", "acceptance/chats.json", "acceptance/fidelity.json", "acceptance/golden.json", "chat_template.jinja",
    "edgeship.json", "genai_config.json", "generation_config.json", "inference_model.json", "model.onnx",
    "model.onnx.data", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("out"))


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def front_matter(artifact: Path) -> dict[str, Any]:
    _, front, body = (artifact / "README.md").read_text().split("---\n", 2)
    assert body.startswith("\n# case\n")
    return dict(yaml.safe_load(front))


def test_the_directory_holds_what_the_manifest_names_and_nothing_else(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    found = files(artifact)
    assert set(found) == FILES
    assert set(manifest.files) == FILES - {"edgeship.json"}
    assert check_files(artifact, manifest) == []
    assert manifest.files["model.onnx.data"].sha256 == hashlib.sha256(found["model.onnx.data"]).hexdigest()


def test_the_manifest_says_what_was_exported(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert (manifest.name, manifest.format) == ("case", "onnx")
    assert (manifest.source.host, manifest.source.repo, manifest.source.revision) == ("local", "tests/tiny", "local")
    model = manifest.model
    assert (model.type, model.vocab_size, model.layers, model.kv_heads, model.head_dim) == ("qwen2", 320, 2, 2, 16)
    assert (model.context_length, model.default_context) == (256, 128)
    assert (model.bos_token_id, model.eos_token_ids, model.pad_token_id) == (317, (319, 317), 317)
    assert manifest.weights.parts == {"body": "int4-32", "embeddings": "int8-32", "head": "int8-32"}
    assert "com.microsoft.GroupQueryAttention" in manifest.ops
    assert "path" not in manifest.recipe["source"]


@pytest.mark.parametrize(
    "scheme",
    [
        {},
        {"body": "int8"},
        {"embeddings": "int4", "head": "int8"},
        {"embeddings": "float16", "head": "float32"},
        FLOAT32,
    ],
)
def test_the_artifact_passes_its_own_test(scheme: dict[str, str], checkpoint: Path, tmp_path: Path) -> None:
    verdict = verify(export(checkpoint, tmp_path, scheme=scheme))
    assert verdict.failures == ()
    assert verdict.verdict == "pass"
    assert verdict.agreement is not None
    assert verdict.agreement.positions > 200
    golden = json.loads((tmp_path / "case/onnx/acceptance/golden.json").read_text())
    assert golden["tie_tolerance"] == (0.001 if scheme == FLOAT32 else 0.3)


def test_untied_models_pass_too(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qwen3", tied=False)
    assert verify(export(checkpoint, tmp_path / "out")).verdict == "pass"


def test_tokenizer_files_are_copied_byte_for_byte(artifact: Path, checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (artifact / name).read_bytes() == (checkpoint / name).read_bytes()
    assert (artifact / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_the_same_input_gives_the_same_bytes(artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert files(export(checkpoint, tmp_path / "elsewhere")) == files(artifact)


def test_nothing_written_tells_of_this_machine(artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    for name, content in files(artifact).items():
        for secret in (str(checkpoint), str(artifact.parents[1]), "/tmp/"):
            assert secret.encode() not in content, name


def test_a_template_file_wins_and_named_templates_come_along(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]
    edit(checkpoint / "tokenizer_config.json", lambda c: c.update(chat_template=named))
    artifact = export(checkpoint, tmp_path / "named")
    assert (artifact / "chat_template.jinja").read_text() == "d"
    assert (artifact / "additional_chat_templates/tool_use.jinja").read_text() == "{{ tools | length }} tools"
    rendered = {c["name"]: c["rendered"] for c in json.loads((artifact / "acceptance/chats.json").read_text())["cases"]}
    assert (rendered["one question"], rendered["tools offered"]) == ("d", "2 tools")
    assert verify(artifact).verdict == "pass"
    (checkpoint / "chat_template.jinja").write_bytes(b"from the file\r\n")
    artifact = export(checkpoint, tmp_path / "file")
    assert (artifact / "chat_template.jinja").read_bytes() == b"from the file\r\n"
    assert not (artifact / "additional_chat_templates").exists()


def test_a_base_model_without_template_is_exported(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    edit(checkpoint / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    (checkpoint / "generation_config.json").unlink()
    artifact = export(checkpoint, tmp_path / "out")
    assert set(files(artifact)) == FILES - {"chat_template.jinja", "generation_config.json"}
    assert read_manifest(artifact).model.eos_token_ids == (319,)
    assert json.loads((artifact / "inference_model.json").read_text())["PromptTemplate"]["prompt"] == "{Content}"
    assert verify(artifact).verdict == "pass"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("Apache License\n   Version 2.0, January 2004\n", {"license": "apache-2.0"}),
        ("MIT License\n\nPermission is hereby granted, free of", {"license": "mit"}),
        ("Qwen RESEARCH LICENSE AGREEMENT", {"license": "other", "license_link": "LICENSE"}),
    ],
)
def test_the_licence_comes_along(text: str, fields: dict[str, str], tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "LICENSE").write_text(text)
    artifact = export(checkpoint, tmp_path / "out")
    assert (artifact / "LICENSE").read_text() == text
    card = front_matter(artifact)
    assert {key: value for key, value in card.items() if key.startswith("license")} == fields


def test_the_card_names_model_and_sizes(artifact: Path) -> None:
    card = front_matter(artifact)
    assert (card["base_model"], card["base_model_relation"], card["library_name"]) == (
        "tests/tiny",
        "quantized",
        "onnxruntime",
    )
    assert card["tags"] == ["onnx", "edgeship", "int4", "int8"]
    assert card["quantization"]["body"] == "int4-32"
    assert "license" not in card
    text = (artifact / "README.md").read_text()
    assert "| body | int4-32 | 61.4K | 38.4 KB | 5.00 |" in text


def add_token(values: dict[str, Any], token: str, number: int) -> None:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    values["added_tokens"].append({"id": number, "content": token, **flags})


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tokenizer cut short": (
        lambda c: (c / "tokenizer.json").write_bytes((c / "tokenizer.json").read_bytes()[:3000]),
        r"tokenizer\.json: expected a tokenizer that the tokenizers library loads, found: .*EOF",
    ),
    "tokenizer of another kind": (
        lambda c: (c / "tokenizer.json").write_text("[]"),
        r"tokenizer\.json: expected a tokenizer that the tokenizers library loads",
    ),
    "token beyond the model": (
        lambda c: edit(c / "tokenizer.json", lambda t: add_token(t, "<|one too many|>", 320)),
        r'tokenizer\.json: expected ids below 320 .*found token "<\|one too many\|>" with id 320',
    ),
    "no end": (
        lambda c: (
            edit(c / "generation_config.json", lambda g: g.pop("eos_token_id")),
            edit(c / "config.json", lambda g: g.pop("eos_token_id")),
            edit(c / "tokenizer_config.json", lambda g: g.pop("eos_token")),
        ),
        r"expected eos_token_id in generation_config\.json or config\.json, or eos_token in tokenizer_config\.json",
    ),
    "end beyond the vocabulary": (
        lambda c: edit(c / "generation_config.json", lambda g: g.update(eos_token_id=[319, 320])),
        r'generation_config\.json: eos_token_id: expected token ids from 0 to 319, found "320"',
    ),
    "end that is no number": (
        lambda c: edit(c / "generation_config.json", lambda g: g.update(eos_token_id="<|im_end|>")),
        r"generation_config\.json: eos_token_id: expected token ids",
    ),
    "generation config that is no JSON": (
        lambda c: (c / "generation_config.json").write_text("{'temperature': 1}"),
        r"generation_config\.json: the file is not JSON",
    ),
    "template that does not parse": (
        lambda c: (c / "chat_template.jinja").write_text("{% if messages %}no end"),
        r"the chat template cannot be used",
    ),
    "template that is no text": (
        lambda c: (c / "chat_template.jinja").write_bytes(b"\xff\xfe\x00"),
        r"chat_template\.jinja: the template is not UTF-8",
    ),
    "template of another type": (
        lambda c: edit(c / "tokenizer_config.json", lambda t: t.update(chat_template={"default": "x"})),
        r"tokenizer_config\.json: chat_template: expected text, or a list",
    ),
    "template named like a path": (
        lambda c: edit(
            c / "tokenizer_config.json", lambda t: t.update(chat_template=[{"name": "../x", "template": "x"}])
        ),
        r"tokenizer_config\.json: chat_template: expected text, or a list",
    ),
    "no default template": (
        lambda c: edit(
            c / "tokenizer_config.json", lambda t: t.update(chat_template=[{"name": "rag", "template": "x"}])
        ),
        r"chat_template: expected one named 'default', found \"rag\"",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_said_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    spoil, message = BAD[kind]
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        export(checkpoint, tmp_path / "out")
    assert caught.value.hint
    assert len(str(caught.value)) < 800
    assert files(tmp_path / "out") == {}


def test_the_end_of_a_turn_ends_generation_where_config_knows_only_the_end_of_text(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", eos_token_id=317)
    (checkpoint / "generation_config.json").unlink()
    assert read_manifest(export(checkpoint, tmp_path / "out")).model.eos_token_ids == (317, 319)
