"""Chat templates: equal to transformers on real templates, and stopped or refused when they mean harm."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edgeship_runtime.chat import ChatTemplate, check_messages, check_tools, load_template
from edgeship_runtime.errors import ArtifactError, DependencyError, EdgeshipRuntimeError, TemplateError, UsageError
from edgeship_runtime.manifest import parse_manifest, read_manifest
from manifests import GENAI, VALID
from qwen_files import chat_template

TEMPLATES = ("Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B")
# One template with what the others lack: macros, generation marks, loop controls, dates, special tokens, indents.
EVERYTHING = """{{- bos_token }}
{%- macro show(value, depth) %}
    {%- if depth > 0 %}{{ ' ' * depth ~ show(value, depth - 1) }}{% else %}{{ value | tojson }}{% endif %}
{%- endmacro %}
{% set ns = namespace(seen=[], count=0) %}
{% for message in messages %}
  {% if message.role == 'skip' %}{% continue %}{% endif %}
  {% if message.role == 'halt' %}{% break %}{% endif %}
  {% set ns.seen = ns.seen + [message.role] %}
  {% set ns.count = ns.count + 1 %}
  {% if message.role not in ['system', 'user', 'assistant', 'tool'] %}
    {{ raise_exception('unknown role ' ~ message.role) }}
  {% endif %}
  [{{ loop.index }}|{{ message.role | upper }}|{{ message['content'] is string }}]
  {% if message.content is string %}{{ message.content | trim }}{% elif message.content is iterable %}
    {%- for part in message.content %}{{ part.text if part.type == 'text' else '<' ~ part.type ~ '>' }}{% endfor %}
  {% endif %}
  {% if message.role == 'assistant' %}
    {% generation %}{{ message.reasoning_content or 'none' }}{% endgeneration %}
  {% endif %}
  {% for call in message.tool_calls or [] %}{{ show(call.function, 2) }}{% endfor %}
{% endfor %}
{% if tools %}{{ tools | tojson(indent=2) }}{{ tools | map(attribute='function.name') | join(', ') }}
{{- tools[0] | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}{% endif %}
{{ '%s-%03d' | format('x', ns.count) }} {{ '{:>8}|{}'.format('é', ns.seen[::-1]) }} {{ "a,b".split(",")[1:] }}
{{ messages | length }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ dict(a=1, b=[2]).items() | list }} {{ [3, 1, 2] | sort | join('<') }} {{ 'A<b>&"' | escape }} {{ 2 ** 10 % 7 }}
{{- strftime_now('%Y') | length }}{{ unknown_name is defined }}{{ documents }}
{%- if add_generation_prompt %}<assistant>{% endif %}{{ eos_token }}"""

CODE = "def f(x):\n    return {'a': x}  # {{ not }} {% a %} tag\n"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather & <more> in 北京 🌦",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "x"]}}},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "empty system": [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}],
    "empty user": [{"role": "user", "content": ""}],
    "turns": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": " 3 "},
    ],
    "late system": [{"role": "user", "content": "1"}, {"role": "system", "content": "Now rhyme."}],
    "thinking in text": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\none"},
        {"role": "user", "content": "2"},
    ],
    "thinking at the end": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>\nhm</think>ok"},
    ],
    "reasoning": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "one", "reasoning_content": "let me see"},
    ],
    "reasoning, other name": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "one", "reasoning": "let me see"},
    ],
    "tool call": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 3}', "name": "get_weather"},
        {"role": "tool", "content": "snow"},
        {"role": "user", "content": "Thanks"},
    ],
    "tool calls, content None": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, {"name": "now", "arguments": "{}"}]},
        {"role": "tool", "content": "12:00"},
    ],
    "cjk": [{"role": "user", "content": "北京的天气怎么样？\n日本語も。"}],
    "emoji": [{"role": "user", "content": "👩‍👩‍👧 🏳️‍🌈 é e\u0301 \u202eabc"}],
    "code": [{"role": "user", "content": CODE}, {"role": "assistant", "content": f"```python\n{CODE}```"}],
    "markup": [{"role": "user", "content": "<b>&amp;</b> <|im_end|> \"quoted\" 'too' \\n \t"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "look "}, {"type": "image"}]}],
    "extra members": [{"role": "user", "content": "x", "name": "Ann", "meta": {"n": [1, 2.5, None, True]}}],
    "unknown role": [{"role": "narrator", "content": "x"}],
}


def template_text(name: str) -> str:
    return EVERYTHING if name == "everything" else chat_template(name)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers before 5 does not leave out members that are None")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.mark.parity
class TestEqualToTransformers:
    @pytest.mark.parametrize("thinking", [None, True, False])
    @pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
    @pytest.mark.parametrize("name", [*TEMPLATES, "everything"])
    def test_every_conversation(self, tokenizer: Any, name: str, tools: Any, thinking: bool | None) -> None:
        source = template_text(name)
        template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
        for title, messages in CONVERSATIONS.items():
            for prompt in (True, False):
                kwargs: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
                try:
                    expected = tokenizer.apply_chat_template(
                        messages,
                        tools=tools,
                        chat_template=source,
                        tokenize=False,
                        add_generation_prompt=prompt,
                        **kwargs,
                    )
                except Exception:
                    with pytest.raises(TemplateError):
                        template.render(messages, tools, thinking, prompt)
                else:
                    assert template.render(messages, tools, thinking, prompt) == expected, title


class TestRender:
    def render(self, source: str, **variables: Any) -> str:
        return ChatTemplate(source).render(CONVERSATIONS["user"], **variables)

    def test_variables_and_tokens(self) -> None:
        template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}{{ flavour }}", {"bos_token": "<s>"})
        assert template.render(CONVERSATIONS["user"], flavour="!") == "<s>Hello!"

    def test_thinking_is_left_to_the_template(self) -> None:
        source = "{{ enable_thinking is defined }} {{ enable_thinking }}"
        assert self.render(source) == "False "
        assert self.render(source, enable_thinking=False) == "True False"

    def test_tool_use_template_serves_tools(self) -> None:
        template = ChatTemplate({"default": "plain", "tool_use": "tools"})
        assert template.render(CONVERSATIONS["user"]) == "plain"
        assert template.render(CONVERSATIONS["user"], tools=TOOLS) == "tools"

    def test_messages_are_not_touched(self) -> None:
        messages = [{"role": "assistant", "content": None, "reasoning": "x"}]
        ChatTemplate("{{ messages[0].reasoning_content }}").render(messages)
        assert messages == [{"role": "assistant", "content": None, "reasoning": "x"}]

    def test_several_threads(self) -> None:
        template = ChatTemplate("{% for i in range(2000) %}{{ messages[0].content }}{% endfor %}")
        results: list[str] = []
        threads = [
            threading.Thread(target=lambda i=i: results.append(template.render([{"role": "user", "content": str(i)}])))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [str(i) * 2000 for i in range(8)]

    @pytest.mark.parametrize(
        "body",
        [
            "{{ (messages | length) ~ m.role ~ m.content.strip() + '\n' }}",
            "{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content }}",
            "{{ messages[loop.index0:][0].content }}{{ m.content.split() | length }}",
            "{% set ns.seen = ns.seen + [m] %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{{ m | tojson }}",
        ],
    )
    def test_a_long_conversation_is_no_attack(self, body: str) -> None:
        messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(1000)]
        source = "{% set ns = namespace(seen=[]) %}{% for m in messages %}" + body + "{% endfor %}"
        # Its memory is limited as ever; its time, on a busy machine, is not.
        assert len(ChatTemplate(source, time_limit_s=300).render(messages)) > 900_000

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_a_message_of_a_million_characters(self, name: str) -> None:
        messages = [{"role": "user", "content": "word " * 200_000}, {"role": "assistant", "content": "x" * 1_000_000}]
        assert len(ChatTemplate(template_text(name)).render(messages)) > 2_000_000

    def test_refusal_carries_the_message(self) -> None:
        with pytest.raises(TemplateError, match="refuses the conversation: roles must alternate"):
            self.render("{{ raise_exception('roles must alternate') }}")

    @pytest.mark.parametrize(
        "source", ["{% if %}", "{{ a", "{% for %}", "{% unknown %}", "{{ 1 | nothing }}", "{% endif %}"]
    )
    def test_syntax(self, source: str) -> None:
        with pytest.raises(TemplateError, match="does not parse: line 1"):
            ChatTemplate(source)

    @pytest.mark.parametrize(
        "source", ["{{ a.b.c }}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{% include 'x' %}", "{{ [][1].x }}"]
    )
    def test_failures(self, source: str) -> None:
        with pytest.raises(TemplateError, match="the chat template failed"):
            self.render(source)

    def test_jinja_is_missing_or_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jinja2.__version__", "3.1.5")
        with pytest.raises(DependencyError, match=r"jinja2>=3\.1\.6.*found 3\.1\.5"):
            ChatTemplate("x")
        monkeypatch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(DependencyError, match="jinja2"):
            ChatTemplate("x")

    def test_no_default(self) -> None:
        with pytest.raises(TemplateError, match="none 'default'"):
            ChatTemplate({"rag": "x"})


class TestMessages:
    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ("hello", "expected a list of messages, found text"),
            ({"role": "user"}, "expected a list of messages, found an object"),
            (None, "expected a list of messages, found nothing"),
            ([], "the conversation is empty"),
            (["hello"], r"messages\[0\]: expected an object, found text"),
            ([{"content": "x"}], r"messages\[0\]\.role: expected text, found nothing"),
            ([{"role": 1, "content": "x"}], r"messages\[0\]\.role: expected text"),
            ([{"role": "user", "content": 5}], r"content: expected text or a list of parts"),
            ([{"role": "user", "content": [1]}], r"content\[0\]: expected text or an object"),
            ([{"role": "user", "content": {"a": 1}}], r"content: expected text or a list of parts, found an object"),
            ([{"role": "user", "content": b"x"}], "found a value of type bytes"),
            ([{"role": "user", "content": "x", "tool_calls": {}}], "tool_calls: expected a list of objects"),
            ([{"role": "user", "content": "x", "tool_calls": ["f"]}], "tool_calls: expected a list of objects"),
            ([{"role": "user", "content": "x", 1: 2}], "expected names of type text"),
            ([{"role": "user", "content": "x", "meta": object()}], r"messages\[0\]\.meta: expected text, numbers"),
        ],
    )
    def test_refused(self, messages: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            check_messages(messages)

    def test_nesting(self) -> None:
        deep: Any = "x"
        for _ in range(100):
            deep = [deep]
        with pytest.raises(UsageError, match="nested deeper"):
            check_messages([{"role": "user", "content": "x", "meta": deep}])

    @pytest.mark.parametrize("tools", ["x", {}, ["x"], [None]])
    def test_tools(self, tools: Any) -> None:
        with pytest.raises(UsageError, match="tools"):
            check_tools(tools)

    def test_none_is_left_out_and_subclasses_are_flattened(self) -> None:
        class Text(str):
            __slots__ = ()

        checked = check_messages([{"role": Text("user"), "content": None, "name": ("a", "b")}])
        assert checked == [{"role": "user", "name": ["a", "b"]}]
        assert type(checked[0]["role"]) is str


class TestLoad:
    def directory(self, path: Path, **files: str) -> Path:
        (path / "genai_config.json").write_text(json.dumps(GENAI))
        for name, text in files.items():
            target = path / {"template": "chat_template.jinja", "config": "tokenizer_config.json"}.get(name, name)
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8")
        return path

    def load(self, path: Path) -> str | None:
        template = load_template(path, read_manifest(path))
        return None if template is None else template.render(CONVERSATIONS["user"])

    def test_none(self, tmp_path: Path) -> None:
        assert self.load(self.directory(tmp_path)) is None
        assert self.load(self.directory(tmp_path, config="{}")) is None

    def test_the_file_comes_first(self, tmp_path: Path) -> None:
        config = json.dumps({"chat_template": "config", "eos_token": {"content": "</s>"}, "bos_token": None})
        assert self.load(self.directory(tmp_path, config=config)) == "config"
        assert (
            self.load(self.directory(tmp_path, config=config, template="file{{ eos_token }}{{ bos_token }}"))
            == "file</s>"
        )

    def test_named_templates(self, tmp_path: Path) -> None:
        named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
        path = self.directory(tmp_path, config=json.dumps({"chat_template": named}))
        template = load_template(path, read_manifest(path))
        assert template is not None
        assert template.render(CONVERSATIONS["user"], tools=TOOLS) == "t"
        self.directory(tmp_path, template="file", **{"additional_chat_templates/tool_use.jinja": "more"})
        template = load_template(path, read_manifest(path))
        assert template is not None
        assert template.render(CONVERSATIONS["user"], tools=TOOLS) == "more"

    @pytest.mark.parametrize("value", [5, [], [1], [{"name": "default"}], {"default": "x"}])
    def test_malformed_config(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(EdgeshipRuntimeError):
            self.load(self.directory(tmp_path, config=json.dumps({"chat_template": value})))

    def test_not_json_and_not_text(self, tmp_path: Path) -> None:
        for text in ("[]", "{"):
            with pytest.raises(ArtifactError):
                self.load(self.directory(tmp_path, config=text))
        self.directory(tmp_path, config="{}")
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(ArtifactError, match="not UTF-8"):
            self.load(tmp_path)

    def test_a_sealed_artifact_reads_named_files_only(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("unnamed")
        assert load_template(tmp_path, parse_manifest(json.dumps(VALID).encode())) is None
