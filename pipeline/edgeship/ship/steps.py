"""The steps of a validation on one board; each can be done again, so that a connection that broke costs little."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgeship.device import Device
from edgeship.errors import EdgeshipError, HostError, ResourceError
from edgeship.ship import scripts
from edgeship.ship.contents import ARTIFACT, INSTALLER, Contents
from edgeship.ship.probe import Facts, check_machine, check_space, read_facts, with_doctor
from edgeship.ship.push import Need, compare, push
from edgeship.ship.report import Agreement, Board, Check, Done, Report, Sample, line, now
from edgeship.ship.teller import Teller
from edgeship.ship.transports import CutError, Result, Transport
from edgeship.ship.transports.command import last_line
from edgeship.ship.verdict import MAX_ANSWER, answer_error, judge, read_sample, read_verify
from edgeship.sizes import format_size

RETRY_AFTER = (1.0, 5.0, 20.0, 40.0)
"""Seconds to wait for a board that was lost, one after the other: a Raspberry Pi starts in about thirty."""

ROOT = "edgeship"  # under the home directory on the board, as in install.sh
_VERIFY_FAILED = 14  # exit code of the runtime, and of install.sh that runs it
_DISK_FULL = 9
_UNFIT = 16  # exit code of the doctor that found an error
_DOCTOR_TIMEOUT = 600.0


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


@dataclass
class Validation:
    """One bundle on one board."""

    transport: Transport
    contents: Contents
    options: Options
    teller: Teller
    stopped: threading.Event
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    _steps: list[Done] = field(default_factory=list)
    _benched: list[tuple[float, str]] = field(default_factory=list)  # seconds since the first, and the sensors
    _facts: Facts | None = None
    _board: Board = field(default_factory=Board)
    _need: Need | None = None
    _kernels: str = ""
    _agreement: Agreement | None = None
    _present: bool = False
    _refused: bool = False

    def run(self) -> Report | None:
        """Do all steps; None where the transport only pretends. Errors name the step and the host."""
        steps: Mapping[str, Callable[[], str]] = {
            "probe": self._probe,
            "space": self._space,
            "push": self._push,
            "install": self._install,
            "doctor": self._doctor,
            "verify": self._verify,
            "bench": self._bench,
            "fetch": self._fetch,
            **({"prune": self._prune} if self.options.prune else {}),
        }
        for name, work in steps.items():
            if self._refused and name != "prune":
                continue  # what did not verify is not measured
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
        return None if self.transport.pretends else self._report()

    def _attempt(self, name: str, work: Callable[[], str]) -> str:
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
        assert self._facts is not None
        boot = self._sh(scripts.BOOT).stdout.strip()
        restarted = boot != self._facts.boot and bool(boot)
        if restarted:
            self._facts = Facts(**{**vars(self._facts), "boot": boot})
        self._note(
            f"{name}: {'the board restarted' if restarted else 'the connection broke'}, and the step was resumed"
        )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(line(text))

    # Places on the board, relative to the home directory there.

    @property
    def _bundle(self) -> str:
        return f"{ROOT}/.bundles/{self.contents.name}/{self.contents.digest12}"

    @property
    def _answers(self) -> str:
        return f"{ROOT}/.answers/{self.contents.name}"

    @property
    def _prefix(self) -> str:
        return f"{ROOT}/{self.contents.name}/{self.contents.digest12}"

    def _sh(self, script: str, *given: str, timeout: float = 120.0) -> Result:
        return self.transport.run(["sh", "-c", script, "sh", *given], timeout=timeout)

    # The steps.

    def _probe(self) -> str:
        c = self.contents
        facts = read_facts(self.transport, c.pythons)
        board = facts.board
        if not self.transport.pretends:
            check_machine(facts, c.arch, c.system, c.pythons, c.device)
        self._facts, self._board = facts, board  # from here on a broken connection is waited for
        self._present = self._is_installed()
        if not self._present:
            self._ask_bare_doctor(facts)
        if board.clock_off_s:
            years = abs(board.clock_off_s) / (365.25 * 86400)
            off = f"{years:.1f} years" if years > 0.1 else f"{abs(board.clock_off_s) / 86400:.1f} days"
            self._note(f"the board's clock is off by {off}; times in this report are this machine's")
        if board.emulated:
            self._note(f"the board is emulated ({board.emulated}): its speed says nothing about the real one")
        features = f", {' '.join(self._board.isa)}" if self._board.isa else ""
        name = self._board.cpu or board.model or board.arch
        return f"{name}, {board.system} {board.arch}, Python {board.python}{features}"

    def _ask_bare_doctor(self, facts: Facts) -> None:
        """The doctor straight out of the wheel: it knows the machine, and no engine yet."""
        wheel = f"{ROOT}/.answers/{self.contents.wheel.rpartition('/')[2]}"
        self.transport.put(self.contents.path / self.contents.wheel, wheel)
        doctor = ["env", f"PYTHONPATH={wheel}", facts.python or "python3", "-m", "edgeship_runtime", "doctor", "--json"]
        told = self.transport.run(doctor, timeout=_DOCTOR_TIMEOUT)
        if told.code in (0, _UNFIT) and not self.transport.pretends:
            found, _ = with_doctor(facts.board, told.stdout.encode(), self.contents.engine)
            self._board = found.model_copy(update={"findings": ()})
        elif not self.transport.pretends:
            self._note(f"the doctor did not run before the installation: {last_line(told.stderr)}")

    def _space(self) -> str:
        assert self._facts is not None
        self._need = compare(self.transport, self.contents.files, self._bundle, ROOT)
        needed = self._need.send_bytes
        if not self._present:
            needed += self.contents.needs_bytes
        return "not known" if self.transport.pretends else check_space(self._facts, needed)

    def _push(self) -> str:
        # Asked again: this may be the second try.
        need = compare(self.transport, self.contents.files, self._bundle, ROOT) if self._need is None else self._need
        self._need = None
        total, done = need.send_bytes, 0

        def progress(n: int, name: str) -> None:
            nonlocal done
            done += n
            self.teller.share(self.transport.host, "push", done, total, name)

        pushed = push(self.transport, self.contents.path, self.contents.files, self._bundle, need, progress)
        said = f"{pushed.sent} files, {format_size(pushed.sent_bytes)} sent; {pushed.kept} unchanged"
        return said + (f", {pushed.reused} taken from an earlier version" if pushed.reused else "")

    def _is_installed(self) -> bool:
        asked = self._sh(scripts.INSTALLED, self._prefix, self.contents.digest12)
        return asked.code == 0 and not self.transport.pretends

    def _install(self) -> str:
        if self._present or self._is_installed():  # asked again: the answer of a first try may have been lost
            return f"{self._prefix} is there"
        return self._run_installer()

    def _run_installer(self) -> str:
        done = self._installer()
        if done.code == _VERIFY_FAILED:
            self._refuse(done)
            return "refused: the artifact did not verify there; what was installed before is untouched"
        if done.code:
            raise _install_error(done)
        self._sh(scripts.LINK, f"{self._prefix}/{ARTIFACT}", f"{self._bundle}/{ARTIFACT}", timeout=self.options.timeout)
        return self._prefix

    def _installer(self, *options: str) -> Result:
        command = ["sh", f"{self._bundle}/{INSTALLER}", "--prefix", self._prefix, *options]
        running = f"{ROOT}/.answers/installing-{self.contents.name}"
        command = ["sh", "-c", scripts.INSTALL, "sh", running, *command]
        return self.transport.run(command, timeout=self.options.timeout, on_line=self._tell_line("install"))

    def _refuse(self, done: Result) -> None:
        """The installer's own verify said no: a verdict, and nothing to measure."""
        self._refused = True
        lines = [text for each in done.stdout.splitlines() if (text := line(each))]
        failed = next((i for i, text in enumerate(lines) if text.startswith("verdict")), len(lines) - 1)
        intact = None if not any(t.startswith("files") for t in lines) else "NOT intact" not in done.stdout
        found = {True: "every file has its sha256", False: "files differ from what was sealed", None: "not known"}[
            intact
        ]
        self.checks.append(Check(name="hashes", passed=intact, found=found))
        said = "; ".join(lines[failed + 1 : failed + 11]) or last_line(done.stderr)
        self.checks.append(Check(name="verify", passed=False, found=line(said)))

    def _doctor(self) -> str:
        """Asked once for each version and start of the board: loading every engine takes as long as a verify there."""
        assert self._facts is not None
        answer = f"{ROOT}/.answers/doctor-{self.contents.name}-{self.contents.digest12}.json"
        command = self._command("doctor", f"{self._prefix}/{ARTIFACT}")
        done = self._sh(scripts.DOCTOR, answer, self._facts.boot, *command, timeout=_DOCTOR_TIMEOUT)
        if self.transport.pretends:
            return ""
        raw = done.stdout.encode()
        if done.code not in (0, _UNFIT, scripts.AS_BEFORE):
            raise HostError(answer_error(raw) or last_line(done.stderr), hint="see the doctor on the board")
        board, self._kernels = with_doctor(self._board, raw, self.contents.engine)
        before = done.code == scripts.AS_BEFORE
        # What the machine is holds until it is started again; how it feels does not.
        self._board = board.model_copy(update={"findings": (), "free_mb": None}) if before else board
        errors = [each for each in self._board.findings if each.level == "error"]
        if errors:
            raise HostError(errors[0].what, hint=errors[0].hint or "run edgeship-runtime doctor on the board")
        return f"kernels: {self._kernels or 'not known'}{', as before' if before else ''}"

    def _verify(self) -> str:
        done, raw = self._measure("verify")
        if self.transport.pretends:
            return ""
        checks, self._agreement = read_verify(raw)
        if checks[0].passed is False and self._present:
            self._present = False
            self.teller.say(self.transport.host, "verify: the installed copy is damaged; it is installed again")
            self._note("the installed copy was damaged and has been installed again")
            self._installer("--uninstall")
            self._run_installer()
            if self._refused:
                return "refused"
            done, raw = self._measure("verify")
            checks, self._agreement = read_verify(raw)
        self.checks = checks
        self._refused = done.code == _VERIFY_FAILED
        return "pass" if done.code == 0 else "fail"

    def _bench(self) -> str:
        """Processes of one answer each: a broken connection costs one of them, and load time is measured each time."""
        o = self.options
        started = time.monotonic() - (self._benched[-1][0] if self._benched else 0)
        given = ["--repeats", "1", "--prompt-tokens", str(o.prompt_tokens), "--decode-tokens", str(o.decode_tokens)]
        while len(self._benched) < o.repeats or time.monotonic() - started < o.soak:
            done, _ = self._measure("bench", *given, number=len(self._benched) + 1)
            self._benched.append((time.monotonic() - started, done.stdout))
            self.teller.say(self.transport.host, f"bench: {len(self._benched)} done")
            if self.transport.pretends or self.stopped.is_set():
                break
        return f"{len(self._benched)} runs"

    def _fetch(self) -> str:
        found = [
            self.transport.get(f"{self._answers}/bench-{n + 1}.json", MAX_ANSWER) for n in range(len(self._benched))
        ]
        if self.transport.pretends:
            return ""
        told = zip(found, self._benched, strict=True)
        self.samples = [read_sample(answer, at, sensors) for answer, (at, sensors) in told]
        return f"{len(found)} answers"

    def _prune(self) -> str:
        done = self._sh(scripts.PRUNE, ROOT, self.contents.name, self.contents.digest12, timeout=self.options.timeout)
        if done.code:
            hint = "remove older versions there by hand"
            raise HostError(f"older versions cannot be removed: {last_line(done.stderr)}", hint=hint)
        return f"{len(done.stdout.splitlines())} older versions removed"

    # Commands of the installed runtime.

    def _command(self, name: str, *given: str) -> list[str]:
        return [f"{self._prefix}/venv/bin/python", "-I", "-m", "edgeship_runtime", name, *given, "--json"]

    def _measure(self, name: str, *given: str, number: int | None = None) -> tuple[Result, bytes]:
        """Run `verify` or `bench`, its answer kept on the board; stdout is what the sensors said after it."""
        threads = [] if self.options.threads is None else ["--threads", str(self.options.threads)]
        command = self._command(name, f"{self._prefix}/{ARTIFACT}", "--engine", self.contents.engine, *threads, *given)
        answer = f"{self._answers}/{name}{'' if number is None else f'-{number}'}.json"
        run = ["sh", "-c", scripts.MEASURE, "sh", answer, *command]
        done = self.transport.run(run, timeout=self.options.timeout, on_line=self._tell_line(name, sensors=True))
        raw = self.transport.get(answer, MAX_ANSWER) if name == "verify" or done.code else b""
        if done.code not in (0, _VERIFY_FAILED) and not self.transport.pretends:
            killed = f"it was ended by signal {done.code - 128}" if done.code > 128 else last_line(done.stderr)
            hint = "see edgeship-runtime doctor on the board" + ("; 9 is often too little memory" * (done.code == 137))
            raise HostError(f"{name} failed there: {answer_error(raw) or killed}", hint=hint)
        return done, raw

    def _tell_line(self, name: str, *, sensors: bool = False) -> Callable[[str], None]:
        def tell(text: str) -> None:
            if text and not (sensors and scripts.is_sensor(text)):
                self.teller.say(self.transport.host, f"{name}: {text[:200]}")

        return tell

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


def _install_error(done: Result) -> EdgeshipError:
    """What the installer said, with its hint."""
    _, found, told = done.stderr.rpartition("error: ")
    message, _, hint = told.partition("hint: ") if found else (done.stderr, "", "")
    said = line(message) or last_line(done.stdout)
    kind = ResourceError if done.code == _DISK_FULL else HostError
    hint = line(hint.split("\n")[0]) or "run the same command again: what is done is kept"
    return kind(f"{said} What was installed before is untouched.", hint=hint)
