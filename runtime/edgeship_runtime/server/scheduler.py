"""Gives the engine to requests: a bounded queue, clients in turn, deadlines, cancellation, a watchdog.

One model runs at a time: on the machines this is for a second one would take its cores from the first. Of a model
whose engine runs several sequences together, as many requests are answered at once, each in a lane: a thread with a
model of its own on one of the sequences. Requests join and leave while others go on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import closing, suppress
from typing import Any

from edgeship_runtime.errors import ContextError, DependencyError, TemplateError, UsageError
from edgeship_runtime.model import Model
from edgeship_runtime.server.problems import RequestError, busy, for_client, unavailable
from edgeship_runtime.server.shelf import Report, Shelf
from edgeship_runtime.server.supervised import supervised

Work = Callable[[Model], Generator[Any, None, None]]
"""What a request does with its model, item by item, on the engine's thread; an item for every token or so."""

_REFUSALS = (
    RequestError,
    UsageError,
    ContextError,
    TemplateError,
    DependencyError,
)  # after these the engine is as good as before
_LONGEST_RETRY_S = 60


class Job:
    """One request in the queue or at the engine; items go to the event loop it was made on."""

    def __init__(self, client: str, model: str, work: Work, timeout_s: float) -> None:
        """Call it on the event loop."""
        self.client = client
        self.model = model
        self.work = work
        self.timeout_s = timeout_s
        self.made = time.monotonic()
        self.deadline = self.made + timeout_s
        self.started: float | None = None
        self.first: float | None = None
        """When the first item came."""
        self.stop: RequestError | None = None
        """Why the engine is to stop with it."""
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def deliver(self, kind: str, value: Any = None) -> None:
        """Hand "item", "end" or "error" to the event loop, from any thread."""
        if kind == "item" and self.first is None:
            self.first = time.monotonic()
        with suppress(RuntimeError):  # the loop is closed: nobody is left to read it
            self._loop.call_soon_threadsafe(self._items.put_nowait, (kind, value))

    def cancel(self, reason: RequestError | None = None) -> None:
        """Have the engine stop at its next token, or never start."""
        self.stop = self.stop or reason or unavailable("the request was cancelled", "cancelled")

    def fail(self, reason: RequestError) -> None:
        """Cancel, and tell the reader why at once."""
        self.cancel(reason)
        self.deliver("error", reason)

    async def items(self) -> AsyncIterator[Any]:
        """What the work gave, as it comes; raises the RequestError that ended it. Leaving it early cancels."""
        try:
            while True:
                left = max(0.0, self.made + self.timeout_s - time.monotonic())
                try:
                    kind, value = await asyncio.wait_for(self._items.get(), left)
                except TimeoutError:
                    raise _late(self.timeout_s) from None
                if kind == "end":
                    return
                if kind == "error":
                    raise value
                yield value
        finally:
            self.cancel()


