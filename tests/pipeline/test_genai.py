"""genai_config.json and inference_model.json: what onnxruntime-genai and Foundry Local read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints import write_checkpoint
from edgeship.formats.onnx.genai import genai_config, inference_model
from edgeship.plan import Plan, make_plan
from edgeship.tokenizer import SpecialTokens
from edgeship_runtime.chat import ChatTemplate
from exports import FLOAT32, export, recipe

CONFIG = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 320, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "max_position_embeddings": 256,
}  # fmt: skip


def plan(**fields: Any) -> Plan:
    return make_plan(recipe(**fields), CONFIG)


def config(special: SpecialTokens = SpecialTokens(1, (2, 3), 4), tokens: tuple[str, ...] = (), **fields: Any) -> Any:  # noqa: B008
    found = {token: 10 + i for i, token in enumerate(tokens)}
    return genai_config(plan(**fields), special, found.get)


def test_sizes_and_lengths_are_the_plans() -> None:
    model, search = config(context=64)["model"], config(context=64)["search"]
    decoder = model["decoder"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("qwen3", 320, 256)
    assert (decoder["head_size"], decoder["hidden_size"]) == (16, 64)
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (4, 2, 2)
    assert (search["max_length"], search["past_present_share_buffer"]) == (64, True)


def test_special_tokens() -> None:
    model = config()["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 3], 4)
    model = config(SpecialTokens(None, (2, 3), None))["model"]
    assert (model["bos_token_id"], model["pad_token_id"]) == (2, 2)


def test_tool_and_thinking_markers_are_named_where_the_tokenizer_has_them() -> None:
    assert config(tokens=("<tool_call>", "</tool_call>"))["model"]["eot_token_id"] == 11
    assert "bot_token_id" not in config()["model"]
    assert config(tokens=("<think>", "</think>"))["model"]["bor_token_id"] == 10


def test_sampling_comes_from_the_recipe_within_what_genai_takes() -> None:
    search = config(sampling={"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1})["search"]
    assert (search["do_sample"], search["temperature"], search["top_k"], search["top_p"]) == (True, 0.7, 20, 0.8)
    assert search["repetition_penalty"] == 1.1
    assert config(sampling={"temperature": 0.0})["search"]["do_sample"] is False
    assert config(sampling={"top_k": 1000})["search"]["top_k"] == 320


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("<user>{{ messages[0].content }}<bot>", "<user>{Content}<bot>"),
        ("{{ raise_exception('no') }}", "{Content}"),
        (None, "{Content}"),
    ],
)
def test_foundry_local_gets_one_chat_turn(template: str | None, prompt: str) -> None:
    assert inference_model("tiny", ChatTemplate(template) if template else None) == {
        "Name": "tiny",
        "PromptTemplate": {"assistant": "{Content}", "prompt": prompt},
    }


@pytest.mark.parity
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_genai_loads_the_directory_and_continues_as_the_reference_does(model_type: str, tmp_path: Path) -> None:
    import onnxruntime_genai as og

    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type)
    artifact = export(checkpoint, tmp_path / "out", scheme=FLOAT32)
    model = og.Model(str(artifact))
    tokenizer = og.Tokenizer(model)
    assert list(tokenizer.encode("The cat sat.")) == _ids(checkpoint, "The cat sat.")
    ends = json.loads((artifact / "genai_config.json").read_text())["model"]["eos_token_id"]
    for case in json.loads((artifact / "acceptance/golden.json").read_text())["cases"]:
        prompt, more = case["prompt_ids"], case["continuation"]
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=len(prompt) + len(more), repetition_penalty=1.0)
        generator = og.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        assert list(generator.get_sequence(0))[len(prompt) :] == [t for t in more if t not in ends], case["name"]
    turn = json.loads((artifact / "inference_model.json").read_text())["PromptTemplate"]["prompt"]
    rendered = tokenizer.apply_chat_template(
        json.dumps([{"role": "user", "content": "Hi!"}]), add_generation_prompt=True
    )
    assert turn.replace("{Content}", "Hi!") == rendered


def _ids(checkpoint: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids)
