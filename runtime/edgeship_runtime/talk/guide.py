"""Keeps an answer to a thinking budget and to a grammar while its tokens are chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.decode import Detokenizer
from edgeship_runtime.talk.structured import Matcher
from edgeship_runtime.talk.thinking import CLOSING, OPENING, State, ThoughtParser


class AnswerGuide:
    """A `sampling.Guide`: first the thought, ended when its budget is spent, then the grammar where there is one."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        encode: Callable[[str], list[int]],
        ends: Sequence[int],
        state: State,
        budget: int | None = None,
        matcher: Matcher | None = None,
        *,
        opens: bool = False,
    ) -> None:
        """`state`: where the answer begins; `budget`: tokens of the thought; `opens`: the tag is written first."""
        self._detokenizer = detokenizer
        self._encode = encode
        self._ends = list(ends)
        self._parser = ThoughtParser(state)
        self._budget = budget
        self._matcher = matcher
        self._spent = 0
        self._queue: deque[int] = deque(encode(OPENING) if opens else ())
        if state == "start" and not opens and matcher is not None:
            self._parser.state = "text"
        self._close_if_spent()

    def forced(self) -> int | None:
        """The next token of a tag, or the end once the grammar allows nothing else."""
        if self._queue:
            return self._queue[0]
        if self._matcher is not None and self._answering and self._matcher.finished:
            return self._ends[0]
        return None

    def restrict(self, scores: NDArray[np.float32]) -> None:
        """Ban what the grammar forbids; before it applies, and inside the thought, the end of the answer."""
        if self._answering:
            if self._matcher is not None:
                self._matcher.restrict(scores)
        elif self._matcher is not None or self._parser.state == "thinking":
            scores[self._ends] = -np.inf

    def accept(self, token: int) -> None:
        """Follow the answer by one token."""
        if self._queue:
            self._queue.popleft()
            self._follow(token)
        elif self._answering:
            if self._matcher is not None and token not in self._ends:
                self._matcher.consume([token])
        else:
            self._leave(self._follow(token))

    @property
    def _answering(self) -> bool:
        return self._parser.state in ("after", "text")

    def _follow(self, token: int) -> str:
        """Count a token of the thought; return the text that came after the thought."""
        _, text = self._parser.push(self._detokenizer.push(token))
        if self._parser.state == "thinking":
            self._spent += 1
            self._close_if_spent()
        return text

    def _leave(self, text: str) -> None:
        """Where the thought has just ended, begin the grammar."""
        if not self._answering or self._matcher is None:
            return
        if text:  # glued to the end of the tag's last token
            self._matcher.consume(self._encode(text))
        elif not self._queue:
            self._queue.extend(self._encode("\n\n"))

    def _close_if_spent(self) -> None:
        spent = self._budget is not None and self._spent >= self._budget
        if spent and self._parser.state == "thinking" and not self._queue:
            self._queue.extend(self._encode(CLOSING))
