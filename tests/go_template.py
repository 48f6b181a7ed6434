"""Go's text/template, as much of it as our Ollama templates use, and how Ollama calls it.

Semantics: https://pkg.go.dev/text/template (text and trimming, pipelines of one command, variables and their scope,
range over a list, truth, the built-in functions, and and or that stop early), and Ollama's template/template.go and
server/routes.go (`execute`). Whatever is not known raises GoError: a template that needs more is one we do not write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+)|(?P<declare>:=)|(?P<assign>=)|(?P<comma>,)|(?P<open>\()"""
    r"""|(?P<close>\))|(?P<variable>\$\w*)|(?P<field>(?:\.\w+)+)|(?P<dot>\.)|(?P<word>\w+)"""
)


class GoError(Exception):
    """The template is not valid, asks for what is not there, or uses what this evaluator does not know."""


@dataclass
class Node:
    """Text, an action, or a block with its branches: (condition or None, nodes)."""

    kind: str  # text, action, if, range
    text: str = ""
    branches: list[tuple[list[tuple[str, str]], list[Node]]] = field(default_factory=list)


def parse(source: str) -> list[Node]:
    """The nodes of a template; raises GoError."""
    pieces = list(_pieces(source))
    nodes, rest = _nodes(pieces, 0, inside=False)
    assert rest == len(pieces)
    return nodes


def _pieces(source: str) -> Iterator[tuple[str, str]]:
    """("text", ...) and ("action", ...) in turn, trimmed as `{{-` and `-}}` ask: white space next to them goes."""
    at, trim = 0, False
    while at < len(source):
        opened = source.find("{{", at)
        text = source[at : opened if opened >= 0 else None]
        if trim:
            text = text.lstrip(" \t\r\n")
        if opened < 0:
            yield "text", text
            return
        if re.match(r"\{\{-\s", source[opened:]):
            text = text.rstrip(" \t\r\n")
            opened += 1
        closed = re.compile(r'(?:[^"}]|"(?:[^"\\]|\\.)*"|\}(?!\}))*?(?=(\s-)?\}\})').match(source, opened + 2)
        if closed is None:
            raise GoError(f"unclosed action at {source[opened : opened + 30]!r}")
        yield "text", text
        yield "action", closed[0].strip()
        trim = closed[1] is not None
        at = closed.end() + (4 if trim else 2)


def _nodes(pieces: Sequence[tuple[str, str]], at: int, *, inside: bool) -> tuple[list[Node], int]:
    out: list[Node] = []
    while at < len(pieces):
        kind, text = pieces[at]
        word = text.split(" ", 1)[0] if kind == "action" else ""
        if word in ("end", "else"):
            if not inside:
                raise GoError(f"{text!r} without a block")
            return out, at
        at += 1
        if kind == "text":
            out.append(Node("text", text))
        elif word in ("if", "range"):
            node = Node(word)
            condition = _tokens(text[len(word) :])
            while True:
                body, at = _nodes(pieces, at, inside=True)
                node.branches.append((condition, body))
                if at >= len(pieces):
                    raise GoError(f"{word} without end")
                closing = pieces[at][1]
                at += 1
                if closing == "end":
                    break
                if word == "range" or not closing.startswith("else"):
                    raise GoError(f"{closing!r} in {word}")
                condition = _tokens(closing.removeprefix("else").strip().removeprefix("if "))
            out.append(node)
        else:
            out.append(Node("action", branches=[(_tokens(text), [])]))
    if inside:
        raise GoError("a block without end")
    return out, at


def _tokens(text: str) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise GoError(f"cannot read {text[at:]!r}")
        if match.lastgroup:
            # `$x.Y` and `(...).Y` are one operand only without a space between.
            joined = (
                match.lastgroup == "field"
                and out
                and not text[at - 1].isspace()
                and out[-1][0] in ("close", "variable")
            )
            out.append(("chain" if joined else match.lastgroup, match[0]))
        at = match.end()
    return out


