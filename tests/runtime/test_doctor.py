"""What the doctor finds, on stand-ins for boards and with engines that do not work."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from boards import BOARDS, LAPTOP, PI4, PI5, ZERO2, arm_cpuinfo, meminfo, plant
from command_line import ROOT, Ended, start
from edgeship_runtime import board, doctor
from edgeship_runtime.board import Board, kernels, read_board
from edgeship_runtime.doctor import UNFIT_EXIT_CODE, EngineState, Probe, probe, try_engine
from toy_artifact import write_toy
from toy_gguf import needs_llamacpp

FINE = {"ort": EngineState("1.31.1", "ok", kernels="x"), "llamacpp": EngineState("0.3.36", "ok", kernels="x")}
DEADLY = {
    "SIGILL": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n",
    "SIGSEGV": "import ctypes\nctypes.string_at(0)\n",
}
LLAMA = """
import ctypes, os
_base_path = os.path.dirname(__file__)
llama_decode = llama_get_logits_ith = llama_memory_seq_rm = llama_set_adapters_lora = LLAMA_LOAD_MODE_MMAP = None
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
llama_log_set = lambda callback, data: None
llama_backend_init = lambda: print("a library that talks")
llama_print_system_info = lambda: b"%s"
"""


def install(place: Path, package: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package in front of all others: its import runs `source`."""
    module = "llama_cpp/llama_cpp.py" if package == "llama-cpp-python" else f"{package}/__init__.py"
    metadata = {f"{package.replace('-', '_')}-9.9.dist-info/METADATA": f"Name: {package}\nVersion: 9.9\n"}
    plant(place, {module: source, **metadata})
    if package == "llama-cpp-python":
        plant(place, {"llama_cpp/__init__.py": ""})
    monkeypatch.syspath_prepend(str(place))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Probe]:
    """Examines a stand-in with engines that work, or the ones given."""

    def examine(
        files: dict[str, str],
        artifact: Path | None = None,
        engines: dict[str, EngineState] = FINE,
        arch: str = "aarch64",
        **changes: Any,
    ) -> Probe:
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(platform, "machine", lambda: arch)
        monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
        monkeypatch.setattr(doctor, "try_engine", lambda name, root: engines[name])

        def read(root: Path, disk: Path) -> Board:
            return replace(read_board(root, disk), **changes)

        monkeypatch.setattr(doctor, "read_board", read)
        return probe(artifact, root=plant(tmp_path / "root", files))

    return examine


def said(found: Probe) -> list[tuple[str, str]]:
    return [(each.level, each.what) for each in found.findings]


def test_a_board_without_a_fault(machine: Callable[..., Probe]) -> None:
    found = machine(PI5)
    assert said(found) == []
    assert found.exit_code == 0
    table = found.table()
    for text in ("Raspberry Pi 5", "4 x Cortex-A76 at 2400 MHz", "dotprod fp16", "8.44 GB", "52 °C, not throttled"):
        assert text in table


def test_without_dotprod_llamacpp_is_preferred(machine: Callable[..., Probe]) -> None:
    found = machine(PI4)
    assert found.exit_code == 0
    assert "none that engines look for" in found.table()
    (finding,) = found.findings
    assert finding.level == "warning"
    assert "no dotprod: onnxruntime computes 4-bit weights in fp32" in finding.what
    assert "llama.cpp" in finding.hint


def test_a_small_hot_board_on_a_weak_supply(machine: Callable[..., Probe]) -> None:
    found = machine(ZERO2)
    text = "\n".join(what for _, what in said(found))
    for part in ("no dotprod", "under-voltage now", "82 °C", "powersave", "only 0.26 GB of memory", "no swap"):
        assert part in text
    hints = [each.hint for each in found.findings]
    assert any("power supply" in hint for hint in hints)
    assert any("heat sink" in hint for hint in hints)
    assert any("scaling_governor" in hint for hint in hints)
    assert found.exit_code == 0


def test_a_laptop(machine: Callable[..., Probe]) -> None:
    found = machine(LAPTOP, arch="x86_64")
    assert said(found) == [
        ("warning", "the clock is held back: throttled now"),
        ("warning", "swap is in use: memory was short"),
        ("note", "the system does not say: temperature"),
    ]


def test_throttling_that_is_over_is_a_note(machine: Callable[..., Probe]) -> None:
    found = machine(PI5, throttled=("too hot since the start",))
    assert said(found) == [("note", "the clock is held back: too hot since the start")]


@pytest.mark.parametrize(
    ("changes", "level", "what"),
    [
        ({"bits": 32}, "error", "32 bits"),
        ({"libc": None}, "warning", "no glibc"),
        ({"libc": "musl 1.2"}, "warning", "no glibc"),
        ({"disk_free_bytes": 10**8}, "warning", "only 0.10 GB of disk"),
        ({"temperature_c": 90.0}, "warning", "90 °C"),
    ],
)
def test_findings_about_the_machine(
    machine: Callable[..., Probe], changes: dict[str, Any], level: str, what: str
) -> None:
    (finding,) = machine(PI5, **changes).findings
    assert finding.level == level
    assert what in finding.what
    assert finding.hint


