"""A chat template for Ollama: which of the known conversation layouts a Jinja template writes, and the same in Go.

Ollama renders conversations with a Go template of its own (docs/template.mdx, template/template.go in ollama/ollama),
never with the checkpoint's Jinja. So the layout is found by rendering conversations and looking at what comes out, and
held to be known only if it then predicts every other one, character for character.

Differences that stay, because Go templates and Ollama are as they are: tools and arguments are written as Go's JSON
(no spaces, keys in another order); neighbouring messages of one role are joined by an empty line before a template sees
them; where Jinja trims white space off a message, Go cannot; an answer to be continued stays open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.errors import EdgeshipRuntimeError

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Markers:
    """What stands around a message: `start` role `middle` text `end`."""

    start: str
    middle: str
    end: str

    def message(self, role: str, text: str) -> str:
        return f"{self.start}{role}{self.middle}{text}{self.end}"


MARKERS = (
    Markers("<|im_start|>", "\n", "<|im_end|>\n"),  # ChatML: Qwen, SmolLM2, ...
    Markers("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),  # Llama 3
)
THINK = ("<think>\n", "\n</think>\n\n")


@dataclass(frozen=True)
class Tools:
    """What stands around the tools, one line of JSON each, in the system message."""

    before: str
    behind: str


@dataclass(frozen=True)
class Layout:
    """How a model's conversations are written; enough to write them, in Python and as a Go template."""

    markers: Markers
    system: str | None  # the system message of a conversation without one
    empty_system: bool  # whether a system message without text is written
    tools: Tools | None  # as Qwen calls them: <tool_call> and <tool_response>, results in the user's name
    thinking: bool  # as Qwen3: <think> in front of answers to the last question, empty where the user wants none

    def render(self, messages: Messages, tools: Sequence[Any] = (), enable_thinking: bool | None = None) -> str:
        """The conversation, open for the assistant's answer, or closed behind it where it ends with one."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        question = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=len(messages))
        out = [self._head(messages[0], tools)]
        for i, m in enumerate(messages):
            if m["role"] == "tool" and self.tools:
                out.append(self._result(messages, i))
            elif i or m["role"] != "system":
                text = m["content"] + self._calls(m)
                thoughts = m.get("reasoning_content", "")
                if self.thinking and m["role"] == "assistant" and i > question and (thoughts or i == len(messages) - 1):
                    text = thoughts.join(THINK) + text
                out.append(self.markers.message(m["role"], text))
        if messages[-1]["role"] != "assistant":
            out.append(self.markers.message("assistant", "").removesuffix(self.markers.end))
            out.append("".join(THINK) if self.thinking and enable_thinking is False else "")
        return "".join(out)

    def _head(self, first: Mapping[str, Any], tools: Sequence[Any]) -> str:
        given = first["role"] == "system"
        if tools and self.tools:
            lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            intro = first["content"] + "\n\n" if given else ""
            return self.markers.message("system", intro + self.tools.before + lines + self.tools.behind)
        if given and (first["content"] or self.empty_system):
            return self.markers.message("system", first["content"])
        return ""

    def _calls(self, message: Mapping[str, Any]) -> str:
        if not self.tools or not message.get("tool_calls"):
            return ""
        calls = [call["function"] for call in message["tool_calls"]]
        written = [
            f'<tool_call>\n{{"name": "{c["name"]}", "arguments": {json.dumps(c["arguments"], ensure_ascii=False)}}}'
            "\n</tool_call>"
            for c in calls
        ]
        return ("\n" if message["content"] else "") + "\n".join(written)

    def _result(self, messages: Messages, i: int) -> str:
        first = messages[i - 1]["role"] != "tool"
        last = i + 1 == len(messages) or messages[i + 1]["role"] != "tool"
        text = f"\n<tool_response>\n{messages[i]['content']}\n</tool_response>"
        return (f"{self.markers.start}user" if first else "") + text + (self.markers.end if last else "")

    def go(self) -> str:
        """The same as a Go template.

        Ollama reads two things off it itself: what opens a tool call, the first text where `.ToolCalls` is asked for
        (tools/template.go), and what encloses thoughts, the texts around `.Thinking` (thinking/template.go).
        """
        tools, m = self.tools, self.markers
        # With tools, a first system message was written with them; without, it is a message like the others.
        others = ' if or $i (ne .Role "system")' + ("" if tools else " .Content")
        parts = {
            "@QUESTION@": _GO_QUESTION if self.thinking else "",
            "@RESULTS@": "{{- $results := false }}\n" if tools else "",
            "@HEAD@": _GO_HEAD if tools else "",
            "@THOUGHTS@": _GO_THOUGHTS if self.thinking else "",
            "@CALLS@": _GO_CALLS if tools else "",
            "@RESULT@": _GO_RESULT if tools else "",
            "@OTHERS@": others if tools or not self.empty_system else "",
            "@QUIET@": _GO_QUIET if self.thinking else "",
            "@NOTE@": '{{- $results = eq .Role "tool" }}\n' if tools else "",
            "@TEXT@": "" if self.empty_system else " .Content",
            "@BEFORE@": tools.before if tools else "",
            "@BEHIND@": tools.behind.removeprefix("\n") if tools else "",
            "@START@": m.start,
            "@MIDDLE@": m.middle,
            "@END@": m.end,
        }
        text = _GO
        for mark, part in parts.items():  # in this order: what is put in holds marks that come later
            text = text.replace(mark, part)
        return text


# White space is kept but for line breaks in front of `{{-`.
_GO = """\
@QUESTION@@RESULTS@{{- range $i, $m := .Messages }}
{{- $rest := slice $.Messages $i }}
{{- $last := eq (len $rest) 1 }}
@HEAD@{{- if eq .Role "assistant" }}@START@assistant@MIDDLE@@THOUGHTS@{{ .Content }}@CALLS@\
{{ if not $last }}@END@{{ end }}
@RESULT@{{- else@OTHERS@ }}@START@{{ .Role }}@MIDDLE@{{ .Content }}@END@{{ end }}
{{- if and $last (ne .Role "assistant") }}@START@assistant@MIDDLE@@QUIET@{{ end }}
@NOTE@{{- end }}"""
_GO_QUESTION = """\
{{- $question := 1000000 }}
{{- range $i, $m := .Messages }}{{ if eq .Role "user" }}{{ $question = $i }}{{ end }}{{ end }}
"""
_GO_HEAD = """\
{{- if and (eq $i 0) (or (and (eq .Role "system")@TEXT@) $.Tools) }}@START@system@MIDDLE@{{ if eq .Role "system" }}\
{{ .Content }}{{ if $.Tools }}

