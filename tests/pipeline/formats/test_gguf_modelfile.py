"""The Modelfile, read back as Ollama reads it, and its Go template against the checkpoint's own Jinja template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import go_template
import modelfiles
from checkpoints import CHAT_TEMPLATE, write_checkpoint
from edgeship.acceptance.chats import CASES
from edgeship.checkpoint.checkpoint import open_checkpoint
from edgeship.formats.gguf import ollama
from edgeship.formats.gguf.modelfile import make_modelfile
from edgeship.formats.gguf.ollama import Layout, recognize
from edgeship.plan import make_plan
from edgeship.text import open_text
from edgeship_runtime.chat import ChatTemplate
from exports import recipe
from qwen_files import chat_template

ROOT = Path(__file__).resolve().parents[3]
BOS = "<|begin_of_text|>"
TINY: str = json.loads((ROOT / "pipeline/edgeship/tiny/checkpoint/tokenizer_config.json").read_text())["chat_template"]
LLAMA3 = (  # meta-llama/Meta-Llama-3-8B-Instruct
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SMOLLM2 = (  # HuggingFaceTB/SmolLM2-135M-Instruct
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What is known of each: default system message, whether it offers tools, whether it thinks.
KNOWN: dict[str, tuple[str | None, bool, bool]] = {
    "qwen2.5": ("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", True, False),
    "qwen3": (None, True, True),
    "tiny": ("You are a tiny model made by edgeship. You answer in short sentences.", True, False),
    "plain": ("You are a small model.", False, False),
    "llama3": (None, False, False),
    "smollm2": ("You are a helpful AI assistant named SmolLM, trained by Hugging Face", False, False),
}


def source(name: str) -> str:
    own = {"qwen2.5": "Qwen-Qwen2.5-7B-Instruct", "qwen3": "Qwen-Qwen3-0.6B"}
    if name in own:
        return chat_template(own[name])
    return {"tiny": TINY, "plain": CHAT_TEMPLATE, "llama3": LLAMA3, "smollm2": SMOLLM2}[name]


def jinja(name: str) -> ChatTemplate:
    return ChatTemplate(source(name), {"bos_token": BOS})


def found(name: str) -> Layout:
    layout = recognize(jinja(name), BOS)
    assert layout is not None
    return layout


def chats() -> dict[str, dict[str, Any]]:
    """The conversations every artifact is accepted on."""
    return {case["name"]: case for case in yaml.safe_load(CASES.read_text(encoding="utf-8"))["chats"]}


def canonical(text: str) -> str:
    """Lines of JSON in one form: Go writes them without spaces, keys in another order."""
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    try:
        return json.dumps(json.loads(line), sort_keys=True) if line.startswith("{") else line
    except ValueError:
        return line


@pytest.mark.parametrize("name", KNOWN)
class TestTemplate:
    def test_its_parts_are_found(self, name: str) -> None:
        layout = found(name)
        assert (layout.system, layout.tools is not None, layout.thinking) == KNOWN[name]

    @pytest.mark.parametrize("chat", chats())
    def test_go_writes_what_jinja_writes(self, name: str, chat: str) -> None:
        case, layout = chats()[chat], found(name)
        tools: list[Any] = case.get("tools") or []
        if not layout.tools and (tools or any(m["role"] == "tool" for m in case["messages"])):
            pytest.skip("the template knows no tools")
        if name == "llama3" and any(m["content"] != m["content"].strip() for m in case["messages"]):
            pytest.skip("Llama 3 trims messages, which Go templates cannot")
        assert_equal(layout, jinja(name), case["messages"], tools, case.get("enable_thinking"))

    @pytest.mark.parametrize("think", [None, True, False])
    def test_go_writes_long_conversations_with_tools_and_thoughts(self, name: str, think: bool | None) -> None:
        layout = found(name)
        tools = [ollama.TOOL_ONE, ollama.TOOL_TWO] if layout.tools else []
        talks = [
            *ollama.PLAIN,
            *(ollama.WITH_TOOLS if tools else ()),
            *(ollama.WITH_THOUGHTS if layout.thinking else ()),
        ]
        whole = [m for talk in ollama.WITH_TOOLS[2:] if tools for m in [*talk, ollama.ANSWER]] + [ollama.USER]
        for messages in [*talks, whole]:
            assert_equal(layout, jinja(name), messages, tools, think)


def assert_equal(
    layout: Layout, template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: list[Any], think: bool | None
) -> None:
    answered = messages[-1]["role"] == "assistant"
    expected = template.render(
        messages, tools=tools or None, enable_thinking=think, add_generation_prompt=not answered
    ).removeprefix(BOS)
    if answered:  # Ollama continues an answer, so its end stays open
        expected = expected.removesuffix(layout.markers.end)
    family = "qwen3" if layout.thinking else ""
    got = go_template.ollama(layout.go(), messages, system=layout.system, tools=tools, think=think, family=family)
    assert canonical(got) == canonical(expected)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "{{ raise_exception('no') }}",
        SMOLLM2.replace("<|im_start|>", "<|turn|>"),
        SMOLLM2.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'"),
        LLAMA3.replace("message['content'] | trim", "'Today: 26 Jul 2024\n' + message['content']"),
        CHAT_TEMPLATE.replace("message['role'] +", "message['role'] | upper +"),
        CHAT_TEMPLATE.replace("You are a small model.", ""),
        TINY.replace("<tool_response>", "<result>"),
        TINY.replace("(tool | tojson)", "(tool | tojson(indent=2))"),
        TINY.replace("You can call these functions:", "You can call {{ these }} functions:"),
    ],
)
def test_a_template_that_is_not_known_is_none(template: str) -> None:
    assert recognize(ChatTemplate(template, {"bos_token": BOS}), BOS) is None


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "tiny"])
def test_ollama_finds_the_tags_of_tool_calls_and_thoughts(name: str) -> None:
    """parseTag in tools/template.go, InferTags in thinking/template.go."""
    nodes = go_template.parse(found(name).go())
    assert first_text(asking_for(nodes, ".ToolCalls")) == "<tool_call>"
    if name == "qwen3":
        (around,) = lists_with(nodes, ".Thinking")
        assert (around[0].text.strip(), around[-1].text.strip()) == ("<think>", "</think>")


def asking_for(nodes: list[go_template.Node], name: str) -> list[go_template.Node]:
    """The body of the first `if`, depth first, whose condition has the field."""
    for node in nodes:
        for condition, body in node.branches:
            if node.kind == "if" and ("field", name) in condition:
                return body
            if inner := asking_for(body, name):
                return inner
    return []


def first_text(nodes: list[go_template.Node]) -> str:
    for node in nodes:
        if node.kind == "text" and node.text.strip():
            return node.text.partition("{")[0].strip()
        if node.kind != "text":
            return first_text(node.branches[0][1]) if node.branches else ""
    return ""


def lists_with(nodes: list[go_template.Node], name: str) -> list[list[go_template.Node]]:
    """The lists that print the field."""
    inner = [found for node in nodes for _, body in node.branches for found in lists_with(body, name)]
    printed = any(n.kind == "action" and ("field", name) in n.branches[0][0] for n in nodes)
    return [*inner, *([nodes] if printed else [])]


class TestFile:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        return write_checkpoint(tmp_path / "c")

    def make(self, checkpoint: Path, template: str | None, **fields: Any) -> tuple[modelfiles.Parsed, tuple[str, ...]]:
        opened = open_checkpoint(checkpoint)
        plan = make_plan(recipe("qwen2.5-tiny", **fields), opened.config)
        text = open_text(opened, plan)
        made = make_modelfile(plan, "tiny-Q4_0.gguf", text, ChatTemplate(template) if template else None)
        return modelfiles.parse(made.text), made.notes

    def test_says_what_the_recipe_says(self, checkpoint: Path) -> None:
        sampling = {
            "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.05,
            "presence_penalty": 0.5,
        }  # fmt: skip
        license_text = 'Apache License\n  "quoted"\n\nVersion 2.0\n'
        (checkpoint / "LICENSE").write_text(license_text)
        parsed, notes = self.make(checkpoint, TINY, context=128, sampling=sampling)
        assert parsed.source == "./tiny-Q4_0.gguf"
        assert parsed.system == KNOWN["tiny"][0]
        assert parsed.template == found("tiny").go()
        assert parsed.parameters == {
            "num_ctx": 128,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "min_p": 0.01,
            "repeat_penalty": 1.05,
            "repeat_last_n": -1,
            "presence_penalty": 0.5,
            "stop": ["<|im_end|>", "<|endoftext|>"],
        }
        assert parsed.licenses == [license_text]
        assert notes == ()

    @pytest.mark.parametrize("name", KNOWN)
    def test_every_template_survives_the_parser(self, checkpoint: Path, name: str) -> None:
        parsed, notes = self.make(checkpoint, source(name).replace("bos_token +", ""))
        assert parsed.template == found(name).go()
        assert parsed.system == KNOWN[name][0]
        assert notes == ()

    @pytest.mark.parametrize(
        "template", [None, "{{ messages[0].content }}", TINY.replace("tiny model", "tiny\u00a0model")]
    )
    def test_without_a_known_template_there_is_none_and_a_note(self, checkpoint: Path, template: str | None) -> None:
        parsed, notes = self.make(checkpoint, template)
        assert (parsed.template, parsed.system) == (None, None)
        assert len(notes) == 1
        assert "TEMPLATE" in notes[0]
        assert parsed.parameters["stop"] == ["<|im_end|>", "<|endoftext|>"]

    def test_a_license_that_cannot_be_quoted_is_left_out(self, checkpoint: Path) -> None:
        (checkpoint / "LICENSE").write_text('three """ quotes')
        parsed, notes = self.make(checkpoint, TINY)
        assert parsed.licenses == []
        assert "LICENSE" in notes[0]


