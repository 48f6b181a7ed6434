"""Messages and tools as OpenAI's clients send them, brought to what chat templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgeship_runtime.chat import check_messages, check_tools
from edgeship_runtime.errors import UsageError
from edgeship_runtime.strict import show
from edgeship_runtime.talk.structured import json_rule


def for_template(messages: object) -> list[dict[str, Any]]:
    """A checked copy: content is text, a call's arguments are an object, `developer` is `system`; raises UsageError."""
    return [_message(message, f"messages[{place}]") for place, message in enumerate(check_messages(messages))]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    content = message.get("content", "")
    if not isinstance(content, str):
        content = "\n".join(_part(part, f"{where}.content[{place}]") for place, part in enumerate(content))
    role = "system" if message["role"] == "developer" else message["role"]
    found = message | {"role": role, "content": content}
    if "tool_calls" in message:
        found["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return found


def _part(part: str | dict[str, Any], where: str) -> str:
    text = part if isinstance(part, str) else part.get("text")
    if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") != "text"):
        raise UsageError(f"{where}: expected text; this model reads nothing else")
    return text


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object: templates differ in what they do with text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call


def allowed_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any]
) -> tuple[list[dict[str, Any]], bool, bool]:
    """The tools to offer, whether one must be called, and whether several may be; raises UsageError."""
    found = [] if tools is None else check_tools(tools)
    for place, tool in enumerate(found):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            hint = '{"type": "function", "function": {"name": "...", "parameters": {...}}}'
            raise UsageError(f"tools[{place}].function.name: expected text", hint=hint)
    if choice == "none":
        return [], False, False
    if choice == "auto":
        return found, False, True
    if choice == "required":
        if not found:
            raise UsageError("tool_choice is required, and there are no tools")
        return found, True, True
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None:
        hint = 'auto, none, required, or {"type": "function", "function": {"name": "..."}}'
        raise UsageError(f"tool_choice: there is no choice {show(choice)}", hint=hint)
    named = [tool for tool in found if tool["function"]["name"] == name]
    if not named:
        raise UsageError(f"tool_choice names {show(name)}, and no tool has that name")
    return named, True, False


def tool_rules(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """A grammar's rule for the JSON object inside of a call, for each tool; raises UsageError."""
    return [json_rule(_call_schema(tool["function"])) for tool in tools]


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object"}
    members: dict[str, Any] = {"name": {"const": function["name"]}, "arguments": parameters}
    schema = {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}
    if isinstance(parameters, Mapping):  # references point at the root
        schema |= {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    return schema