class Scopes:
    """Variables: a block sees those around it, and may set but not outlive its own."""

    def __init__(self, root: Any) -> None:
        self.stack: list[dict[str, Any]] = [{"$": root}]

    def find(self, name: str) -> dict[str, Any]:
        for scope in self.stack[::-1]:
            if name in scope:
                return scope
        raise GoError(f"undefined variable {name}")


def render(nodes: Sequence[Node], root: Mapping[str, Any]) -> str:
    return "".join(_run(nodes, root, Scopes(root)))


def _run(nodes: Sequence[Node], dot: Any, scopes: Scopes) -> Iterator[str]:
    for node in nodes:
        if node.kind == "text":
            yield node.text
        elif node.kind == "action":
            yield from _action(node.branches[0][0], dot, scopes)
        elif node.kind == "range":
            (tokens, body) = node.branches[0]
            names, pipeline = _declared(tokens)
            for i, item in enumerate(_evaluate(pipeline, dot, scopes) or ()):
                scopes.stack.append(dict(zip(names, (i, item) if len(names) == 2 else (item,), strict=False)))
                yield from _run(body, item, scopes)
                scopes.stack.pop()
        else:
            for condition, body in node.branches:
                if not condition or truth(_evaluate(condition, dot, scopes)):
                    scopes.stack.append({})
                    yield from _run(body, dot, scopes)
                    scopes.stack.pop()
                    break