{{ end }}{{ end }}{{ if $.Tools }}@BEFORE@{{ range $.Tools }}{{ . }}
{{ end }}@BEHIND@{{ end }}@END@{{ end }}
"""
_GO_THOUGHTS = """\
{{ if and (gt $i $question) (or .Thinking $last) }}<think>
{{ .Thinking }}
</think>

{{ end }}"""
_GO_CALLS = """\
{{ $calls := len .ToolCalls }}{{ if and .Content $calls }}
{{ end }}{{ if .ToolCalls }}{{ range $j, $c := .ToolCalls }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>{{ if ne (len (slice $m.ToolCalls $j)) 1 }}
{{ end }}{{ end }}{{ end }}"""
_GO_RESULT = """\
{{- else if eq .Role "tool" }}{{ if not $results }}@START@user{{ end }}
<tool_response>
{{ .Content }}
</tool_response>{{ if or $last (ne (index $rest 1).Role "tool") }}@END@{{ end }}
"""
_GO_QUIET = """{{ if and $.IsThinkSet (not $.Think) }}<think>

</think>

{{ end }}"""


def recognize(template: ChatTemplate, bos: str = "") -> Layout | None:
    """The layout a template writes, or None where it is none of the known ones; `bos` is what it may begin with."""
    for markers in MARKERS:
        layout = _guess(template, markers, bos)
        if layout is not None and _confirmed(layout, template, bos):
            return layout
    return None


USER, SYSTEM = {"role": "user", "content": "Hi there."}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Hello."}
TOOL_ONE, TOOL_TWO = (
    {
        "type": "function",
        "function": {
            "name": name,
            "description": 'Does <it> & "more"',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("look_up", "add")
)
CALL_ONE, CALL_TWO = (
    {"type": "function", "function": {"name": name, "arguments": {"city": city}}}
    for name, city in (("look_up", "München"), ("add", "東京"))
)
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL_ONE]}
CALLS_WITH_TEXT = {"role": "assistant", "content": "I look.", "tool_calls": [CALL_ONE, CALL_TWO]}
RESULT, OTHER_RESULT = {"role": "tool", "content": "rain"}, {"role": "tool", "content": '{"sum": 2}'}
THOUGHT = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}

# Conversations, tools, and whether to think, that a layout must predict.
PLAIN: tuple[list[dict[str, Any]], ...] = (
    [USER],
    [SYSTEM, USER],
    [{"role": "system", "content": ""}, USER],
    [SYSTEM, USER, ANSWER, USER],
    [USER, ANSWER, SYSTEM, USER],
    [USER, ANSWER],
)
WITH_TOOLS: tuple[list[dict[str, Any]], ...] = (
    [USER],
    [SYSTEM, USER],
    [USER, CALLS, RESULT],
    [SYSTEM, USER, CALLS_WITH_TEXT, RESULT, OTHER_RESULT],
    [USER, CALLS, RESULT, CALLS_WITH_TEXT, RESULT, OTHER_RESULT, ANSWER, USER],
)
WITH_THOUGHTS: tuple[list[dict[str, Any]], ...] = (
    [USER, THOUGHT],
    [USER, THOUGHT, USER],
    [USER, {**CALLS, "reasoning_content": "Where?"}, RESULT],
    [USER, {**CALLS, "reasoning_content": "Where?"}, RESULT, THOUGHT, USER],
)


def _jinja(
    template: ChatTemplate, bos: str, messages: Messages, tools: Sequence[Any] = (), thinking: bool | None = None
) -> str | None:
    """What the checkpoint's own template makes of a conversation, without bos; None where it refuses it."""
    try:
        text = template.render(
            messages,
            tools=tools or None,
            enable_thinking=thinking,
            add_generation_prompt=messages[-1]["role"] != "assistant",
        )
    except EdgeshipRuntimeError:
        return None
    return text.removeprefix(bos)


def _guess(template: ChatTemplate, markers: Markers, bos: str) -> Layout | None:
    """Read the parts of a layout off single conversations; whether they make the whole is for `_confirmed`."""
    opened = markers.message("user", "Hi there.") + markers.message("assistant", "").removesuffix(markers.end)
    alone, given = _jinja(template, bos, [USER]), _jinja(template, bos, [SYSTEM, USER])
    if alone is None or given is None or not alone.endswith(opened):
        return None
    head = alone.removesuffix(opened)
    around = [re.escape(part) for part in markers.message("system", "@").split("@")]
    system = re.fullmatch("(.*)".join(around), head, re.DOTALL)
    if system and not system[1]:  # Ollama takes an empty SYSTEM for none
        return None
    empty = _jinja(template, bos, [{"role": "system", "content": ""}, USER])
    quiet = _jinja(template, bos, [USER], thinking=False)
    offered = _jinja(template, bos, [SYSTEM, USER], [TOOL_ONE])
    return Layout(
        markers=markers,
        system=system[1] if system else None,
        empty_system=empty != opened,
        tools=_tools(markers, offered.removesuffix(opened)) if offered is not None and offered != given else None,
        thinking=quiet is not None and quiet == alone + "".join(THINK),
    )


def _tools(markers: Markers, head: str) -> Tools | None:
    """The text around the tools in the system message of a conversation that offers one."""
    start, end = f"{markers.start}system{markers.middle}{SYSTEM['content']}\n\n", markers.end
    before, found, behind = head.partition(json.dumps(TOOL_ONE, ensure_ascii=False))
    fitting = before.startswith(start) and behind.startswith("\n") and behind.endswith(end)
    if not found or not fitting or any(mark in before + behind for mark in ("{{", "}}", "@")):
        return None
    return Tools(before.removeprefix(start), behind.removesuffix(end))


def _confirmed(layout: Layout, template: ChatTemplate, bos: str) -> bool:
    cases: list[tuple[list[dict[str, Any]], list[Any], bool | None]] = [(m, [], None) for m in PLAIN]
    offered = [TOOL_ONE, TOOL_TWO]
    if layout.tools:
        cases += [(m, offered, None) for m in WITH_TOOLS]
    else:
        cases += [([SYSTEM, USER], offered, None)]  # ignored by the template, not written in another way
    if layout.thinking:
        talks = [m for m in WITH_THOUGHTS if layout.tools or not any("tool_calls" in each for each in m)]
        cases += [(m, offered if layout.tools else [], think) for m in talks for think in (None, True, False)]
    cases += [([USER], [], think) for think in (True, False)]
    return all(layout.render(*case) == _jinja(template, bos, *case) for case in cases)
