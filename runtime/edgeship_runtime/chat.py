"""The checkpoint's own chat template: messages in, the prompt's text out, equal to transformers' `apply_chat_template`.

The template runs in the sandbox of `edgeship_runtime.sandbox`. It sees plain data only: messages and tools are
checked and copied first, because objects have methods that a sandbox cannot judge.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship_runtime.errors import ArtifactError, TemplateError, UsageError, missing_package
from edgeship_runtime.manifest import Manifest, artifact_file
from edgeship_runtime.strict import parse_json, read_bytes, show

if TYPE_CHECKING:
    import jinja2

    from edgeship_runtime.sandbox import Sandbox

Message = Mapping[str, Any]

MAX_TEMPLATE = 1 << 18
"""Characters of a template; the longest in use have some 30,000."""
MAX_CONFIG_BYTES = 1 << 24
MAX_DEPTH = 50
"""Nesting of messages and tools: a tool's schema has about ten levels."""

# What transformers calls `special_tokens_map`, given to every template.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Names under which libraries put an assistant's reasoning; templates read the first (gpt-oss: `thinking`).
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TEMPLATE_FILE = "chat_template.jinja"
_TEMPLATE_FOLDER = "additional_chat_templates/"
_CONFIG_FILE = "tokenizer_config.json"
_FOREIGN_HINT = "the template came with the checkpoint; do not use an artifact whose template you would not trust"


class ChatTemplate:
    """A compiled template, or several named ones of which `tool_use` serves conversations with tools."""

    def __init__(
        self,
        source: str | Mapping[str, str],
        variables: Mapping[str, Any] | None = None,
        *,
        time_limit_s: float = 10.0,
    ) -> None:
        """Compile `source`; `variables` (bos_token and the like) are given to every render.

        `time_limit_s`: an honest template takes milliseconds, or a second for a book on a slow board.

        Raises TemplateError when it does not parse, is too long, or no template is named `default`.
        """
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in sources:
            raise TemplateError(
                f"the chat templates are named {', '.join(map(show, sources)) or 'not at all'}, and none 'default'",
                hint="export the artifact again from a checkpoint with a default template, or run it with --raw",
            )
        self._variables = dict(variables or {})
        self._sandbox = _sandbox()
        self._time_limit_s = time_limit_s
        self._templates = {name: _compile(self._sandbox, text) for name, text in sources.items()}
        self._lock = threading.Lock()  # the sandbox meters one render at a time

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as the text the model was trained on; `enable_thinking` None leaves it to the template.

        Raises UsageError when messages, tools or variables are malformed, TemplateError when the template refuses
        them, fails, or breaks a limit of the sandbox.
        """
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        given: dict[str, Any] = {
            **self._variables,
            **{name: plain(value, name) for name, value in variables.items()},
            **thinking,
            "messages": check_messages(messages),
            "tools": None if tools is None else check_tools(tools),
            "documents": plain(variables.get("documents"), "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        with self._lock:
            return _render(self._sandbox, self._templates[name], given, self._time_limit_s)


def load_template(directory: Path, manifest: Manifest) -> ChatTemplate | None:
    """The template of an artifact directory: `chat_template.jinja`, else the one in `tokenizer_config.json`.

    None when there is none. Raises ArtifactError when a file is damaged or not JSON, TemplateError as ChatTemplate.
    """
    config = _read_config(directory, manifest)
    source: str | dict[str, str] | None = None
    files = _template_files(directory, manifest)
    if files:
        source = {name: _read_text(artifact_file(directory, manifest, file)) for name, file in files.items()}
    elif config.get("chat_template") is not None:
        source = _named_templates(directory / _CONFIG_FILE, config["chat_template"])
    tokens = {name: token for name in SPECIAL_TOKENS if (token := _token_text(config.get(name)))}
    return None if source is None else ChatTemplate(source, tokens)


def _template_files(directory: Path, manifest: Manifest) -> dict[str, str]:
    """File names by template name, as transformers saves them."""
    if manifest.sealed:
        names = sorted(manifest.files)
    else:
        names = [_TEMPLATE_FILE] if (directory / _TEMPLATE_FILE).exists() else []
        names += sorted(f"{_TEMPLATE_FOLDER}{path.name}" for path in (directory / _TEMPLATE_FOLDER).glob("*.jinja"))
    found = {"default": _TEMPLATE_FILE} if _TEMPLATE_FILE in names else {}
    for name in names:
        if name.startswith(_TEMPLATE_FOLDER) and name.endswith(".jinja"):
            found[name.removeprefix(_TEMPLATE_FOLDER).removesuffix(".jinja")] = name
    return found


def _read_config(directory: Path, manifest: Manifest) -> dict[str, Any]:
    if _CONFIG_FILE not in manifest.files and (manifest.sealed or not (directory / _CONFIG_FILE).exists()):
        return {}
    path = artifact_file(directory, manifest, _CONFIG_FILE)
    config = parse_json(read_bytes(path, MAX_CONFIG_BYTES), str(path))
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: expected an object, found {show(config)}", hint="export the artifact again")
    return config


def _read_text(path: Path) -> str:
    try:
        # Line ends as Python's text mode reads them, which is how transformers does.
        return read_bytes(path, 4 * MAX_TEMPLATE).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: not UTF-8 text (byte {error.start})", hint="export the artifact again") from None


def _named_templates(path: Path, value: object) -> str | dict[str, str]:
    """`chat_template` of tokenizer_config.json: one text, or a list of {"name", "template"}."""
    if isinstance(value, str):
        return value
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else [None]:
        name, text = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise ArtifactError(
                f"{path}: chat_template: expected text, or a list of objects with name and template",
                hint="export the artifact again",
            )
        named[name] = text
    return named


def _token_text(value: object) -> str:
    """A special token, written as text or as an AddedToken object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Copy a conversation as plain data, members that are None left out as transformers does; raises UsageError."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UsageError(f"messages: expected a list of messages, found {_kind(messages)}", hint=_MESSAGE_HINT)
    if not messages:
        raise UsageError("messages: the conversation is empty", hint=_MESSAGE_HINT)
    return [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


_MESSAGE_HINT = 'a message is {"role": "user", "content": "..."}'


def _check_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where}: expected an object, found {_kind(message)}", hint=_MESSAGE_HINT)
    copy = {key: value for key, value in plain(message, where).items() if value is not None}
    if not isinstance(copy.get("role"), str):
        raise UsageError(f"{where}.role: expected text, found {_kind(message.get('role'))}", hint=_MESSAGE_HINT)
    content = copy.get("content", "")
    if isinstance(content, list):
        for i, part in enumerate(content):
            if not isinstance(part, str | dict):
                raise UsageError(f"{where}.content[{i}]: expected text or an object, found {_kind(part)}")
    elif not isinstance(content, str):
        hint = 'content is text, or a list of parts such as {"type": "text", "text": "..."}'
        raise UsageError(f"{where}.content: expected text or a list of parts, found {_kind(content)}", hint=hint)
    calls = copy.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        hint = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
        raise UsageError(f"{where}.tool_calls: expected a list of objects, found {_kind(calls)}", hint=hint)
    reasoning = next((copy[name] for name in _REASONING if name in copy), None)
    return copy if reasoning is None else {"thinking": reasoning, **copy, "reasoning_content": reasoning}


