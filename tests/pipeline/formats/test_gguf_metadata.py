"""What a GGUF's header says beyond what the converter would: recipe, provenance, file types, templates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

import ggufs
from checkpoints import CHAT_TEMPLATE, write_checkpoint
from edgeship.encodings import ENCODINGS
from edgeship.formats.gguf.metadata import KeyValue, file_label, file_name, make_metadata
from edgeship.formats.gguf.vocabulary import Vocabulary
from edgeship.plan import Plan, make_plan
from exports import recipe

VOCABULARY = Vocabulary("qwen2", ("a", "b"), (1, 1), ("a b",), {"eos": 1}, {"eos": False, "cls": True}, None)
HUB = {"host": "huggingface", "repo": "Qwen/Qwen2.5-0.5B-Instruct", "revision": "main"}


def plan(**fields: Any) -> Plan:
    """A plan for Qwen2.5-0.5B's config."""
    config = {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "hidden_act": "silu",
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    }  # fmt: skip
    return make_plan(recipe(**fields), config)


def values(made: Plan, files: dict[str, bytes] | None = None, revision: str = "local") -> dict[str, Any]:
    return {kv.key: kv.value for kv in make_metadata(made, VOCABULARY, files or {}, revision)}


def test_every_kind_of_value_is_written_as_gguf_writes_it(tmp_path: Path) -> None:
    made = [
        KeyValue("a.text", GGUFValueType.STRING, "grüß 你好"),
        KeyValue("a.whole", GGUFValueType.UINT32, 1 << 31),
        KeyValue("a.signed", GGUFValueType.INT32, -1),
        KeyValue("a.real", GGUFValueType.FLOAT32, 1e-6),
        KeyValue("a.flag", GGUFValueType.BOOL, True),
        KeyValue("a.texts", GGUFValueType.STRING, ("", "é", "x" * 300)),
        KeyValue("a.numbers", GGUFValueType.INT32, (1, -2, 3)),
    ]
    writer = GGUFWriter(tmp_path / "theirs.gguf", "qwen2")
    for kv in made:
        if isinstance(kv.value, tuple):
            writer.add_array(kv.key, kv.value)
        else:
            writer.add_key_value(kv.key, kv.value, kv.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    theirs = (tmp_path / "theirs.gguf").read_bytes()
    assert theirs.endswith(b"".join(kv.encode() for kv in made))


def test_sampling_is_the_recipes() -> None:
    found = values(plan(sampling={"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}))
    assert {k: v for k, v in found.items() if k.startswith("general.sampling")} == {
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.8,
        "general.sampling.min_p": 0.0,
        "general.sampling.temp": 0.7,
        "general.sampling.penalty_last_n": -1,
        "general.sampling.penalty_repeat": 1.05,
    }
    assert "general.sampling.penalty_last_n" not in values(plan())


class TestProvenance:
    def test_from_the_hub(self) -> None:
        found = values(plan(source=HUB), {"LICENSE": b"Apache License\nVersion 2.0, January 2004"}, "abc123")
        expected = {
            "general.name": "Qwen2.5 0.5B Instruct",
            "general.organization": "Qwen",
            "general.basename": "Qwen2.5",
            "general.finetune": "Instruct",
            "general.size_label": "0.5B",
            "general.license": "apache-2.0",
            "general.source.url": "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/tree/abc123",
            "general.source.repo_url": "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct",
            "general.base_model.count": 1,
            "general.base_model.0.name": "Qwen2.5 0.5B Instruct",
            "general.base_model.0.organization": "Qwen",
            "general.base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct",
            "general.quantization_version": 2,
        }
        assert {k: found.get(k) for k in expected} == expected
        assert found["general.quantized_by"].startswith("edgeship ")

    def test_from_modelscope(self) -> None:
        found = values(plan(source={**HUB, "host": "modelscope"}), revision="v1")
        url = "https://modelscope.cn/models/Qwen/Qwen2.5-0.5B-Instruct"
        assert (found["general.source.repo_url"], found["general.source.url"]) == (url, f"{url}/files?version=v1")

    def test_from_a_directory_nothing_is_linked(self) -> None:
        found = values(plan())
        assert not any("url" in key for key in found)
        assert found["general.size_label"] == "494M"
        found = values(plan(source=HUB), revision="local")  # --checkpoint in place of the hub's files
        assert "general.source.url" not in found

    def test_another_license_is_named_by_its_first_line(self) -> None:
        found = values(plan(), {"LICENSE": b"\n  Qwen RESEARCH LICENSE AGREEMENT\n\nQwen"})
        assert (found["general.license"], found["general.license.name"]) == ("other", "Qwen RESEARCH LICENSE AGREEMENT")
        assert "general.license" not in values(plan())


class TestFileType:
    @pytest.mark.parametrize("name", [name for name, e in ENCODINGS.items() if e.gguf])
    def test_every_type_has_one(self, name: str) -> None:
        made = plan()
        made = replace(made, tensors=tuple(replace(t, encoding=ENCODINGS[name]) for t in made.tensors))
        kind = LlamaFileType(values(made)["general.file_type"])
        assert (ENCODINGS[name].gguf or "") in kind.name
        assert file_label(made) == ENCODINGS[name].gguf

    def test_the_body_decides_and_names_the_file(self) -> None:
        made = plan(source=HUB, scheme={"body": "int4", "embeddings": "int8", "head": "int8"})
        assert values(made)["general.file_type"] == LlamaFileType.MOSTLY_Q4_0
        assert file_name(made) == "Qwen2.5-0.5B-Instruct-Q4_0.gguf"

    def test_a_mix_has_its_own(self) -> None:
        made = plan(source=HUB, scheme={"mix": "Q4_K_M"}, formats=["gguf"])
        assert values(made)["general.file_type"] == LlamaFileType.MOSTLY_Q4_K_M
        assert file_name(made) == "Qwen2.5-0.5B-Instruct-Q4_K_M.gguf"


def test_templates_by_name() -> None:
    files = {
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "additional_chat_templates/tool-use.jinja": b"tools",
        "additional_chat_templates/rag.jinja": b"documents",
    }
    found = values(plan(), files)
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert found["tokenizer.chat_templates"] == ("rag", "tool_use")
    assert found["tokenizer.chat_template.tool_use"] == "tools"
    assert not any("template" in key for key in values(plan()))


def test_yarn_of_a_recipe_is_written_as_if_config_json_said_it(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c")
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    ggufs.write_gguf(checkpoint, tmp_path / "m.gguf", rope_scaling=scaling)
    fields = GGUFReader(tmp_path / "m.gguf").fields
    found = {k.removeprefix("qwen2."): f.contents() for k, f in fields.items() if "rope" in k or "context" in k}
    assert found == {
        "context_length": 1024,
        "rope.freq_base": 10000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 256,
    }


def test_head_size_is_written_where_it_does_not_follow(tmp_path: Path) -> None:
    for head_dim, written in ((16, False), (32, True)):
        checkpoint = write_checkpoint(tmp_path / str(head_dim), head_dim=head_dim)
        ggufs.write_gguf(checkpoint, tmp_path / "m.gguf")
        assert ("qwen2.attention.key_length" in GGUFReader(tmp_path / "m.gguf").fields) is written


def test_prefixes_and_bos_of_llama(tmp_path: Path) -> None:
    made = replace(plan(), decoder=replace(plan().decoder, model_type="llama", vocab_size=49152))
    vocabulary = replace(VOCABULARY, add_space_prefix=False)
    found = {kv.key: kv.value for kv in make_metadata(made, vocabulary, {})}
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert found["tokenizer.ggml.add_bos_token"] is False, "as the converter has it for SmolLM's vocabulary"
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert (found["llama.vocab_size"], found["llama.rope.dimension_count"]) == (49152, 64)
    assert "tokenizer.ggml.add_space_prefix" not in values(plan())
