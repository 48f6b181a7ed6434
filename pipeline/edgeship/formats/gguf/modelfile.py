"""The Modelfile that makes a GGUF a model in Ollama, as its docs/modelfile.mdx and parser/parser.go describe it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgeship.formats.gguf.ollama import Layout, recognize
from edgeship.plan import Plan
from edgeship.recipe import Sampling
from edgeship.text import TextSide
from edgeship_runtime.chat import ChatTemplate


@dataclass(frozen=True)
class Modelfile:
    """The file's text, and what it had to leave out, for the user to know."""

    text: str
    notes: tuple[str, ...]


def make_modelfile(plan: Plan, gguf: str, text: TextSide, template: ChatTemplate | None) -> Modelfile:
    """The Modelfile beside the file `gguf`; `template` is the checkpoint's chat template, if it has one.

    Without a TEMPLATE (a note says so), Ollama falls back on what it makes of the Jinja template inside the GGUF.
    """
    notes: list[str] = []
    layout = _layout(text, template, notes)
    lines = [f"# ollama create {plan.recipe.name} -f Modelfile", f"FROM ./{gguf}"]
    if layout is not None:
        lines += ["", f"TEMPLATE {_quoted(layout.go())}"]
        lines += ["", f"SYSTEM {_quoted(layout.system)}"] if layout.system is not None else []
    lines += ["", *(f"PARAMETER {name} {value}" for name, value in _parameters(plan, text))]
    lines += _license(text, notes)
    return Modelfile("\n".join(lines) + "\n", tuple(notes))


def _layout(text: TextSide, template: ChatTemplate | None, notes: list[str]) -> Layout | None:
    if template is None:
        notes.append("Modelfile: the checkpoint has no chat template, so there is no TEMPLATE for Ollama")
        return None
    bos = text.tokenizer.id_to_token(text.special.bos) if text.special.bos is not None else ""
    layout = recognize(template, bos or "")
    if layout is None:
        notes.append(
            "Modelfile: no TEMPLATE, since the chat template writes conversations in a way that edgeship knows no Go "
            "template for; Ollama will use what it makes of the Jinja template itself"
        )
    elif not _quotable(layout.go()) or not _quotable(layout.system or ""):
        notes.append("Modelfile: no TEMPLATE, since the chat template has characters that a Modelfile cannot hold")
        return None
    return layout


def _parameters(plan: Plan, text: TextSide) -> Iterator[tuple[str, str]]:
    yield "num_ctx", str(plan.recipe.context)
    yield from _sampling(plan.recipe.sampling)
    for token in filter(None, map(text.tokenizer.id_to_token, text.special.eos)):
        yield "stop", f'"{token}"'


def _sampling(s: Sampling) -> Iterator[tuple[str, str]]:
    yield "temperature", f"{s.temperature:g}"
    yield "top_k", str(s.top_k)
    yield "top_p", f"{s.top_p:g}"
    yield "min_p", f"{s.min_p:g}"
    yield "repeat_penalty", f"{s.repetition_penalty:g}"
    if s.repetition_penalty != 1:
        yield "repeat_last_n", "-1"  # the whole context, as our runtime and transformers take it
    if s.presence_penalty:
        yield "presence_penalty", f"{s.presence_penalty:g}"


def _license(text: TextSide, notes: list[str]) -> list[str]:
    out = []
    for name in sorted(n for n in text.files if n.startswith("LICENSE")):
        words = text.files[name].decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\f", "")
        if _quotable(words):
            out += ["", f"LICENSE {_quoted(words)}"]
        else:
            notes.append(f"Modelfile: no LICENSE, since {name} has characters that a Modelfile cannot hold")
    return out


def _quotable(text: str) -> bool:
    """Whether Ollama's parser reads it back: it ends at three quotes, and drops what is not printable."""
    return '"""' not in text and all(c.isprintable() or c in "\n\t" for c in text)


def _quoted(text: str) -> str:
    return f'"""{text}"""'