def _declared(tokens: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    kinds = [kind for kind, _ in tokens]
    if "declare" not in kinds:
        return [], tokens
    at = kinds.index("declare")
    return [text for kind, text in tokens[:at] if kind == "variable"], tokens[at + 1 :]


def _action(tokens: list[tuple[str, str]], dot: Any, scopes: Scopes) -> Iterator[str]:
    if len(tokens) > 1 and tokens[1][0] in ("declare", "assign"):
        name, value = tokens[0][1], _evaluate(tokens[2:], dot, scopes)
        (scopes.stack[-1] if tokens[1][0] == "declare" else scopes.find(name))[name] = value
    else:
        yield _printed(_evaluate(tokens, dot, scopes))


def _evaluate(tokens: list[tuple[str, str]], dot: Any, scopes: Scopes) -> Any:
    value, rest = _command(tokens, dot, scopes)
    if rest:
        raise GoError(f"unexpected {rest[0][1]!r}")
    return value


def _command(tokens: list[tuple[str, str]], dot: Any, scopes: Scopes) -> tuple[Any, list[tuple[str, str]]]:
    """The value of a command that reaches to the end or to a closing parenthesis, and the tokens behind it."""
    if not tokens:
        raise GoError("missing value")
    if tokens[0][0] == "word" and tokens[0][1] not in ("true", "false"):
        name, rest = tokens[0][1], tokens[1:]
        lazy: list[Callable[[], Any]] = []
        while rest and rest[0][0] != "close":
            start, rest = rest, _skip(rest)
            lazy.append(partial(_operand, start[: len(start) - len(rest)], dot, scopes))
        return _call(name, lazy), rest
    rest = _skip(tokens)
    return _operand(tokens[: len(tokens) - len(rest)], dot, scopes), rest


def _skip(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The tokens behind the first operand."""
    at = 1
    if tokens[0][0] == "open":
        depth = 1
        while depth:
            if at == len(tokens):
                raise GoError("unclosed parenthesis")
            depth += {"open": 1, "close": -1}.get(tokens[at][0], 0)
            at += 1
    if at < len(tokens) and tokens[at][0] == "chain":
        at += 1
    return tokens[at:]


def _operand(tokens: list[tuple[str, str]], dot: Any, scopes: Scopes) -> Any:
    kind, text = tokens[0]
    if kind == "string":
        return json.loads(text)
    if kind == "number":
        return int(text)
    if kind == "word":
        return {"true": True, "false": False}[text]
    if kind == "dot":
        return dot
    if kind == "field":
        return _fields(dot, text)
    if kind == "variable":
        value = scopes.find(text)[text]
        return _fields(value, tokens[1][1]) if len(tokens) > 1 else value
    if kind == "open":
        chained = tokens[-1][0] == "chain"
        value = _evaluate(tokens[1 : -2 if chained else -1], dot, scopes)
        return _fields(value, tokens[-1][1]) if chained else value
    raise GoError(f"cannot evaluate {text!r}")


def _fields(value: Any, path: str) -> Any:
    for name in path.strip(".").split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise GoError(f"no field {name}")
        value = value[name]
    return value


def _call(name: str, lazy: Sequence[Callable[[], Any]]) -> Any:
    if name in ("and", "or"):
        value = None
        for each in lazy:
            value = each()
            if truth(value) != (name == "and"):
                break
        return value
    values = [each() for each in lazy]
    if name in ("eq", "ne", "lt", "le", "gt", "ge") and type(values[0]) is not type(values[1]):
        raise GoError(f"{name}: incompatible types for comparison: {values!r}")
    functions: dict[str, Callable[..., Any]] = {
        "not": lambda x: not truth(x),
        "len": len,
        "index": lambda items, i: items[i],
        "slice": lambda items, a=0, b=None: items[a:b],
        "eq": lambda a, *others: a in others,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }
    if name not in functions:
        raise GoError(f"function {name!r} not defined")
    if name in ("index", "slice") and not 0 <= values[1] <= len(values[0]) - (name == "index"):
        raise GoError(f"{name} out of range: {values[1]}")
    return functions[name](*values)


def truth(value: Any) -> bool:
    """False, 0, nil, and anything empty are false."""
    return bool(value)


def _printed(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Printed):
        return go_json(value)
    if isinstance(value, int):
        return str(value)
    raise GoError(f"not a value that our templates print: {value!r}")


class Printed(dict[str, Any]):
    """A value that Ollama prints as JSON: a tool, the arguments of a call."""


def go_json(value: Any) -> str:
    """encoding/json's Marshal: compact, keys of maps sorted, and <, > and & escaped."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def ollama(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    think: bool | None = None,
    family: str = "",
) -> str:
    """The prompt that Ollama makes of a chat request, for a model with this TEMPLATE and SYSTEM of this family.

    ChatHandler puts SYSTEM in front of a conversation that does not begin with a system message; filterThinkTags strips
    thoughts from earlier answers of qwen3; collate joins neighbours of one role, but for results of tools.
    """
    talk = [dict(m) for m in messages]
    if system and talk[0]["role"] != "system":
        talk.insert(0, {"role": "system", "content": system})
    question = max((i for i, m in enumerate(talk) if m["role"] == "user"), default=-1)
    for i, m in enumerate(talk):
        if family == "qwen3" and m["role"] == "assistant" and i < question:
            m["content"] = re.sub(r"\A\s*<think>.*?</think>\s*", "", m["content"], flags=re.DOTALL)
    collated: list[dict[str, Any]] = []
    for m in talk:
        if collated and collated[-1]["role"] == m["role"] != "tool":
            collated[-1]["content"] += "\n\n" + m["content"]
        else:
            collated.append(m)
    root = {
        "System": "\n\n".join(m["content"] for m in talk if m["role"] == "system"),
        "Messages": [_message(m) for m in collated],
        "Tools": [Printed(tool) for tool in tools],
        "Response": "",
        "Think": bool(think),
        "ThinkLevel": "",
        "IsThinkSet": think is not None,
    }
    return render(parse(template), root)


def _message(m: Mapping[str, Any]) -> dict[str, Any]:
    calls = [call["function"] for call in m.get("tool_calls") or ()]
    return {
        "Role": m["role"],
        "Content": m["content"],
        "Thinking": m.get("reasoning_content") or "",
        "ToolCalls": [{"Function": {"Name": c["name"], "Arguments": Printed(c["arguments"])}} for c in calls],
    }
