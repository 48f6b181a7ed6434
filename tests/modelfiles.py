"""Ollama's Modelfile, read as docs/modelfile.mdx describes it and parser/parser.go (ParseFile, FormatParams) does it.

An instruction is a word, white space, and a value that ends with its line; in double or three double quotes it may
span lines. Characters that are not printable are dropped, but for white space inside quotes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INSTRUCTIONS = ("from", "license", "template", "system", "adapter", "parameter", "message", "requires")
PARAMETERS: dict[str, type] = {
    "num_ctx": int,
    "repeat_last_n": int,
    "repeat_penalty": float,
    "temperature": float,
    "seed": int,
    "stop": str,
    "num_predict": int,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "presence_penalty": float,  # in api/types.go (Options), not in the table of the page
}


class ModelfileError(Exception):
    """Ollama would refuse the file."""


@dataclass
class Parsed:
    """The instructions of a Modelfile; parameters as their types, `stop` as all that are given."""

    source: str = ""
    template: str | None = None
    system: str | None = None
    parameters: dict[str, int | float | list[str]] = field(default_factory=dict)
    licenses: list[str] = field(default_factory=list)


def parse(text: str) -> Parsed:
    """The Modelfile; raises ModelfileError."""
    out = Parsed()
    for name, value in _commands(text):
        if name == "from":
            out.source = value
        elif name == "template":
            out.template = value
        elif name == "system":
            out.system = value
        elif name == "license":
            out.licenses.append(value)
        elif name.startswith("parameter "):
            _parameter(out, name.removeprefix("parameter "), value)
        else:
            raise ModelfileError(f"not expected here: {name}")
    if not out.source:
        raise ModelfileError("no FROM line")
    return out


def _commands(text: str) -> list[tuple[str, str]]:
    out, at = [], 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        else:
            name, at = _word(text, at)
            if name.lower() not in INSTRUCTIONS:
                raise ModelfileError(f"no such instruction: {name}")
            if name.lower() == "parameter":
                parameter, at = _word(text, at)
                name = f"parameter {parameter}"
            value, at = _value(text, at)
            out.append((name.lower(), value))
    return out


def _word(text: str, at: int) -> tuple[str, int]:
    end = at
    while end < len(text) and text[end] not in " \t\r\n":
        end += 1
    if end == len(text) or text[end] in "\r\n":
        raise ModelfileError(f"{text[at:end]}: no value")
    return text[at:end], end + 1


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins here: it ends at the first line end where its quotes are closed."""
    end = at
    while True:
        end = _line_end(text, end)
        value = _unquoted("".join(c for c in text[at:end] if c.isprintable() or c in " \t\r\n").strip())
        if value is not None:
            return value, end
        if end == len(text):
            raise ModelfileError("unexpected end of file in quotes")
        end += 1


def _line_end(text: str, at: int) -> int:
    ends = [i for i in (text.find("\n", at), text.find("\r", at)) if i >= 0]
    return min(ends, default=len(text))


def _unquoted(value: str) -> str | None:
    """The value without its quotes; None while they are open."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            whole = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if whole else None
    return value


def _parameter(out: Parsed, name: str, value: str) -> None:
    if name not in PARAMETERS:
        raise ModelfileError(f"unknown parameter {name!r}")
    if name == "stop":
        stops = out.parameters.setdefault("stop", [])
        assert isinstance(stops, list)
        stops.append(value)
        return
    try:
        out.parameters[name] = PARAMETERS[name](value)
    except ValueError as error:
        raise ModelfileError(f"invalid value for {name}: {value}") from error
