"""Acceptance files: what the conversations cover, how they render, and golden tokens that an oracle agrees with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import tolerances
from checkpoints import CHAT_TEMPLATE
from edgeship.acceptance.chats import _cases, prompts, write_chats
from edgeship.acceptance.golden import SAMPLE, golden_tokens, write_golden
from edgeship.archs.base import Decoder
from edgeship.errors import CheckpointError
from edgeship.formats.gguf.vocabulary import taken_for_ends
from edgeship.reference.weights import CheckpointWeights
from edgeship_runtime.acceptance import GOLDEN
from edgeship_runtime.chat import ChatTemplate
from reference_models import opened

IDS = {"add_special_tokens": False}


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> tuple[Decoder, CheckpointWeights]:
    return opened(checkpoint)


def chats(directory: Path, template: ChatTemplate | None, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    written = json.loads(write_chats(directory, template, tokenizer).read_text())
    assert written["schema"] == 1
    return list(written["cases"])


def test_ids_by_llamacpp_where_a_plain_token_is_an_end_to_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = json.loads(tokenizer.to_str())
    raw["model"]["vocab"]["</s>"] = 999
    plain = Tokenizer.from_str(json.dumps(raw))
    ends = taken_for_ends(plain)
    assert ends == {"</s>": 999}
    written = json.loads(write_chats(tmp_path, ChatTemplate(CHAT_TEMPLATE), plain, ends).read_text())["cases"]
    plain.add_special_tokens(["</s>"])
    (case,) = (case for case in written if "gguf_token_ids" in case)
    assert "</s>" in case["rendered"]
    assert case["gguf_token_ids"] == plain.encode(case["rendered"], **IDS).ids
    assert 999 in case["gguf_token_ids"]
    assert 999 not in case["token_ids"]
    assert taken_for_ends(plain) == taken_for_ends(tokenizer) == {}


def test_the_conversations_cover_what_templates_and_tokenizers_get_wrong() -> None:
    cases = _cases()["chats"]
    assert len(cases) >= 20
    assert len({case["name"] for case in cases}) == len(cases)
    messages = [message for case in cases for message in case["messages"]]
    text = "".join(message["content"] for message in messages)
    assert {message["role"] for message in messages} == {"system", "user", "assistant", "tool"}
    assert {case.get("enable_thinking") for case in cases} == {None, True, False}
    assert {case.get("add_generation_prompt", True) for case in cases} == {True, False}
    assert any(case.get("tools") for case in cases)
    assert any("tool_calls" in message for message in messages)
    assert any(len(case["messages"]) > 5 for case in cases)
    assert any(not message["content"] for message in messages)
    for piece in (
        "你",
        "こ",
        "안",
        "👨‍👩‍👧‍👦",
        "\u202b",
        "ש",
        "e\u0301",
        "\t",
        "\r\n",
        " " * 12,
        "{{",
        "<b>",
        "<|im_end|>",
        "```",
    ):
        assert piece in text, piece


def test_chats_render_and_encode_as_transformers_does(checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    for case in chats(tmp_path, ChatTemplate(CHAT_TEMPLATE), tokenizer):
        thinking = {} if case["enable_thinking"] is None else {"enable_thinking": case["enable_thinking"]}
        want = oracle.apply_chat_template(
            case["messages"], tools=case["tools"], chat_template=CHAT_TEMPLATE, tokenize=False,
            add_generation_prompt=case["add_generation_prompt"], **thinking,
        )  # fmt: skip
        assert case["rendered"] == want, case["name"]
        assert case["token_ids"] == oracle(want, **IDS)["input_ids"], case["name"]


def test_a_refused_conversation_is_kept_with_its_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = ChatTemplate("{% if tools %}{{ raise_exception('no tools here') }}{% endif %}{{ messages[0].content }}")
    cases = chats(tmp_path, template, tokenizer)
    refused = [case for case in cases if "error" in case]
    assert {case["name"] for case in refused} == {case["name"] for case in cases if case["tools"]}
    assert all("no tools here" in case["error"] and "rendered" not in case for case in refused)


def test_dates_do_not_change_a_rendering(tokenizer: Tokenizer, tmp_path: Path) -> None:
    llama3 = "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
    assert {case["rendered"] for case in chats(tmp_path, ChatTemplate(llama3), tokenizer)} == {"26 Jul 2024"}


def test_without_a_template_there_are_raw_prompts_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert chats(tmp_path, None, tokenizer) == []
    assert [p.name for p in prompts(None, tokenizer)] == ["capital", "week", "story", "opposite", "code"]
    assert len(prompts(ChatTemplate(CHAT_TEMPLATE), tokenizer)) == len(_cases()["prompts"])


def golden(directory: Path, model: tuple[Decoder, CheckpointWeights], given: Any, **options: Any) -> dict[str, Any]:
    options = {"stop": (), "context": 256, "tie_tolerance": 0.1} | options
    write_golden(directory, *model, given, **options)
    return dict(json.loads((directory / GOLDEN).read_text()))


@pytest.mark.parity
def test_golden_tokens_are_those_transformers_chooses(
    checkpoint: Path, model: tuple[Decoder, CheckpointWeights], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    cases = golden(tmp_path, model, prompts(ChatTemplate(CHAT_TEMPLATE), tokenizer))["cases"]
    assert len(cases) == 8
    for case in cases:
        tokens = case["prompt_ids"] + case["continuation"]
        with torch.no_grad():
            logits = oracle(torch.tensor([tokens])).logits[0].numpy()
        first = len(case["prompt_ids"]) - min(8, len(case["prompt_ids"]))
        assert [p["index"] for p in case["positions"]] == list(range(first, len(tokens) - 1))
        assert len(case["continuation"]) == 24
        for position in case["positions"]:
            at = logits[position["index"]]
            assert position["top_ids"] == np.argsort(-at, kind="stable")[:5].tolist()
            np.testing.assert_allclose(position["top_logits"], at[position["top_ids"]], atol=tolerances.GOLDEN_DECIMALS)
            np.testing.assert_allclose(position["std"], at.std(), atol=tolerances.GOLDEN_DECIMALS)
            if position["index"] >= len(case["prompt_ids"]) - 1:
                assert tokens[position["index"] + 1] == position["top_ids"][0]


def test_a_stop_token_ends_its_case_and_no_other(
    model: tuple[Decoder, CheckpointWeights], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    given = prompts(None, tokenizer)
    free = golden(tmp_path, model, given)["cases"]
    stop = free[1]["continuation"][0]
    for before, after in zip(free, golden(tmp_path, model, given, stop=(stop,))["cases"], strict=True):
        tokens = before["continuation"]
        wanted = tokens[: tokens.index(stop) + 1] if stop in tokens else tokens
        assert after["continuation"] == wanted
        assert after["positions"][-1]["index"] == len(after["prompt_ids"]) + len(wanted) - 2
    everything = golden(tmp_path, model, given, stop=range(320))["cases"]
    assert [len(case["continuation"]) for case in everything] == [1] * len(given)


@pytest.mark.parametrize("ending", [False, True])
def test_all_logits_are_kept_at_some_places(
    model: tuple[Decoder, CheckpointWeights], tokenizer: Tokenizer, tmp_path: Path, ending: bool
) -> None:
    given = prompts(ChatTemplate(CHAT_TEMPLATE), tokenizer)
    stop = range(320) if ending else ()
    kept = write_golden(tmp_path, *model, given, stop=stop, context=256, tie_tolerance=0.1)
    cases = json.loads((tmp_path / GOLDEN).read_text())["cases"]
    every = {(number, p["index"]): p for number, case in enumerate(cases) for p in case["positions"]}
    assert (len(given) if ending else SAMPLE // 2) < len(kept) <= SAMPLE < len(every)
    for place, logits in kept.items():
        assert logits.shape == (model[0].vocab_size,)
        best = np.argsort(-logits, kind="stable")[:5]
        assert best.tolist() == every[place]["top_ids"]
        assert np.round(logits[best].astype(float), 4).tolist() == every[place]["top_logits"]


def test_prompts_that_do_not_fit_the_context_are_left_out(
    model: tuple[Decoder, CheckpointWeights], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    given = prompts(ChatTemplate(CHAT_TEMPLATE), tokenizer)
    lengths = sorted(len(p.ids) for p in given)
    kept = golden(tmp_path, model, given, context=lengths[2] + 24)["cases"]
    assert sorted(len(case["prompt_ids"]) for case in kept) == lengths[:3]
    assert golden(tmp_path, model, given, context=16)["cases"] == []


def test_the_same_input_gives_the_same_bytes(
    model: tuple[Decoder, CheckpointWeights], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = []
    for name, threads in (("a", 1), ("b", 3)):
        (tmp_path / name).mkdir()
        given = prompts(ChatTemplate(CHAT_TEMPLATE), tokenizer)
        write_golden(tmp_path / name, *model, given, stop=(), context=256, tie_tolerance=0.1, threads=threads)
        written = tmp_path / name / GOLDEN
        files.append(
            (written.read_bytes(), write_chats(tmp_path / name, ChatTemplate(CHAT_TEMPLATE), tokenizer).read_bytes())
        )
    assert files[0] == files[1]


def test_a_model_that_answers_with_no_numbers_is_refused(
    model: tuple[Decoder, CheckpointWeights], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    class Broken(CheckpointWeights):
        def vector(self, key: str) -> NDArray[np.float32]:
            return super().vector(key) * np.float32(np.nan if key == "norm.weight" else 1)

    broken = (model[0], Broken(model[1]._tensors))
    with pytest.raises(CheckpointError, match="expected finite logits"):
        golden(tmp_path, broken, prompts(None, tokenizer))
    assert not (tmp_path / "acceptance").exists()


@pytest.mark.parametrize(
    ("weights", "tokens"), [(1_000, 24), (100_000_000, 24), (494_000_000, 5), (1_540_000_000, 2), (70_000_000_000, 2)]
)
def test_the_work_is_bounded(weights: int, tokens: int) -> None:
    assert golden_tokens(weights) == tokens
