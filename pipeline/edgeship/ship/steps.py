"""A bundle on a board: pushed, installed, verified and measured there; each step can be done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from secrets import token_hex

from edgeship.errors import EdgeshipError, HostError, ResourceError
from edgeship.ship import scripts
from edgeship.ship.contents import ARTIFACT, INSTALLER
from edgeship.ship.course import DOCTOR_TIMEOUT, VERIFY_FAILED, Course, Step
from edgeship.ship.place import Place, installed
from edgeship.ship.probe import Facts, read_board, with_doctor
from edgeship.ship.push import HASH_TIMEOUT, SAME, read_sums
from edgeship.ship.report import Check, line, now
from edgeship.ship.scripts import ROOT
from edgeship.ship.transports import CutError, Result
from edgeship.ship.transports.command import last_line
from edgeship.ship.verdict import read_verify

_DISK_FULL = 9
_UNFIT = 16  # exit code of the doctor that found an error
_KILLED = 137


@dataclass
class Validation(Course):
    """One bundle on one board."""

    _present: bool = False

    def place(self) -> Place:
        return installed(self.contents)

    def steps(self) -> Mapping[str, Step]:
        return {
            "probe": self._probe,
            "space": self._space,
            "push": self._push,
            "install": self._install,
            **self._last_steps(prune=self.options.prune),
        }

    def _probe(self) -> str:
        c = self.contents
        facts = read_board(self.transport, c, c.pythons, self._place.prefix, c.digest12)
        self._facts, self._board = facts, facts.board  # from here on a broken connection is waited for
        self._present = facts.installed == "yes"
        if not self._present:
            self._lock.take()
            self._ask_bare_doctor(facts)
        return self._tell_board()

    def _ask_bare_doctor(self, facts: Facts) -> None:
        """The doctor straight out of the wheel: it knows the machine, and no engine yet."""
        wheel = f"{ROOT}/.answers/{self.contents.wheel.rpartition('/')[2]}"
        self.transport.put(self.contents.path / self.contents.wheel, wheel)
        doctor = ["env", f"PYTHONPATH={wheel}", facts.python or "python3", "-m", "edgeship_runtime", "doctor", "--json"]
        told = self.transport.run(doctor, timeout=DOCTOR_TIMEOUT)
        if told.code in (0, _UNFIT) and not self.transport.pretends:
            found, _ = with_doctor(facts.board, told.stdout.encode(), self.contents.engine)
            self._board = found.model_copy(update={"findings": ()})
        elif not self.transport.pretends:
            self._note(f"the doctor did not run before the installation: {last_line(told.stderr)}")

    def _space(self) -> str:
        if self._present:
            self._ask_known()
        self._need = self._compare(self._known.get("list"))
        return self._check_space(self._need.send_bytes + (0 if self._present else self.contents.needs_bytes))

    def _ask_known(self) -> None:
        """Take the lock, and in the same breath what an earlier validation of the installed version left there."""
        assert self._facts is not None
        boot = "" if self.options.fresh else self._facts.boot
        mark, place = token_hex(16), self._place
        given = (mark, place.bundle, self.doctor_answer, boot, place.answer("verify"), self._verified_of())
        _, told = self._lock.take(scripts.KNOWN, *given, place.artifact, timeout=HASH_TIMEOUT)
        parts = (part.partition("\n") for part in told.split(f"\n{mark} ")[1:])
        self._known = {name: text for name, _, text in parts}

    def _is_installed(self) -> bool:
        asked = self._sh(scripts.INSTALLED, self._place.prefix, self.contents.digest12)
        return asked.code == 0 and not self.transport.pretends

    def _install(self) -> str:
        assert self._facts is not None
        if self._facts.installed == "broken" or (self._present and self.options.fresh):
            self._uninstall()
            self._facts = replace(self._facts, installed="")
        if self._present or self._is_installed():  # asked again: the answer of a first try may have been lost
            return f"{self._place.prefix} is there"
        return self._run_installer()

    def _run_installer(self) -> str:
        done = self._installer()
        if done.code == VERIFY_FAILED:
            self._refuse(done)
            return "refused: the artifact did not verify there; what was installed before is untouched"
        if done.code:
            raise _install_error(done)
        self._sh(scripts.LINK, self._place.artifact, f"{self._place.bundle}/{ARTIFACT}", timeout=self.options.timeout)
        return self._place.prefix

    def _uninstall(self) -> None:
        self._present = False
        self._installer("--uninstall")

    def _installer(self, *options: str) -> Result:
        command = ["sh", f"{self._place.bundle}/{INSTALLER}", "--prefix", self._place.prefix, *options]
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
        try:
            return super()._doctor()
        except HostError as error:
            if self._present and not isinstance(error, CutError):
                error.hint += "; where it worked before, --fresh installs it anew"
            raise

    def _verify(self) -> str:
        """Asked once for each version, engine and start of the board; the files are hashed every time."""
        if self._present and (said := self._as_before()):
            return said
        done, raw = self._measure("verify")
        if self.transport.pretends:
            return ""
        if self._present and _is_damaged(done, raw):
            self.teller.say(self.transport.host, "verify: the installed copy is damaged; it is installed again")
            self._note("the installed copy was damaged and has been installed again")
            self._uninstall()
            self._run_installer()
            if self._refused:
                return "refused"
            done, raw = self._measure("verify")
        said = self._take_verdict(done, raw)
        if done.code == 0 and (same := self._verified_of()):
            self._sh(scripts.KEEP, self._place.answer("verify"), same, now())
        return said

    def _verified_of(self) -> str:
        """What a verify is the answer of; empty where the board does not say when it was started, or none is wanted."""
        assert self._facts is not None
        c, boot = self.contents, self._facts.boot
        return f"{boot} {c.digest} {c.engine} {self.options.threads}" if boot and not self.options.fresh else ""

    def _as_before(self) -> str:
        """Take over the answer of an earlier verify that passed, where nothing changed since; else empty."""
        told = {name: self._known.pop(name, "") for name in ("list", "sums", "verify")}
        time, _, answer = told["verify"].partition("\n")
        if not answer or not self._is_as_sent(read_sums(told["sums"]), read_sums(told["list"])):
            return ""
        try:
            checks, self._agreement = read_verify(answer.encode())
        except HostError:
            return ""
        then = line(time, 40)
        self.checks = [c.model_copy(update={"found": f"pass, at {then}"}) if c.name == "verify" else c for c in checks]
        self._note(
            f"verify: the answer of {then} stands, for the same files by their sha256 of now, the same engine and "
            "runtime, and no restart since; --fresh asks anew"
        )
        return f"pass, as at {then}; files hashed again"

    def _is_as_sent(self, sums: Mapping[str, str], pushed: Mapping[str, str]) -> bool:
        """Whether the installed artifact holds every file of the bundle's, and no other."""
        files = self.contents.files.items()
        own = {n.removeprefix(f"{ARTIFACT}/"): e.sha256 for n, e in files if n.startswith(f"{ARTIFACT}/")}
        found = {name: pushed.get(f"{ARTIFACT}/{name}") if sum_ == SAME else sum_ for name, sum_ in sums.items()}
        return found == own


def _is_damaged(done: Result, raw: bytes) -> bool:
    """Whether a verify says, or by how it ended shows, that what is installed is not what was."""
    if done.code == VERIFY_FAILED:
        return read_verify(raw)[0][0].passed is False
    return done.code not in (0, _KILLED)  # memory may be short however often it is installed


def _install_error(done: Result) -> EdgeshipError:
    """What the installer said, with its hint."""
    _, found, told = done.stderr.rpartition("error: ")
    message, _, hint = told.partition("hint: ") if found else (done.stderr, "", "")
    said = line(message) or last_line(done.stdout)
    kind = ResourceError if done.code == _DISK_FULL else HostError
    hint = line(hint.split("\n")[0]) or "run the same command again: what is done is kept"
    return kind(f"{said} What was installed before is untouched.", hint=hint)
