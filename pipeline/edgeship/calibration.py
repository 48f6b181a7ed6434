"""The `calibration:` section of a recipe: the text that shows what a model's inputs look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from edgeship.yaml_model import Frozen, Line

BATCH_TOKENS = 512  # that go through a layer together: at least one sequence; measured: more multiply no faster
CHUNK = 1 << 21  # weights of a matrix quantized by one thread at a time
CHOOSERS = 4  # threads at most that quantize a matrix's rows
STRIPE = 512  # columns whose products are summed at a time: no second matrix of the sums' size
HEADS = 3  # keys' heads at most whose scores are worked out at once
PROBE_CHUNK = 1 << 20  # weights rounded to measure what it costs, or logits compared, at a time
PROBE_THREADS = 4


class Calibration(Frozen):
    """Text that a calibrated algorithm looks at; without a file the model writes its own."""

    text: Annotated[Line, Field(min_length=1)] | None = Field(
        default=None,
        description="plain text (UTF-8): a file, absolute or relative to the recipe's; without `text` and `chats` the "
        "model writes the text itself, token by token: no file is needed, and a large model takes its time",
    )
    chats: Annotated[Line, Field(min_length=1)] | None = Field(
        default=None,
        description='conversations, a JSON object with "messages" (and "tools") per line, rendered through the '
        "model's chat template: a file, absolute or relative to the recipe's; laid over a base by `extends` it "
        "replaces `text`, and `text` it",
    )
    tokens: int = Field(default=8192, ge=64, le=1 << 20, description="tokens to look at, at most")
    sequence: int = Field(default=512, ge=16, le=4096, description="tokens that are seen together")
    seed: int = Field(default=0, ge=0, le=1 << 31, description="which parts of a longer text are taken")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.text is not None and self.chats is not None:
            text = "'text' and 'chats' are alternatives; remove one of them"
            raise PydanticCustomError("one_calibration_source", text, {"key": "chats"})
        return self

    @property
    def file(self) -> Path | None:
        """The file the text comes from, if any."""
        given = self.text or self.chats
        return None if given is None else Path(given)

    @property
    def length(self) -> int:
        """Tokens of a sequence: never more than are to be looked at."""
        return min(self.sequence, self.tokens)

    @property
    def sequences(self) -> int:
        """How many sequences make up the tokens."""
        return self.tokens // self.length

    def resolved(self) -> dict[str, Any]:
        """The section as JSON values, files without their directories."""
        return {k: Path(v).name if k in ("text", "chats") and v else v for k, v in self.model_dump().items()}