class Scheduler:
    """The queue, and the threads that work it off."""

    def __init__(
        self,
        shelf: Shelf,
        report: Report,
        *,
        parallel: int = 1,
        queue_limit: int = 64,
        timeout_s: float = 600.0,
        stuck_s: float = 600.0,
    ) -> None:
        """`start` begins the work; `parallel`: requests that are answered at once at most."""
        self._shelf = shelf
        self._report = report
        self._queue_limit = queue_limit
        self._timeout_s = timeout_s
        self._stuck_s = stuck_s
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # whose turn it is comes first
        self._changed = threading.Condition()
        self._running: dict[int, Job] = {}  # by lane
        self._current: str | None = None  # the model whose lanes these are
        self._idle: OrderedDict[int, str] = OrderedDict()  # its free lanes, the longest unused first: who had them last
        self._failed = False  # the model is closed when its last request ends
        self._loading = False
        self._alive_at = time.monotonic()
        self._mean_s = 1.0  # of the last requests
        self._draining = False
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"edgeship-lane-{lane}", daemon=True)
            for lane in range(parallel)
        ]
        self._left = parallel  # threads that have not ended

    def start(self) -> None:
        """Begin working."""
        for thread in self._threads:
            thread.start()

    def submit(self, client: str, model: str, work: Work) -> Job:
        """Queue a request; raises RequestError: 404 for the model, 429 for a full queue, 503 while ending or stuck."""
        job = Job(client, self._shelf.check(model), work, self._timeout_s)
        with self._changed:
            if self._draining:
                raise unavailable("the server is ending", "ending")
            if self.stuck:
                raise _stuck_error()
            if self._count() >= self._queue_limit:
                self._forget_cancelled()
            if self._count() >= self._queue_limit and not self._displace(client):
                raise self._full()
            self._waiting.setdefault(client, deque()).append(job)
            self._changed.notify_all()
        return job

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._changed:
            return self._count()

    @property
    def running(self) -> int:
        """Requests at the engine."""
        return len(self._running)

    @property
    def stuck(self) -> bool:
        """Whether the engine has given no sign of life for longer than it may."""
        limit = self._timeout_s if self._loading else self._stuck_s
        return bool(self._running) and time.monotonic() - self._alive_at > limit

    @property
    def alive(self) -> bool:
        """Whether the engine's threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def look_after(self) -> None:
        """Fail what waits for a stuck engine; call it about once a second."""
        if not self.stuck:
            return
        with self._changed:
            running, waiting = list(self._running.values()), self._empty()
        for job in running:
            if job.stop is None:
                self._report("stuck", model=job.model)
                job.fail(_stuck_error())
        for job in waiting:
            job.fail(_stuck_error())

    def drain(self, grace_s: float) -> None:
        """Take no more requests, refuse those that wait, and give the running ones `grace_s`."""
        with self._changed:
            self._draining = True
            waiting = self._empty()
            for job in self._running.values():
                job.deadline = min(job.deadline, time.monotonic() + grace_s)
            self._changed.notify_all()
        for job in waiting:
            job.fail(unavailable("the server is ending", "ending"))

    def close(self, wait_s: float = 5.0) -> bool:
        """End the threads; False when the engine does not come back within `wait_s`."""
        self.drain(0)
        end = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _empty(self) -> list[Job]:
        jobs = [job for queue in self._waiting.values() for job in queue]
        self._waiting.clear()
        return jobs

    def _forget_cancelled(self) -> None:
        """Take out of the queue what nobody waits for any more."""
        left = {client: deque(job for job in queue if job.stop is None) for client, queue in self._waiting.items()}
        self._waiting = OrderedDict((client, queue) for client, queue in left.items() if queue)

    def _full(self) -> RequestError:
        lanes = max(1, len(self._running) + len(self._idle))
        wait = int(self._mean_s * self._queue_limit / lanes) + 1
        return busy(f"the queue is full: {self._queue_limit} requests wait", min(wait, _LONGEST_RETRY_S))

    def _displace(self, client: str) -> bool:
        """Refuse the newest request of whoever waits with the most, if the newcomer has at least two fewer."""
        greedy = max(self._waiting, key=lambda each: len(self._waiting[each]))
        if len(self._waiting[greedy]) < len(self._waiting.get(client, ())) + 2:
            return False
        self._waiting[greedy].pop().fail(self._full())
        return True

    def _next(self, lane: int) -> Job | None:
        """The next request for a lane, clients in turn; None when the server ends."""
        with self._changed:
            while True:
                while self._waiting and (first := self._first()).stop is not None:
                    self._take()
                if self._waiting and self._lane_for(first) == lane:
                    return self._begin(self._take(), lane)
                if not self._waiting and self._draining:
                    return None
                self._changed.wait()

    def _first(self) -> Job:
        """Whose turn it is."""
        return next(iter(self._waiting.values()))[0]

    def _take(self) -> Job:
        """Take it out of the queue."""
        client, queue = self._waiting.popitem(last=False)
        job = queue.popleft()
        if queue:
            self._waiting[client] = queue
        return job

    def _lane_for(self, job: Job) -> int | None:
        """The lane that its client had last, or the longest unused; None while it has to wait.

        Another model waits until the lanes are free, and whoever comes after it waits behind it.
        """
        if not self._running and job.model != self._current:
            return 0
        if job.model != self._current or self._failed:
            return None
        own = [lane for lane, client in self._idle.items() if client == job.client]
        return own[-1] if own else next(iter(self._idle), None)

    def _begin(self, job: Job, lane: int) -> Job:
        if not self._running:
            self._alive_at = time.monotonic()
        if job.model != self._current:
            self._current = job.model
            self._idle.clear()
        self._idle.pop(lane, None)
        self._running[lane] = job
        self._changed.notify_all()  # the next may have its lane, too
        return job

    def _work(self, lane: int) -> None:
        while (job := self._next(lane)) is not None:
            job.started = time.monotonic()
            self._serve(job, lane)
            self._mean_s += 0.1 * (time.monotonic() - job.started - self._mean_s)
            self._leave(lane)
        with self._changed:
            self._left -= 1
            last = not self._left
        if last:
            self._shelf.close()

    def _leave(self, lane: int) -> None:
        """Free a lane; the last one closes a model that has failed."""
        with self._changed:
            job = self._running[lane]
            closing = self._failed and len(self._running) == 1
            if not closing:
                self._free(lane, job.client)
                return
        self._shelf.drop(job.model, failed=True)
        with self._changed:
            self._failed, self._current = False, None
            self._free(lane, job.client)

    def _free(self, lane: int, client: str) -> None:
        del self._running[lane]
        self._idle[lane] = client
        self._changed.notify_all()

    def _borrow(self, job: Job, lane: int) -> Model:
        """The lane's model; loading it says how many lanes there are. Raises RequestError when it cannot be loaded."""
        alone = len(self._running) == 1
        self._loading = alone  # only then may there be anything to load
        try:
            models = self._shelf.borrow(job.model)
        except BaseException:
            with self._changed:
                self._current = None
            raise
        finally:
            self._loading = False
        self._alive_at = time.monotonic()
        with self._changed:
            for number in range(min(len(models), len(self._threads))):
                if number not in self._running:
                    self._idle.setdefault(number, "")
            self._changed.notify_all()
        return models[lane]

    def _serve(self, job: Job, lane: int) -> None:
        model = None
        try:
            model = self._borrow(job, lane)
            with supervised(model, lambda: self._look(job)), closing(job.work(model)) as items:
                for item in items:
                    self._look(job)
                    job.deliver("item", item)
            job.deliver("end")
        except BaseException as error:  # whatever it is, the thread lives on and the reader hears of it
            if model is not None and not isinstance(error, _REFUSALS):
                self._report("engine_failed", model=job.model, error=type(error).__name__)
                self._failed = True
            job.deliver("error", for_client(error))

    def _look(self, job: Job) -> None:
        """Note a sign of life; raise RequestError when the request is to stop."""
        self._alive_at = time.monotonic()
        if job.stop is not None:
            raise job.stop
        if time.monotonic() > job.deadline:
            raise unavailable("the server is ending", "ending") if self._draining else _late(self._timeout_s)


def _late(timeout_s: float) -> RequestError:
    return unavailable(f"the request took longer than {timeout_s:g} s", "timeout")


def _stuck_error() -> RequestError:
    return unavailable("the engine does not answer", "stuck", hint="the server may have to be started again")
