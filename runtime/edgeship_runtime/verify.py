"""Is this artifact what was sealed, and does it do here what it did there? One verdict.

Checks run in order and the first that makes the next one pointless ends it: nothing is opened by an engine while a
hash is wrong.

1. `files`: every file of the manifest, its size and sha256, and no file beside them.
2. `size`: the directory against the size budget.
3. `templates`, `tokens`: the acceptance conversations give the same text, and that text the same token ids.
4. `agreement`: the engine's logits against golden ones, teacher-forced: after every position the *golden* token
   follows, so that one difference does not decide all that come after it. Where the artifact has the float model's
   predictions too, the KL divergence from those is estimated: from its likeliest tokens and all others as one, so that
   it is never more than the whole vocabulary's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.acceptance import (
    CHATS,
    FIDELITY,
    GOLDEN,
    ChatCase,
    FloatComparison,
    FloatModel,
    GoldenCase,
    Position,
    read_chats,
    read_golden,
    render_problem,
)
from edgeship_runtime.board import kernels
from edgeship_runtime.chat import load_template
from edgeship_runtime.engines import Engine, formats, open_engine
from edgeship_runtime.errors import EngineError, UsageError, VerifyError
from edgeship_runtime.facts import GENERATE, REWRITE
from edgeship_runtime.manifest import MANIFEST_NAME, Manifest, check_files, locate, model_path, read_manifest
from edgeship_runtime.strict import nearest, show
from edgeship_runtime.tokens import TextTokens, find_tokenizer
from edgeship_runtime.tolerances import LOGIT_ERROR_STD

CHECKS = ("files", "size", "templates", "tokens", "agreement")

UNSEALED_EXIT_CODE = 15
"""The directory has no manifest: neither right nor wrong."""

Progress = Callable[[str, float], None]
"""Called with what is being checked and the share of it that is done, 0 to 1; from any thread."""


@dataclass(frozen=True)
class Count:
    """Acceptance cases that were compared and those that came out equal."""

    cases: int
    equal: int


@dataclass(frozen=True)
class Tie:
    """A position where the engine chose another token; `gap_std` is how much less golden it is, None: not known."""

    case: str
    index: int
    expected: int
    chosen: int
    gap_std: float | None
    tolerated: bool


@dataclass(frozen=True)
class Agreement:
    """Engine against golden logits; errors are the largest of any golden top logit, plain and in deviations."""

    engine: str
    positions: int
    equal: int
    near_ties: int
    wrong: int
    max_logit_error: float
    max_logit_error_std: float
    kernels: str = "unknown"
    ties: tuple[Tie, ...] = ()
    cosine: float | None = None
    """Smallest similarity of an encoder's answers to the float model's; its `equal` are those that are close enough."""
    float_model: FloatModel | None = None


@dataclass(frozen=True)
class Size:
    """All files in MB of 10^6 bytes, and the budget, None where there is none."""

    mb: float
    budget_mb: float | None


@dataclass(frozen=True)
class Verdict:
    """What was checked and what came of it; None where a check did not run."""

    artifact: str
    name: str
    verdict: Literal["pass", "fail", "unsealed"]
    intact: bool | None = None
    size: Size | None = None
    templates: Count | None = None
    tokens: Count | None = None
    agreement: Agreement | None = None
    skipped: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 for a pass, VerifyError's for a failure, UNSEALED_EXIT_CODE for a directory without manifest."""
        return {"pass": 0, "fail": VerifyError.exit_code, "unsealed": UNSEALED_EXIT_CODE}[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """The verdict as one JSON object."""
        return asdict(self)

    def table(self) -> str:
        """The verdict for people: a line for each check, then what failed."""
        if self.verdict == "unsealed":
            return f"{self.artifact}\nunsealed: no {MANIFEST_NAME}, so there is nothing to verify against"
        rows = [("artifact", self.artifact), *self._rows(), ("verdict", f"{self.verdict} after {self.seconds:.1f} s")]
        return "\n".join([*(f"{name:<12} {text}" for name, text in rows), *(f"  {each}" for each in self.failures)])

    def _rows(self) -> list[tuple[str, str]]:
        size, agreement = self.size, self.agreement
        texts = {
            "files": None if self.intact is None else "intact" if self.intact else "NOT intact",
            "size": size and f"{size.mb:.1f} MB" + (f" of {size.budget_mb:g} MB" if size.budget_mb else ", no budget"),
            "templates": self.templates and f"{self.templates.equal} of {self.templates.cases} equal",
            "tokens": self.tokens and f"{self.tokens.equal} of {self.tokens.cases} equal",
            "agreement": agreement and _agreement_text(agreement),
        }
        return [(name, text or ("skipped" if name in self.skipped else "not run")) for name, text in texts.items()]


def _agreement_text(found: Agreement) -> str:
    if found.cosine is not None:
        share = f"{found.equal} of {found.positions} texts close to the float model"
        return f"{share}, cosine at least {found.cosine:.4f}\n{'':<13}{found.engine}, kernels {found.kernels}"
    lines = [
        f"{found.equal} of {found.positions} tokens equal, {found.near_ties} near ties, {found.wrong} wrong",
        f"largest logit error {found.max_logit_error:.4f} ({found.max_logit_error_std:.3f} deviations)",
        f"{found.engine}, kernels {found.kernels}",
    ]
    if it := found.float_model:
        said = f"{it.equal} of {it.positions} tokens equal, KL {it.kl_mean:.4f} of at most {it.kl_budget:.4f}"
        lines.append(f"float model: {said}")
    near = [tie for tie in found.ties if tie.tolerated]
    lines += [f"near tie: {tie.case}, position {tie.index}: gap {tie.gap_std:.3f} deviations" for tie in near]
    return f"\n{'':<13}".join(lines)


def verify(
    path: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    engine: str | None = None,
    options: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
    progress: Progress | None = None,
) -> Verdict:
    """Check the artifact at `path`; `skip` names checks of CHECKS to leave out; `context` None: what they need.

    `engine` and `options` are those of `load`.

    A difference is a verdict and not an exception. Raises ArtifactError for a manifest or acceptance file that
    cannot be read, UsageError for an unknown check, and what opening the engine raises.
    """
    for name in skip:
        if name not in CHECKS:
            raise UsageError(f"there is no check {show(name)} ({nearest(name, CHECKS)})")
    start = time.perf_counter()
    directory = locate(path, formats(engine))
    manifest = read_manifest(directory)
    if not manifest.sealed:
        return Verdict(str(directory), manifest.name, "unsealed")
    found = _Findings(directory, manifest, frozenset(skip), progress or (lambda what, share: None))
    found.check_files()
    found.check_size()
    if not found.failures and manifest.model.task != GENERATE:
        found.check_encoder(threads)
    elif not found.failures:
        found.check_chats()
        found.check_agreement(engine, threads, context, options)
    return Verdict(
        artifact=str(directory),
        name=manifest.name,
        verdict="fail" if found.failures else "pass",
        skipped=tuple(name for name in CHECKS if name in skip),
        failures=tuple(found.failures),
        seconds=round(time.perf_counter() - start, 3),
        **found.results,
    )


@dataclass
class _Findings:
    """The checks and what they found so far; `results` are fields of Verdict."""

    directory: Path
    manifest: Manifest
    skip: frozenset[str]
    progress: Progress
    results: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check_files(self) -> None:
        if "files" in self.skip:
            return
        problems = check_files(
            self.directory, self.manifest, lambda done, total: self.progress("files", done / max(total, 1))
        )
        self.results["intact"] = not problems
        self.failures += [f"files: {problem}" for problem in problems]

    def check_size(self) -> None:
        if "size" in self.skip:
            return
        entries = self.manifest.files.values()
        total = sum(entry.size for entry in entries) + (self.directory / MANIFEST_NAME).stat().st_size
        size = self.results["size"] = Size(round(total / 1e6, 3), self.manifest.budgets.size_mb)
        if size.budget_mb is not None and total > size.budget_mb * 1e6:
            self.failures.append(f"size: {size.mb} MB is more than the budget of {size.budget_mb:g} MB")

    def check_chats(self) -> None:
        """Templates and tokens. Tokens are those of the text that was sealed, so that each check stands alone."""
        if {"templates", "tokens"} <= self.skip:
            return
        cases = read_chats(self.directory, self.manifest)
        if "templates" not in self.skip:
            self._check_templates(cases)
        if "tokens" not in self.skip:
            self._check_tokens(cases)

    def _check_templates(self, cases: Sequence[ChatCase]) -> None:
        self.progress("templates", 0.0)
        template = load_template(self.directory, self.manifest) if cases else None
        if cases and template is None:
            self.failures.append(f"templates: {CHATS} has {len(cases)} cases and the artifact no chat template")
        problems = [render_problem(template, case) for case in cases] if template else [""] * len(cases)
        self.results["templates"] = Count(len(cases), problems.count("") if template else 0)
        self.failures += [f"templates: {case.name}: {said}" for case, said in zip(cases, problems, strict=True) if said]

    def _check_tokens(self, cases: Sequence[ChatCase]) -> None:
        self.progress("tokens", 0.0)
        texts = [(case, case.rendered) for case in cases if case.rendered is not None]
        wrong: dict[str, str] = {}
        with ExitStack() as stack:
            for source, tokenizer in self._tokenizers(stack):
                for case, text in texts:
                    # By a GGUF's vocabulary: older releases of llama.cpp read a text as the tokenizer does.
                    right = (case.token_ids, case.gguf_token_ids) if source else (case.token_ids,)
                    if tuple(tokenizer.encode(text)) not in right:
                        wrong.setdefault(case.name, f"the token ids differ{source}")
        self.results["tokens"] = Count(len(texts), len(texts) - len(wrong))
        self.failures += [f"tokens: {name}: {said}" for name, said in wrong.items()]

    def _tokenizers(self, stack: ExitStack) -> Iterator[tuple[str, TextTokens]]:
        """All that the artifact has: other programs read the vocabulary inside a GGUF file and not tokenizer.json."""
        beside = find_tokenizer(self.directory, self.manifest)
        if beside:
            yield "", beside
        if self.manifest.format == "gguf":
            from edgeship_runtime.engines.llama_library import LoadedModel
            from edgeship_runtime.gguf_model import read_model
            from edgeship_runtime.llama_tokens import LlamaTokenizer

            path = model_path(self.directory, self.manifest)
            read_model(path)
            model = stack.enter_context(closing(LoadedModel(path, vocabulary_only=True)))
            yield f" (by the vocabulary in {path.name})", LlamaTokenizer(model)

    def check_encoder(self, threads: int | None) -> None:
        if "agreement" in self.skip:
            return
        if self.manifest.model.task == REWRITE:
            from edgeship_runtime.seq2seq import check
        else:
            from edgeship_runtime.encoder import check

        self.progress("agreement", 0.0)
        self.results["tokens"], self.results["agreement"], failures = check(self.directory, self.manifest, threads)
        self.failures += failures

    def check_agreement(
        self, engine: str | None, threads: int | None, context: int | None, options: Mapping[str, Any] | None
    ) -> None:
        if "agreement" in self.skip:
            return
        golden = read_golden(self.directory, self.manifest)
        if context is not None and context < golden.context:
            raise UsageError(f"{GOLDEN} needs a context of {golden.context} tokens, found {context}")
        self.progress("agreement", 0.0)
        size = context or golden.context
        with closing(
            open_engine(self.directory, self.manifest, engine=engine, context=size, threads=threads, options=options)
        ) as opened:
            comparison = _Comparison(golden.tie_tolerance)
            if FIDELITY in self.manifest.files:
                comparison.floats = FloatComparison(read_golden(self.directory, self.manifest, FIDELITY))
            for done, case in enumerate(golden.cases):
                try:
                    comparison.run(opened, case)
                except EngineError as error:
                    self.failures.append(f"agreement: {case.name}: {error.message}")
                    return
                self.progress("agreement", (done + 1) / len(golden.cases))
            self.results["agreement"] = comparison.agreement(opened.name)
        self.failures += [f"agreement: {each}" for each in comparison.failures]


@dataclass
class _Comparison:
    """Golden and engine's logits, position by position."""

    tie_tolerance: float
    positions: int = 0
    equal: int = 0
    max_error: float = 0.0
    max_error_std: float = 0.0
    ties: list[Tie] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    floats: FloatComparison | None = None

    def run(self, engine: Engine, case: GoldenCase) -> None:
        engine.truncate(0)
        for position in case.positions:
            logits = engine.evaluate(case.tokens[engine.length : position.index + 1])
            self._compare(case.name, position, logits)

    def _compare(self, name: str, golden: Position, logits: NDArray[np.float32]) -> None:
        self.positions += 1
        if not np.isfinite(logits).all():
            self.failures.append(f"{name}, position {golden.index}: the engine gave logits that are no numbers")
            self.ties.append(Tie(name, golden.index, golden.top_ids[0], -1, None, tolerated=False))
            return
        self._measure(name, golden, logits)
        if self.floats:
            self.floats.add(name, golden.index, logits)
        chosen = int(np.argmax(logits))
        if chosen == golden.top_ids[0]:
            self.equal += 1
            return
        gap = self._gap(golden, chosen)
        tolerated = gap is not None and gap < self.tie_tolerance
        self.ties.append(Tie(name, golden.index, golden.top_ids[0], chosen, gap, tolerated))
        if not tolerated:
            far = "not among the golden best" if gap is None else f"{gap:.3f} deviations behind"
            said = f"expected token {golden.top_ids[0]}, found {chosen}, {far}"
            self.failures.append(f"{name}, position {golden.index}: {said} (tolerance {self.tie_tolerance:g})")

    def _measure(self, name: str, golden: Position, logits: NDArray[np.float32]) -> None:
        error = float(np.abs(logits[list(golden.top_ids)] - np.array(golden.top_logits, np.float32)).max())
        in_std = error / golden.std if golden.std else 0.0
        self.max_error, self.max_error_std = max(self.max_error, error), max(self.max_error_std, in_std)
        if in_std > LOGIT_ERROR_STD:
            said = f"a logit is off by {in_std:.2f} deviations, more than {LOGIT_ERROR_STD:g}"
            self.failures.append(f"{name}, position {golden.index}: {said}")

    @staticmethod
    def _gap(golden: Position, chosen: int) -> float | None:
        """How far the chosen token's golden logit is behind the best, in deviations; None when it is not known."""
        if chosen not in golden.top_ids:
            return None
        behind = golden.top_logits[0] - golden.top_logits[golden.top_ids.index(chosen)]
        return behind / golden.std if golden.std else 0.0

    def agreement(self, engine: str) -> Agreement:
        near = sum(tie.tolerated for tie in self.ties)
        model = self.floats.result() if self.floats else None
        if model and model.kl_mean > model.kl_budget:
            self.failures.append(f"{model.kl_mean:g} nats from the float model, more than {model.kl_budget:g}")
        return Agreement(
            engine=engine,
            positions=self.positions,
            equal=self.equal,
            near_ties=near,
            wrong=len(self.ties) - near,
            max_logit_error=round(self.max_error, 5),
            max_logit_error_std=round(self.max_error_std, 5),
            kernels=kernels(engine),
            ties=tuple(self.ties),
            float_model=model,
        )
