"""The one pass over the checkpoint: read rows, put them on the grid, hand them to every format's file."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeship.encodings import Encoding
from edgeship.errors import CheckpointError
from edgeship.memory import Budget
from edgeship.quant import ggml, rtn
from edgeship.scratch import Scratch
from edgeship.tensors import EncodedRows, LazyTensor, QuantizedRows, Raw, widen

Stored = QuantizedRows | EncodedRows | NDArray[np.float32]


class Sink(Protocol):
    """A format's file: takes rows of a tensor in any order, from several threads."""

    def put(self, key: str, a: int, rows: Stored) -> None: ...


class Codes(Protocol):
    """Codes of a weight that were chosen before; safe from several threads."""

    def rows(self, a: int, b: int) -> QuantizedRows: ...


@dataclass(frozen=True)
class Job:
    """One tensor to write: its key in the layouts, where it comes from, how it is stored, and who takes it."""

    key: str
    tensor: LazyTensor
    encoding: Encoding
    sinks: Sequence[Sink]
    importance: NDArray[np.float32] | None = None  # [columns]: weighs rounding errors, where ggml chooses the codes
    codes: Codes | None = None  # takes the place of rounding


@dataclass(frozen=True)
class Step:
    """What a worker reports: bytes of the checkpoint it has worked through, and the job if that was its last chunk."""

    job: Job
    nbytes: int
    done: bool


def stream(jobs: Sequence[Job], budget: Budget) -> Generator[Step, None, None]:
    """Work through all jobs in order with `budget.workers` threads, yielding a step per chunk as it is written.

    Raises the first worker's error. Closing the iterator early (an interrupt, an error in the consumer) stops the
    workers after their current chunk.
    """
    chunks = _Chunks(jobs, budget.chunk)
    steps: queue.SimpleQueue[Step | BaseException | None] = queue.SimpleQueue()
    stop, scratch = threading.Event(), Scratch()

    def work() -> None:
        try:
            while not stop.is_set() and (chunk := chunks.take()) is not None:
                job, a, b = chunk
                rows = job.codes.rows(a, b) if job.codes else _encode(job, job.tensor.raw(a, b), scratch)
                for sink in job.sinks:
                    sink.put(job.key, a, rows)
                steps.put(Step(job, job.tensor.nbytes * (b - a) // job.tensor.shape[0], chunks.finish(job)))
        except BaseException as error:  # carried to the consumer's thread, whatever it is
            steps.put(error)
        finally:
            steps.put(None)

    workers = [threading.Thread(target=work, name=f"stream-{i}", daemon=True) for i in range(budget.workers)]
    for worker in workers:
        worker.start()
    running = len(workers)
    try:
        while running:
            step = steps.get()
            if step is None:
                running -= 1
            elif isinstance(step, BaseException):
                raise step
            else:
                yield step
    finally:
        stop.set()
        for worker in workers:
            worker.join()


class _Chunks:
    """Row ranges of every job in file order, given out one at a time, and what is still missing of each job."""

    def __init__(self, jobs: Sequence[Job], elements: int) -> None:
        self._lock = threading.Lock()
        self._missing: dict[str, int] = {}
        self._ranges = iter(self._cut(jobs, elements))

    def _cut(self, jobs: Sequence[Job], elements: int) -> Iterator[tuple[Job, int, int]]:
        for job in jobs:
            rows = job.tensor.shape[0]
            step = max(1, elements // max(1, prod(job.tensor.shape[1:])))
            self._missing[job.key] = -(-rows // step)
            for a in range(0, rows, step):
                yield job, a, min(a + step, rows)

    def take(self) -> tuple[Job, int, int] | None:
        with self._lock:
            return next(self._ranges, None)

    def finish(self, job: Job) -> bool:
        """Count one chunk of the job as written; true for its last."""
        with self._lock:
            self._missing[job.key] -= 1
            return self._missing[job.key] == 0


def _encode(job: Job, raw: Raw, scratch: Scratch) -> Stored:
    encoding, what = job.encoding, f"{job.tensor.source}: tensor {job.tensor.name}"
    if encoding.on_grid and (job.importance is None or encoding.bits != 4):  # ggml's Q8_0 takes no importance
        rows = rtn.quantize(raw, encoding.bits, encoding.group, scratch)
        _check_finite(job, rows.scales)
        return rows
    values = widen(raw)
    if encoding.on_grid and job.importance is not None:
        return ggml.quantize_to_grid(values, job.importance, what=what)
    if encoding.quantized:
        assert encoding.gguf is not None
        return EncodedRows(encoding.gguf, ggml.quantize(values, encoding.gguf, job.importance, what=what))
    limit = np.finfo(np.float16 if encoding.name == "float16" else np.float32).max
    _check_finite(job, np.where(np.abs(values) <= limit, values, np.float32(np.inf)))
    return values


def _check_finite(job: Job, values: NDArray[np.float32]) -> None:
    """A group with a NaN, an infinity or a value beyond float16 shows in its scale."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{job.tensor.source}: tensor {job.tensor.name}: expected finite weights within the range of float16, "
            f"found NaN, infinity or a larger value. The artifact would answer with garbage.",
            hint="the checkpoint is damaged or was saved mid-divergence: fetch it again, or export an earlier one",
        )