class TestParser:
    """The parser these tests read with, on the examples of docs/modelfile.mdx."""

    def test_examples_of_the_page(self) -> None:
        mario = (
            "FROM llama3.2\n# sets the temperature to 1 [higher is more creative, lower is more coherent]\n"
            "PARAMETER temperature 1\nPARAMETER num_ctx 4096\n\n# sets a custom system message\n"
            "SYSTEM You are Mario from super mario bros, acting as an assistant.\n"
        )
        parsed = modelfiles.parse(mario)
        assert (parsed.source, parsed.parameters) == ("llama3.2", {"temperature": 1.0, "num_ctx": 4096})
        assert parsed.system == "You are Mario from super mario bros, acting as an assistant."
        shown = (
            'from ./a.gguf\nTEMPLATE """{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n'
            '{{ .System }}<|eot_id|>{{ end }}"""\nPARAMETER stop "<|eot_id|>"\nPARAMETER stop "a b"\n'
            'LICENSE """\n<license text>\n"""'
        )
        parsed = modelfiles.parse(shown)
        assert parsed.template == (
            "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>{{ end }}"
        )
        assert parsed.parameters == {"stop": ["<|eot_id|>", "a b"]}
        assert parsed.licenses == ["\n<license text>\n"]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "PARAMETER num_ctx 1",
            "FROM a\nPARAMETER x 1",
            "FROM a\nPARAMETER top_k 0.5",
            "FROM a\nBUILD b",
            "FROM",
            'FROM a\nSYSTEM """open',
        ],
    )
    def test_what_ollama_refuses(self, text: str) -> None:
        with pytest.raises(modelfiles.ModelfileError):
            modelfiles.parse(text)