def check_tools(tools: object) -> list[dict[str, Any]]:
    """Copy tool descriptions (JSON schemas) as plain data; raises UsageError."""
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise UsageError(f"tools: expected a list of tools, found {_kind(tools)}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            hint = 'a tool is {"type": "function", "function": {"name": "...", "parameters": {...}}}'
            raise UsageError(f"tools[{i}]: expected an object, found {_kind(tool)}", hint=hint)
    return [plain(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of JSON's types only; raises UsageError for anything else and for nesting over MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise UsageError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, str):  # subclasses carry methods of their own
        return str.__str__(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"{where}: expected names of type text, found {_kind(key)}")
        return {str.__str__(key): plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise UsageError(f"{where}: expected text, numbers, lists and objects, found {_kind(value)}")


def _kind(value: object) -> str:
    names = {str: "text", dict: "an object", list: "a list", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _sandbox() -> Sandbox:
    try:
        import jinja2
    except ImportError:
        raise missing_package("jinja2", "ort", "a chat template") from None
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < (3, 1, 6):
        error = missing_package("jinja2>=3.1.6", "ort", "a chat template")
        error.message += f"; found {jinja2.__version__}, whose sandbox is known to leak"
        raise error
    from edgeship_runtime.sandbox import Sandbox

    return Sandbox()


def _compile(sandbox: Sandbox, source: str) -> jinja2.Template:
    import jinja2

    from edgeship_runtime.meter import Meter

    if len(source) > MAX_TEMPLATE:
        raise TemplateError(
            f"the chat template is {len(source)} characters long; at most {MAX_TEMPLATE} are read", hint=_FOREIGN_HINT
        )
    sandbox.meter = Meter()
    try:
        return sandbox.compile_template(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"the chat template does not parse: line {error.lineno}: {error.message}",
            hint="use --raw to run without a template, or export again from a checkpoint whose template parses",
        ) from None
    except Exception as error:  # what a hostile template can raise in the compiler has no end
        raise TemplateError(f"the chat template does not compile ({_brief(error)})", hint=_FOREIGN_HINT) from None


def _render(sandbox: Sandbox, template: jinja2.Template, variables: Mapping[str, Any], limit_s: float) -> str:
    import jinja2

    from edgeship_runtime.meter import LimitError, Meter
    from edgeship_runtime.sandbox import metered_pieces

    sandbox.meter = meter = Meter(limit_s)
    for value in variables.values():
        meter.give(value)
    try:
        return "".join(metered_pieces(template, meter, variables))
    except LimitError as error:
        raise TemplateError(f"the chat template was stopped: {error.message}", hint=_FOREIGN_HINT) from None
    except jinja2.UndefinedError as error:
        hint = "the messages lack something that this template needs"
        raise TemplateError(f"the chat template failed: {error.message}", hint=hint) from None
    except jinja2.exceptions.SecurityError as error:
        raise TemplateError(f"the chat template is refused: {error.message}", hint=_FOREIGN_HINT) from None
    except jinja2.TemplateError as error:
        hint = "the conversation is not one this model was trained on: check the roles and their order"
        raise TemplateError(f"the chat template refuses the conversation: {error.message}", hint=hint) from None
    except Exception as error:  # a template can raise whatever Python can
        hint = "check the messages; if they are in order, the template is broken"
        raise TemplateError(f"the chat template failed ({_brief(error)})", hint=hint) from None


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