def test_x86_without_avx2(machine: Callable[..., Probe]) -> None:
    found = machine({"proc/cpuinfo": "processor : 0\nflags : sse4_2\n"}, arch="x86_64")
    assert any("no avx2" in what for _, what in said(found))


def test_a_system_that_says_nothing(machine: Callable[..., Probe]) -> None:
    found = machine({})
    assert found.exit_code == 0
    (note,) = found.findings
    for name in ("isa", "ram", "ram free", "swap", "governor", "mhz", "temperature", "throttled"):
        assert name in note.what
    assert "unknown" in found.table()


@pytest.mark.parametrize("signal_name", sorted(DEADLY))
def test_a_wheel_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_name: str) -> None:
    install(tmp_path, "onnxruntime", DEADLY[signal_name], monkeypatch)
    assert try_engine("ort") == EngineState("9.9", "crashes", signal_name)
    found = probe()
    assert found.exit_code == UNFIT_EXIT_CODE
    assert ("error", f"onnxruntime 9.9 crashes ({signal_name}): nothing can run with it") in said(found)


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("raise ImportError('libfoo.so: cannot\\nopen \\x1b[2J')\n", "libfoo.so: cannot open \\x1b[2J"),
        ("raise ValueError('odd')\n", "ValueError: odd"),
        ("import sys; sys.exit(3)\n", "exit code 3"),
        ("import os; os._exit(0)\n", "exit code 0"),
        ("import os; os.write(1, b'[1]'); os._exit(0)\n", "exit code 0"),
        ("SessionOptions = None\n", "TypeError: 'NoneType' object is not callable"),
    ],
)
def test_a_package_that_does_not_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, detail: str
) -> None:
    install(tmp_path, "onnxruntime", source, monkeypatch)
    assert try_engine("ort") == EngineState("9.9", "fails", detail)


def test_a_library_that_lacks_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, detail in (
        ("import no_such_module\n", "No module named 'no_such_module'"),
        (
            "raise OSError('libgomp.so.1: cannot open shared object file')\n",
            "libgomp.so.1: cannot open shared object file",
        ),
    ):
        install(tmp_path, "llama-cpp-python", source, monkeypatch)
        assert try_engine("llamacpp") == EngineState("9.9", "fails", detail)


def test_a_package_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "onnxruntime", "import time; time.sleep(60)\n", monkeypatch)
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.5)
    assert try_engine("ort") == EngineState("9.9", "fails", "no end after 0.5 s")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert try_engine("ort").state == "fails"


def test_a_build_for_a_newer_board_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = "CPU : NEON = 1 | ARM_FMA = 1 | FP16_VA = 1 | DOTPROD = 1 | SVE = 0 | OPENMP = 1 | "
    install(tmp_path / "site", "llama-cpp-python", LLAMA % built, monkeypatch)
    roots = {name: plant(tmp_path / name, BOARDS[name]) for name in ("pi4", "pi5")}
    assert try_engine("llamacpp", roots["pi5"]) == EngineState("9.9", "ok", kernels="dotprod")
    refused = try_engine("llamacpp", roots["pi4"])
    assert refused.state == "crashes"
    assert refused.detail == "SIGILL: built for DOTPROD, FP16_VA, which this processor lacks"


def test_a_library_without_code_for_this_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "llama-cpp-python", LLAMA % "", monkeypatch)
    assert try_engine("llamacpp") == EngineState("9.9", "fails", "it has no library for this processor")


def test_a_package_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert try_engine("ort").state == "ok"
    assert try_engine("ort").version == "of unknown version"
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert try_engine("ort") == EngineState(None, "missing")


def test_the_working_directory_is_not_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, {"onnxruntime.py": DEADLY["SIGILL"], "json.py": DEADLY["SIGILL"]})
    monkeypatch.chdir(tmp_path)
    assert try_engine("ort").state == "ok"


def test_no_engine(machine: Callable[..., Probe], tmp_path: Path) -> None:
    none = {name: EngineState(None, "missing") for name in FINE}
    found = machine(PI5, engines=none)
    assert said(found) == [("warning", "no engine is installed")]
    toy = write_toy(tmp_path / "toy" / "onnx")
    found = machine(PI5, toy.directory, engines=none)
    assert said(found) == [("error", "the artifact needs onnxruntime, which is not installed")]
    assert found.exit_code == UNFIT_EXIT_CODE


