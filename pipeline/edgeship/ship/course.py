"""How a validation goes on one board: step after step, each again where the connection broke, and one report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from edgeship.device import Device
from edgeship.errors import EdgeshipError, HostError
from edgeship.ship import scripts
from edgeship.ship.contents import Contents
from edgeship.ship.lock import LockedTransport
from edgeship.ship.place import Place
from edgeship.ship.probe import Facts, check_space, with_doctor
from edgeship.ship.push import Need, compare, push
from edgeship.ship.report import Agreement, Board, Check, Done, Report, Sample, line, now
from edgeship.ship.scripts import ROOT
from edgeship.ship.sensors import read_sensors
from edgeship.ship.teller import Teller
from edgeship.ship.transports import CutError, Result, Transport
from edgeship.ship.transports.command import last_line
from edgeship.ship.verdict import MAX_ANSWER, answer_error, judge, read_sample, read_verify
from edgeship.sizes import format_size
from edgeship_runtime.facts import REWRITE
from edgeship_runtime.files import FileEntry

RETRY_AFTER = (1.0, 5.0, 20.0, 40.0)
"""Seconds to wait for a board that was lost, one after the other: a Raspberry Pi starts in about thirty."""
SENSORS = "/sys"
"""Where the board's kernel shows its sensors."""

VERIFY_FAILED = 14
"""Exit code of the runtime, and of install.sh that runs it."""
_UNFIT = 16  # exit code of the doctor that found an error
_TOLD_TO_END = (129, 143)  # by SIGHUP and SIGTERM, which a board that is shut down sends to all that runs
DOCTOR_TIMEOUT = 600.0

Step = Callable[[], str]


@dataclass(frozen=True)
class Options:
    """What the user chose; times in seconds, `threads` None: the runtime's choice."""

    device: Device
    repeats: int = 3
    soak: float = 0.0
    prompt_tokens: int = 512
    decode_tokens: int = 64
    threads: int | None = None
    timeout: float = 1800.0
    prune: bool = False
    fresh: bool = False
    """Verify, and ask the doctor, though neither files nor board changed since they answered."""