class TestGo:
    """The evaluator these tests render with, on the rules of https://pkg.go.dev/text/template."""

    @pytest.mark.parametrize(
        ("template", "rendered"),
        [
            ('{{ "quoted \\"text\\"\\n" }}|{{ 7 }}|{{ true }}', 'quoted "text"\n|7|true'),
            ("a \n {{- 1 -}} \n b {{ 2 }} c", "a1b 2 c"),
            ("{{ .A }}{{ .Inner.B }}{{ $.A }}", "xyx"),
            ("{{ if .Empty }}a{{ else if .A }}b{{ else }}c{{ end }}", "b"),
            ("{{ if .None }}a{{ end }}{{ if not .None }}b{{ end }}", "b"),
            ("{{ range .List }}{{ . }},{{ end }}", "p,q,r,"),
            ("{{ range $i, $x := .List }}{{ $i }}{{ $x }}{{ end }}", "0p1q2r"),
            ("{{ range $x := .List }}{{ $x }}{{ $.A }}{{ end }}", "pxqxrx"),
            ("{{ range .Empty }}a{{ end }}", ""),
            ("{{ $n := 0 }}{{ range $i, $x := .List }}{{ $n = $i }}{{ end }}{{ $n }}", "2"),
            ("{{ $n := 0 }}{{ if true }}{{ $n := 1 }}{{ $n }}{{ end }}{{ $n }}", "10"),
            ("{{ len .List }}{{ index .List 1 }}{{ len (slice .List 1) }}", "3q2"),
            ("{{ (index .Maps 1).B }}", "z"),
            ('{{ and .A "" }}|{{ and .A "last" }}|{{ or .Empty .A }}|{{ or .Empty 0 }}', "|last|x|0"),
            ("{{ if or true (index .List 9) }}stopped early{{ end }}", "stopped early"),
            ('{{ eq .A "y" "x" }} {{ ne .A "x" }} {{ gt 2 1 }} {{ lt 2 1 }}', "true false true false"),
            ("{{ if and (eq .A .A) .A }}a{{ end }}", "a"),
            ("}{{ 1 }}} { }", "}1} { }"),
            ("{{ .Json }}", '{"a":[1,2],"b":"\\u003cé\\u003e"}'),
        ],
    )
    def test_rules(self, template: str, rendered: str) -> None:
        root = {
            "A": "x", "Inner": {"B": "y"}, "Empty": [], "None": None, "List": ["p", "q", "r"],
            "Maps": [{"B": "y"}, {"B": "z"}], "Json": go_template.Printed(b="<é>", a=[1, 2]),
        }  # fmt: skip
        assert go_template.render(go_template.parse(template), root) == rendered

    @pytest.mark.parametrize(
        "template",
        [
            "{{ if .A }}",
            "{{ end }}",
            "{{ .B }}",
            "{{ $x }}",
            "{{ what .A }}",
            "{{ .A",
            "{{ eq .A 1 }}",
            "{{ .A .A }}",
            "{{ index .List 3 }}",
            "{{ slice .List 4 }}",
            "{{ .List }}",
            "{{ .A | len }}",
            "{{ range .List }}{{ else }}{{ end }}",
        ],
    )
    def test_what_go_or_this_evaluator_refuses(self, template: str) -> None:
        with pytest.raises(go_template.GoError):
            go_template.render(go_template.parse(template), {"A": "x", "List": ["p", "q", "r"]})

    def test_ollama_joins_neighbours_but_not_results(self) -> None:
        messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("user", "b"), ("tool", "1"), ("tool", "2"))]
        template = "{{ range .Messages }}[{{ .Role }} {{ .Content }}]{{ end }}"
        assert go_template.ollama(template, messages, system="S") == "[system S][user a\n\nb][tool 1][tool 2]"
