"""What a manifest says beside its files: the model, how to sample it, where it is from, its weights and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from edgeship_runtime.strict import Fields

MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 24
GENERATE, EMBED, LABEL_TEXTS, LABEL_TOKENS, REWRITE = TASKS = (
    "text-generation",
    "feature-extraction",
    "text-classification",
    "token-classification",
    "text2text-generation",
)
"""What a model can be for, as the hub names it."""


@dataclass(frozen=True)
class ModelFacts:
    """What a run must know of the model before the engine opens: sizes in elements, positions in tokens."""

    type: str
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    context_length: int
    default_context: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    logits: str = "last"
    task: str = GENERATE
    """One of TASKS; not written where it is the first."""


@dataclass(frozen=True)
class SamplingDefaults:
    """How the checkpoint's authors sample it; temperature 0 is greedy, top_k 0 and top_p 1 switch those off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class SourceFacts:
    """Where the checkpoint came from: host, repository and the commit it was resolved to."""

    host: str
    repo: str
    revision: str


@dataclass(frozen=True)
class WeightFacts:
    """Bits per weight over all stored weights (None when not known) and the encoding name of each part."""

    bits_per_weight: float | None
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Budgets:
    """Limits the artifact was accepted under, in MB of 10^6 bytes; None where there is none."""

    size_mb: float | None = None
    ram_mb: float | None = None


@dataclass(frozen=True)
class Hints:
    """What was found to run best, None where nothing was: the number of engine threads."""

    threads: int | None = None


def read_source(top: Fields) -> SourceFacts:
    """Member `source`."""
    source = top.object("source", ("host", "repo", "revision"))
    return SourceFacts(source.text("host", limit=100), source.text("repo"), source.text("revision", empty=True))


def read_weights(top: Fields) -> WeightFacts:
    """Member `weights`."""
    weights = top.object("weights", ("bits_per_weight", "parts"))
    return WeightFacts(weights.number("bits_per_weight", 0, 64), weights.text_mapping("parts"))


def read_budgets(top: Fields) -> Budgets:
    """Member `budgets`."""
    budgets = top.object("budgets", ("size_mb", "ram_mb"))
    limits = (budgets.number(key, 0, 1e9) if key in budgets else None for key in ("size_mb", "ram_mb"))
    return Budgets(*limits)


def read_hints(top: Fields) -> Hints:
    """Member `hints`."""
    hints = top.object("hints", ("threads",))
    return Hints(hints.integer("threads", 1, 4096) if "threads" in hints else None)


def read_model(top: Fields) -> ModelFacts:
    """Member `model`."""
    model = top.object("model", tuple(each.name for each in fields(ModelFacts) if each.name != "task"), ("task",))
    facts = model_facts(
        model,
        heads=("layers", "kv_heads", "head_dim"),
        eos=model.integers("eos_token_ids", 0, MAX_VOCAB, limit=64),
        default_context=model.integer("default_context", 1, MAX_CONTEXT),
        logits=model.text("logits", choices=("last", "all")),
        sizes=model,
    )
    if facts.default_context > facts.context_length:
        found = f"{facts.default_context} is more than context_length, {facts.context_length}"
        raise model.error("default_context", found)
    return facts


def model_facts(
    model: Fields,
    *,
    heads: tuple[str, str, str],
    eos: tuple[int, ...],
    default_context: int,
    logits: str,
    sizes: Fields,
) -> ModelFacts:
    """The facts both kinds of directory have; `sizes` holds hidden_size and the three counts named by `heads`."""
    vocab = model.integer("vocab_size", 1, MAX_VOCAB)
    outside = [token for token in eos if token >= vocab]
    if outside:
        raise model.error("eos_token_id", f"token {outside[0]} is outside the vocabulary of {vocab}")
    layers, kv_heads, head_dim = (sizes.integer(name, 1, 1 << 16) for name in heads)
    special = {
        key: model.integer(key, 0, vocab - 1) if key in model else None for key in ("bos_token_id", "pad_token_id")
    }
    return ModelFacts(
        task=model.text("task", choices=TASKS) if "task" in model else GENERATE,
        type=model.text("type", limit=100),
        vocab_size=vocab,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=sizes.integer("hidden_size", 1, 1 << 24),
        context_length=model.integer("context_length", 1, MAX_CONTEXT),
        default_context=default_context,
        bos_token_id=special["bos_token_id"],
        eos_token_ids=eos,
        pad_token_id=special["pad_token_id"],
        logits=logits,
    )


def read_sampling(top: Fields) -> SamplingDefaults:
    """Member `sampling`."""
    return sampling_defaults(top.object("sampling", tuple(each.name for each in fields(SamplingDefaults))))


def sampling_defaults(sampling: Fields, absent: SamplingDefaults | None = None) -> SamplingDefaults:
    """Sampling defaults; with `absent`, members that are missing or null (genai_config.json) are taken from there."""

    def number(name: str, low: float, high: float) -> float:
        if absent and name not in sampling:
            return float(getattr(absent, name))
        return sampling.number(name, low, high)

    return SamplingDefaults(
        temperature=number("temperature", 0, 100),
        top_k=absent.top_k if absent and "top_k" not in sampling else sampling.integer("top_k", 0, MAX_VOCAB),
        top_p=number("top_p", 0, 1),
        min_p=number("min_p", 0, 1),
        repetition_penalty=number("repetition_penalty", 0.01, 100),
        presence_penalty=number("presence_penalty", -100, 100),
    )