def test_an_engine_that_the_artifact_does_not_need(machine: Callable[..., Probe], tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy" / "onnx")
    broken = FINE | {"llamacpp": EngineState("0.3.36", "crashes", "SIGILL")}
    assert machine(PI5, toy.directory, engines=broken).exit_code == 0
    assert machine(PI5, engines=broken).exit_code == UNFIT_EXIT_CODE


def test_an_artifact_that_does_not_fit(machine: Callable[..., Probe], tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy" / "onnx")
    found = machine(PI5 | {"proc/meminfo": meminfo(500000, 100000, 1000, 1000)}, toy.directory)
    assert found.exit_code == UNFIT_EXIT_CODE
    (finding,) = found.findings
    assert finding.what == "the artifact needs about 0.15 GB of memory, and 0.10 GB are free"
    assert "--context" in finding.hint
    assert machine(PI5, toy.directory).exit_code == 0


def test_packages_that_the_artifact_asks_for(
    machine: Callable[..., Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = write_toy(tmp_path / "toy" / "onnx")
    from edgeship_runtime.manifest import read_manifest

    wanted = {"onnxruntime": ">=99", "no\x1bpackage": ">=1", "": ">=1"}
    monkeypatch.setattr(doctor, "read_manifest", lambda path: replace(read_manifest(path), versions=wanted))
    found = machine(PI5, toy.directory)
    text = "\n".join(what for _, what in said(found))
    assert "needs onnxruntime >=99" in text
    assert '"no\\u001bpackage"' in text
    assert found.exit_code == UNFIT_EXIT_CODE


SCHEMA = {
    "type": "object",
    "required": ["schema", "device", "engines", "findings", "artifact"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": 1},
        "device": {"type": "object", "required": ["model", "os", "arch", "isa", "cores", "ram_bytes"]},
        "engines": {
            "type": "object",
            "required": ["ort", "llamacpp"],
            "additionalProperties": {
                "required": ["version", "state", "detail", "kernels"],
                "properties": {"state": {"enum": ["ok", "missing", "crashes", "fails"]}},
            },
        },
        "findings": {
            "items": {
                "required": ["level", "what", "hint"],
                "properties": {"level": {"enum": ["error", "warning", "note"]}},
            }
        },
        "artifact": {"type": ["object", "null"]},
    },
}


class TestCommand:
    def test_this_machine(self, command: Callable[..., Ended]) -> None:
        ended = command("doctor")
        assert ended.code in (0, UNFIT_EXIT_CODE)
        assert "onnxruntime" in ended.out
        assert ended.err == ""
        found = command("doctor", "--json").json()
        validate(found, SCHEMA)
        assert found["engines"]["ort"]["state"] == "ok"

    def test_an_artifact(self, command: Callable[..., Ended], artifact: str, form: str) -> None:
        found = command("doctor", artifact, "--json").json()
        validate(found, SCHEMA)
        assert found["artifact"]["engine"] in ("ort", "llamacpp")
        assert found["artifact"]["name"] == "toy"

    def test_errors_are_errors(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        ended = command("doctor", tmp_path / "nothing")
        assert ended.code == 8
        assert "no such directory" in ended.err
        assert command("doctor", "a", "b").code == 2
        assert "doctor artifacts/tiny-int4" in command("doctor", "--help").out

    def test_hostile_names_do_not_reach_the_terminal(
        self, command: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        evil = "\x1b[2J\x9b31m\u202eevil"
        files = {"proc/device-tree/model": evil, "proc/cpuinfo": arm_cpuinfo([f"0x{evil}"], evil)}
        root = plant(tmp_path, files)
        monkeypatch.setattr(doctor, "read_board", lambda _, disk: read_board(root, disk))
        for ended in (command("doctor"), command("doctor", "--json")):
            assert "evil" in ended.out
            assert all(letter == "\n" or letter.isprintable() for letter in ended.out)

    def test_a_slow_import_is_not_paid_for(self) -> None:
        code = "import sys, edgeship_runtime.doctor; print({'numpy', 'onnxruntime', 'llama_cpp'} & set(sys.modules))"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert ended.stdout.strip() == "set()"


class TestReports:
    """`verify` and `bench` say which kernels were at work."""

    def test_verify(self, command: Callable[..., Ended], artifact: str) -> None:
        agreement = command("verify", artifact, "--json").json()["agreement"]
        assert agreement["kernels"] == kernels(agreement["engine"])
        assert f"kernels {agreement['kernels']}" in command("verify", artifact).out

    def test_bench(self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch) -> None:
        line = ("bench", artifact, "--prompt-tokens", "4", "--decode-tokens", "2", "--repeats", "1")
        report = command(*line, "--json").json()
        assert report["kernels"] == kernels(report["engine"])
        monkeypatch.setattr("edgeship_runtime.bench.cpu_name", lambda: "cpu \x9b31m")
        assert report["kernels"] in command(*line).out
        assert "\\x9b31m" in command(*line, "--json").json()["cpu"]

    @pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="kernels are known of these")
    @pytest.mark.skipif(platform.system() != "Linux", reason="read from /proc/cpuinfo")
    def test_they_are_known_here(self) -> None:
        assert kernels("onnxruntime 1.31.1") != "unknown"

    @needs_llamacpp
    def test_llamacpp_says_what_it_was_built_for(self) -> None:
        assert board.compiled()
        assert kernels("llama-cpp-python 0.3.36") != "unknown"


def test_as_a_process(tmp_path: Path) -> None:
    process = start("doctor", "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) in ((0, b""), (UNFIT_EXIT_CODE, b""))
    assert out.startswith(b"{")
