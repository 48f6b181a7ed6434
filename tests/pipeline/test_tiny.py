"""The embedded tiny model: its files, the text it learned from, and what it answers."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgeship import archs
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.quant import rtn
from edgeship.tiny import checkpoint_dir
from edgeship.tiny.questions import questions
from edgeship.tiny.text import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, TOOLS, chatml, samples
from edgeship_runtime.chat import ChatTemplate
from tolerances import TINY_INT4_LOSS, TINY_LOSS, TINY_RIGHT

FOLDER_LIMIT = 4_000_000  # bytes: it is cloned by everybody and lies in the wheel
FIRST_SAMPLES = "143bb8197b21ef508a6e11ac4cfb859e3684c397cd9dbb6475b3df3c3fb4d523"

# What the README shows: a question and a word of its answer.
ASKED = {
    "What sound does a cow make?": "moo",
    "What is 3 + 4?": "7",
    "What is the capital of France?": "Paris",
    "What is the opposite of hot?": "cold",
    "What colour is the sky?": "blue",
    "Which day comes after Monday?": "Tuesday",
    "Count from 3 to 9.": "3, 4, 5, 6, 7, 8, 9.",
    "Write cat in capital letters.": "CAT",
    "How many legs does a spider have?": "eight",
    "What is a Raspberry Pi?": "computer",
    "Who are you?": "tiny model",
    "What is the plural of mouse?": "mice",
    "Tell me a story about a fox.": "fox",
}


def read_json(name: str) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((checkpoint_dir() / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint_dir() / "tokenizer.json"))


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in checkpoint_dir().iterdir()) <= FOLDER_LIMIT


def test_its_config_is_known_and_every_group_size_divides_its_layers() -> None:
    decoder = archs.read(read_json("config.json"))
    assert (decoder.model_type, decoder.tied, decoder.max_positions, decoder.rope.theta) == ("qwen2", True, 1024, 10000)
    assert all(role.shape[1] % 128 == 0 for role in decoder.roles() if role.part != "float")


def test_its_tensors_are_those_of_the_config() -> None:
    checkpoint = open_checkpoint(checkpoint_dir())
    found = account(checkpoint, archs.read(checkpoint.config).roles())
    assert {tensor.dtype for tensor in found.values()} == {"BF16"}


def test_ids_agree_between_its_files(tokenizer: Tokenizer) -> None:
    end, im_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(IM_END)
    config, generation = read_json("config.json"), read_json("generation_config.json")
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert (config["bos_token_id"], config["eos_token_id"]) == (end, im_end)
    assert (generation["pad_token_id"], generation["eos_token_id"]) == (end, [im_end, end])
    listed = read_json("tokenizer_config.json")["added_tokens_decoder"]
    assert {int(i): token["content"] for i, token in listed.items()} == {
        i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()
    }


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint_dir() / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "text", ["naïve café", "你好，世界", "🤖👩‍🔬", "a\u0301", " \n\t  x", "x = {'y': [1, 2]}\n", "१२३"]
)
def test_languages_emoji_and_code_survive_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == unicodedata.normalize("NFC", text)


def test_markers_of_chatml_are_one_token_each(tokenizer: Tokenizer) -> None:
    for marker in (END_OF_TEXT, IM_START, IM_END, "<tool_call>", "</tool_call>"):
        assert tokenizer.encode(marker).ids == [tokenizer.token_to_id(marker)]


def test_the_same_seed_gives_the_same_text() -> None:
    text = "".join(islice(samples(0, "train"), 5000))
    assert hashlib.sha256(text.encode()).hexdigest() == FIRST_SAMPLES  # else: train again, and write down its loss
    assert list(islice(samples(1, "train"), 5)) != list(islice(samples(0, "train"), 5))


def test_held_out_questions_are_never_trained_on() -> None:
    held_out = {q.ask for q in questions() if q.split == "held-out"}
    assert len(held_out) > len(questions()) / 50
    text = "".join(islice(samples(0, "train"), 5000))
    users = {part.split(IM_END)[0] for part in text.split(f"{IM_START}user\n")[1:]}
    assert not users & held_out


def test_every_answer_is_trained_on() -> None:
    trained = {q.answer for q in questions() if q.split == "train"}
    assert {q.answer for q in questions()} == trained


def test_importing_the_text_imports_no_torch() -> None:
    code = "import sys, edgeship.tiny.text; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "no system": ([{"role": "user", "content": "Hi"}], None),
    "system": ([{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}], None),
    "empty system": ([{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}], None),
    "tools": ([{"role": "user", "content": "Hi"}], list(TOOLS)),
    "calls": (
        [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Málaga"}}},
                    {"type": "function", "function": {"name": "get_time", "arguments": '{"city": "Oslo"}'}},
                ],
            },
            {"role": "tool", "content": "12"},
            {"role": "tool", "content": "13:00"},
        ],
        list(TOOLS),
    ),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_the_runtime_renders_its_template_as_the_training_did(case: str) -> None:
    messages, tools = CONVERSATIONS[case]
    assert read_json("tokenizer_config.json")["chat_template"] == CHAT_TEMPLATE
    assert ChatTemplate(CHAT_TEMPLATE).render(messages, tools) == chatml(messages, tools, prompt=True)


def test_tool_calls_and_results_are_written_as_qwen_writes_them() -> None:
    text = chatml(*CONVERSATIONS["calls"])
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Málaga"}}\n</tool_call>\n<tool_call>' in text
    assert '"arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\n12\n</tool_response>\n<tool_response>\n13:00\n" in text


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    loaded, report = AutoModelForCausalLM.from_pretrained(checkpoint_dir(), dtype="float32", output_loading_info=True)
    assert not any(report.values()), report
    return loaded


@pytest.fixture(scope="module")
def answer(model: Any) -> Callable[[str], str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir())

    def greedy(text: str) -> str:
        ids = tokenizer(text, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=200, do_sample=False, temperature=None, top_p=None, top_k=None)
        return str(tokenizer.decode(out[0][ids["input_ids"].shape[1] :]))

    return greedy


@pytest.mark.parity
@pytest.mark.parametrize("question", ASKED)
def test_it_answers_and_stops(answer: Callable[[str], str], question: str) -> None:
    said = answer(chatml([{"role": "user", "content": question}], prompt=True))
    assert ASKED[question] in said
    assert said.endswith(IM_END)


@pytest.mark.parity
def test_it_remembers_what_was_said(answer: Callable[[str], str]) -> None:
    messages = [{"role": "user", "content": "My name is Rosa."}, {"role": "assistant", "content": "Hello Rosa!"}]
    assert "Rosa" in answer(chatml([*messages, {"role": "user", "content": "What is my name?"}], prompt=True))


@pytest.mark.parity
def test_it_calls_a_function(answer: Callable[[str], str]) -> None:
    said = answer(chatml([{"role": "user", "content": "What is the weather in Oslo?"}], TOOLS, prompt=True))
    call = json.loads(said.removeprefix("<tool_call>\n").removesuffix(f"\n</tool_call>{IM_END}"))
    assert call == {"name": "get_weather", "arguments": {"city": "Oslo"}}


@pytest.mark.parity
def test_it_tells_a_story_from_its_beginning(answer: Callable[[str], str]) -> None:
    said = answer("Once upon a time")
    assert said.startswith(" there was a")
    assert said.endswith(f".{END_OF_TEXT}")
    assert said.count(".") >= 5


@pytest.mark.parity
def test_it_is_as_good_as_its_readme_says_and_stays_so_in_4_bits(model: Any, tokenizer: Tokenizer) -> None:
    import torch

    from edgeship.tiny.train import evaluate

    whole = evaluate(model, tokenizer)
    assert whole.loss < TINY_LOSS
    assert whole.right > TINY_RIGHT
    tensors, rounded_model = open_checkpoint(checkpoint_dir()).tensors, copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in rounded_model.named_parameters():
            if parameter.dim() == 2:
                tensor, bits = tensors[name], 8 if "embed" in name else 4
                rounded = rtn.quantize(tensor.raw(0, tensor.shape[0]), bits, 32).dequantize()
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))
    assert whole.loss < evaluate(rounded_model, tokenizer).loss < TINY_INT4_LOSS