@dataclass
class Course:
    """What every validation does; a subclass says its `steps`, and where things lie."""

    transport: Transport
    contents: Contents
    options: Options
    teller: Teller
    stopped: threading.Event
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    _steps: list[Done] = field(default_factory=list)
    _benched: list[tuple[float, bytes, str]] = field(default_factory=list)  # seconds since the first, answer, sensors
    _restarts: dict[str, int] = field(default_factory=dict)
    _facts: Facts | None = None
    _known: dict[str, str] = field(default_factory=dict)  # answers that an earlier validation left on the board
    _board: Board = field(default_factory=Board)
    _need: Need | None = None
    _kernels: str = ""
    _agreement: Agreement | None = None
    _refused: bool = False

    def __post_init__(self) -> None:
        self.transport = self._lock = LockedTransport(self.transport)
        self._place = self.place()

    def place(self) -> Place:
        """Where things lie on the board."""
        raise NotImplementedError

    def steps(self) -> Mapping[str, Step]:
        """By name what is done, in order; each says what came of it."""
        raise NotImplementedError

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """What is sent."""
        return self.contents.files

    def run(self) -> Report | None:
        """Do all steps; None where the transport only pretends. Errors name the step and the host."""
        try:
            for name, work in self.steps().items():
                if self._refused and name != "prune":
                    continue  # what did not verify is not measured
                self._run_step(name, work)
        except CutError:
            self._lock.forget()  # the board cannot be reached
            raise
        finally:
            self._lock.release()
        return None if self.transport.pretends else self._report()

    def _run_step(self, name: str, work: Step) -> None:
        if self.stopped.is_set():
            raise HostError(f"{self.transport.host}: interrupted before step {name}", hint="run the command again")
        self.teller.begin(self.transport.host, name)
        started = time.monotonic()
        try:
            said = self._attempt(name, work)
        except EdgeshipError as error:
            where = f"{self.transport.host}, step {name}: {error.message}"
            raise type(error)(where, hint=error.hint) from None
        seconds = round(time.monotonic() - started, 2)
        self._steps.append(Done(name=name, seconds=seconds, said=line(said)))
        self.teller.end(self.transport.host, name, seconds, said)

    def _attempt(self, name: str, work: Step) -> str:
        """Do a step, again where the connection broke once the board had been reached."""
        lost = False
        for delay in (*RETRY_AFTER, None):
            try:
                if lost:
                    self._find_again(name)
                return work()
            except CutError as error:
                if delay is None or self._facts is None or self.stopped.is_set():
                    raise
                self.teller.say(self.transport.host, f"{name}: {error.message}; trying again in {delay:g} s")
                lost = True
                if self.stopped.wait(delay):
                    raise
        raise AssertionError("the last try returns or raises")

    def _find_again(self, name: str) -> None:
        if not self._note_restart(name, self._lock.take()[0]):
            self._note(f"{name}: the connection broke, and the step was resumed")

    def _note_restart(self, name: str, boot: str) -> bool:
        """Compare the board's boot id with the one from before; a board that restarts twice in a step is given up."""
        assert self._facts is not None
        if not boot or not self._facts.boot or boot == self._facts.boot:
            return False
        self._facts = replace(self._facts, boot=boot)
        self._restarts[name] = self._restarts.get(name, 0) + 1
        if self._restarts[name] > 1:
            hint = (
                "check its power supply and cooling, and what it wrote last (journalctl -b -1 -e); try --threads 1; "
                "then run the same command again: what is done is kept"
            )
            raise HostError("the board restarted, and again when the step was resumed", hint=hint)
        self._known.clear()
        self.teller.say(self.transport.host, f"{name}: the board restarted")
        self._note(f"{name}: the board restarted, and the step was resumed")
        return True

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(line(text))

    def _sh(self, script: str, *given: str, timeout: float = 120.0) -> Result:
        return self.transport.run(["sh", "-c", script, "sh", *given], timeout=timeout)

    # Steps, or parts of them, that several courses have.

    def _last_steps(self, *, prune: bool) -> Mapping[str, Step]:
        """What is done once everything lies there."""
        return {
            "doctor": self._doctor,
            "verify": self._verify,
            "bench": self._bench,
            "fetch": self._fetch,
            **({"prune": self._prune} if prune else {}),
        }

    def _tell_board(self) -> str:
        """Note what a reader of the report has to know of the board, and say in a line what it is."""
        board = self._board
        if board.clock_off_s:
            years = abs(board.clock_off_s) / (365.25 * 86400)
            off = f"{years:.1f} years" if years > 0.1 else f"{abs(board.clock_off_s) / 86400:.1f} days"
            self._note(f"the board's clock is off by {off}; times in this report are this machine's")
        if board.emulated:
            self._note(f"the board is emulated ({board.emulated}): its speed says nothing about the real one")
        features = f", {' '.join(self._board.isa)}" if self._board.isa else ""
        name = self._board.cpu or board.model or board.arch
        python = f", Python {board.python}" if board.python else ""
        return f"{name}, {board.system} {board.arch}{python}{features}"

    def _compare(self, listing: str | None = None) -> Need:
        return compare(self.transport, self.files, self._place.bundle, ROOT, listing)

    def _space(self) -> str:
        self._need = self._compare()
        return self._check_space(self._need.send_bytes)

    def _check_space(self, needed: int) -> str:
        assert self._facts is not None
        return "not known" if self.transport.pretends else check_space(self._facts, needed)

    def _push(self) -> str:
        # Asked again: this may be the second try.
        need = self._compare() if self._need is None else self._need
        self._need = None
        total, done = need.send_bytes, 0

        def progress(n: int, name: str) -> None:
            nonlocal done
            done += n
            self.teller.share(self.transport.host, "push", done, total, name)

        pushed = push(self.transport, self.contents.path, self.files, self._place.bundle, need, progress)
        said = f"{pushed.sent} files, {format_size(pushed.sent_bytes)} sent; {pushed.kept} unchanged"
        return said + (f", {pushed.reused} taken from an earlier version" if pushed.reused else "")

    @property
    def doctor_answer(self) -> str:
        """The file on the board that keeps the doctor's answer."""
        return self._place.answer(f"doctor-{self.contents.digest12}")

    def _doctor(self) -> str:
        """Asked once for each version and start of the board: loading every engine takes as long as a verify there."""
        before = self._known.pop("doctor", "").strip()
        if before:
            with suppress(HostError):  # what a power cut has spoilt is asked again
                board, self._kernels = with_doctor(self._board, before.encode(), self.contents.engine)
                # What the machine is holds until it is started again; how it feels does not.
                self._board = board.model_copy(update={"findings": (), "free_mb": None})
                return f"kernels: {self._kernels or 'not known'}, as before"
        raw = self._ask_doctor()
        if self.transport.pretends:
            return ""
        self._board, self._kernels = with_doctor(self._board, raw, self.contents.engine)
        errors = [each for each in self._board.findings if each.level == "error"]
        if errors:
            raise HostError(errors[0].what, hint=errors[0].hint or "run edgeship-runtime doctor on the board")
        return f"kernels: {self._kernels or 'not known'}"

    def _ask_doctor(self) -> bytes:
        assert self._facts is not None
        boot = "" if self.options.fresh else self._facts.boot
        command = self._place.command("doctor", self._place.artifact)
        done = self._sh(scripts.DOCTOR, self.doctor_answer, boot, *command, timeout=DOCTOR_TIMEOUT)
        raw = done.stdout.encode()
        if done.code not in (0, _UNFIT):
            raise HostError(answer_error(raw) or last_line(done.stderr), hint="see the doctor on the board")
        return raw

    def _verify(self) -> str:
        done, raw = self._measure("verify")
        return "" if self.transport.pretends else self._take_verdict(done, raw)

    def _take_verdict(self, done: Result, raw: bytes) -> str:
        self._check_ran("verify", done, raw)
        self.checks, self._agreement = read_verify(raw)
        self._refused = done.code == VERIFY_FAILED
        return "pass" if done.code == 0 else "fail"

    def _bench(self) -> str:
        """Processes of one answer each: a broken connection costs one of them, and load time is measured each time."""
        task = self.contents.manifest.model.task
        if task == REWRITE:
            self._note(f"a model for {task} is verified by the runtime and run by other programs: nothing was measured")
            return "not measured"
        o = self.options
        started = time.monotonic() - (self._benched[-1][0] if self._benched else 0)
        given = ["--repeats", "1", "--prompt-tokens", str(o.prompt_tokens), "--decode-tokens", str(o.decode_tokens)]
        while len(self._benched) < o.repeats or time.monotonic() - started < o.soak:
            done, raw = self._measure("bench", *given, number=len(self._benched) + 1)
            self._check_ran("bench", done, raw)
            self._benched.append((time.monotonic() - started, raw, done.stdout))
            self.teller.say(self.transport.host, f"bench: {len(self._benched)} done")
            if self.transport.pretends or self.stopped.is_set():
                break
        return f"{len(self._benched)} runs"

    def _fetch(self) -> str:
        if self.transport.pretends:
            return ""
        self.samples = [read_sample(answer, at, sensors) for at, answer, sensors in self._benched]
        return f"{len(self.samples)} answers"

    def _measure(self, name: str, *given: str, number: int | None = None) -> tuple[Result, bytes]:
        """Run `verify` or `bench`, its answer kept on the board; stdout is what the sensors said meanwhile."""
        threads = [] if self.options.threads is None else ["--threads", str(self.options.threads)]
        command = self._place.command(name, self._place.artifact, "--engine", self.contents.engine, *threads, *given)
        answer = self._place.answer(name if number is None else f"{name}-{number}")
        run = ["sh", "-c", scripts.MEASURE, "sh", answer, SENSORS, *command]
        done = self.transport.run(run, timeout=self.options.timeout, on_line=self._tell_line(name, sensors=True))
        if done.code in _TOLD_TO_END:
            raise CutError(f"{name} was told to end there, as by a board that is shut down", hint=_SHUT_DOWN)
        if not self.transport.pretends:
            self._note_restart(name, read_sensors(done.stdout).boot)
        sensors, found, printed = done.stdout.partition(f"{scripts.ANSWER}\n")
        # Where the sensors alone filled what is kept of the output, the answer is in its file.
        raw = printed.encode() if found else self.transport.get(answer, MAX_ANSWER)
        return replace(done, stdout=sensors), raw

    def _check_ran(self, name: str, done: Result, raw: bytes) -> None:
        """Raise HostError where a measurement came to no answer."""
        if done.code in (0, VERIFY_FAILED) or self.transport.pretends:
            return
        killed = f"it was ended by signal {done.code - 128}" if done.code > 128 else last_line(done.stderr)
        hint = "see edgeship-runtime doctor on the board" + ("; 9 is often too little memory" * (done.code == 137))
        raise HostError(f"{name} failed there: {answer_error(raw) or killed}", hint=hint)

    def _tell_line(self, name: str, *, sensors: bool = False) -> Callable[[str], None]:
        answers = False

        def tell(text: str) -> None:
            nonlocal answers
            answers = answers or (sensors and text == scripts.ANSWER)
            if text and not answers and not (sensors and scripts.is_sensor(text)):
                self.teller.say(self.transport.host, f"{name}: {text[:200]}")

        return tell

    def _prune(self) -> str:
        done = self._sh(scripts.PRUNE, ROOT, self.contents.name, self.contents.digest12, timeout=self.options.timeout)
        if done.code:
            hint = "remove older versions there by hand"
            raise HostError(f"older versions cannot be removed: {last_line(done.stderr)}", hint=hint)
        return f"{len(done.stdout.splitlines())} older versions removed"

    def _report(self) -> Report:
        c, device = self.contents, self.options.device
        checks = [*self.checks, *judge(self.samples, device, c.manifest, self._board.emulated)]
        if self._kernels:
            checks.append(Check(name="kernels", passed=None, found=self._kernels))
        passed = all(check.passed is not False for check in checks)
        return Report(
            time=now(),
            device=device.name,
            host=line(self.transport.host),
            artifact=c.name,
            format="gguf" if c.engine == "llamacpp" else "onnx",
            engine="llamacpp" if c.engine == "llamacpp" else "ort",
            digest=c.artifact_digest[:12],
            verdict="pass" if passed else "fail",
            checks=tuple(checks),
            steps=tuple(self._steps),
            board=self._board,
            agreement=self._agreement,
            samples=tuple(self.samples),
            notes=tuple(self.notes),
        )


_SHUT_DOWN = "see who shuts it down or restarts it, then run the same command again: what is done is kept"
