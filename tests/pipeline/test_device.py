"""Device profiles: the catalogue is whole and sourced, a file of one's own is refused with every error at once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeship import catalog, docs, local, yaml_source
from edgeship.device import SOURCED, Device, read_device
from edgeship.errors import DeviceError
from edgeship.schema import device_schema

WHOLE = """\
description: a board
os: linux
arch: aarch64
libc: glibc 2.36
python: ["3.11"]
cores:
  - {kind: Cortex-A76, count: 4, mhz: 2400}
  - {kind: Cortex-A55, count: 4, mhz: 1800, efficiency: true}
isa: [dotprod, fp16]
page_size: 4096
ram_mb: 8000
os_mb: 500
bandwidth_gbps: 12
storage_mbps: 90
engines: [llamacpp, ort]
engines_reason: it reads less
encodings: [int4, Q4_K_M]
wheel_tags: [manylinux_2_28_aarch64]
budgets: {ram_share: 0.8, min_decode: 4}
sources:
  cores: data sheet
  isa: data sheet
  page_size: measured
  ram_mb: measured
  os_mb: estimate
  bandwidth_gbps: estimate
  storage_mbps: estimate
  budgets: ours
"""


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(DeviceError) as caught:
        read_device(path)
    assert caught.value.exit_code == 11
    assert caught.value.hint
    return caught.value.message


def test_the_catalogue_is_what_was_promised() -> None:
    pis = {f"raspberry-pi-{n}" for n in ("4-2gb", "4-4gb", "4-8gb", "5-4gb", "5-8gb", "5-16gb", "zero-2-w")}
    others = {"orange-pi-5", "jetson-orin-nano", "laptop-avx2", "laptop-avx512", "apple-m2"}
    assert set(catalog.device_names()) == pis | others | {"android-flagship", "android-mid-range", "phone-web"}


@pytest.mark.parametrize("name", catalog.device_names())
def test_a_profile_is_whole(name: str) -> None:
    device = catalog.find_device(name)
    assert device.name == name
    assert set(SOURCED) <= set(device.sources)
    assert 0 < device.budget_bytes < device.free_bytes < device.ram_bytes
    assert (device.arch == "x86_64") == ("avx2" in device.isa)
    assert ("libc" in device.sources or device.libc is not None) or device.os in ("macos", "browser")
    for tag in device.wheel_tags:
        assert tag.endswith({"aarch64": ("_aarch64", "_arm64"), "x86_64": ("_x86_64",)}[device.arch])
    text = catalog.paths("devices")[name].read_text()
    recipe = text.split("plan ")[1].split(" --device")[0]
    assert text.startswith(f"# edgeship plan {recipe} --device {name}\n")
    assert recipe in catalog.names()


@pytest.mark.parametrize("name", [n for n in catalog.device_names() if n.startswith("raspberry")])
def test_no_pi_has_what_it_lacks(name: str) -> None:
    device = catalog.find_device(name)
    five = name.startswith("raspberry-pi-5")
    assert device.isa == (("dotprod", "fp16") if five else ())
    assert device.page_size == (16384 if five else 4096)
    assert device.engines[0] == "llamacpp"


def test_a_file_is_read(tmp_path: Path) -> None:
    device = read_device(write(tmp_path, WHOLE))
    assert (device.ram_bytes, device.os_bytes, device.budget_bytes) == (8_000_000_000, 500_000_000, 6_000_000_000)
    assert [c.kind for c in device.working_cores] == ["Cortex-A76"]
    assert Device.model_validate_json(device.model_dump_json()) == device
    assert catalog.find_device(str(tmp_path / "mine.yaml")) == device


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "isa: [dotprod, fp16]",
            "isa: [dotprd]",
            "mine.yaml:9:7: isa[0]: expected one of dotprod, fp16",
        ),
        ("isa: [dotprod, fp16]", "isa: [dotprod, dotprod]", "expected each value once"),
        ("engines: [llamacpp, ort]", "engines: [onnx]", "engines[0]: expected one of llamacpp, ort, found 'onnx'"),
        ("engines: [llamacpp, ort]", "engines: []", "mine.yaml:15:1"),
        ("ram_mb: 8000", "ram_mb: 8 GB", "mine.yaml:11:9: ram_mb: expected a number above 0"),
        ("ram_mb: 8000", "ram_mb: -1", "ram_mb: expected a number above 0"),
        ("ram_mb: 8000", "ram_gb: 8", "mine.yaml:11:1: unknown key 'ram_gb'; did you mean 'ram_mb'?"),
        ("os_mb: 500", "os_mb: 8000", "mine.yaml:12:8: os_mb: expected less than ram_mb (8000), found 8000"),
        ("mhz: 2400", "mhz: 2.4", "mine.yaml:7:39: cores[0].mhz: expected a whole number from 100 to 10000"),
        ("count: 4, mhz: 2400", "mhz: 2400", "missing key 'count' in 'cores[0]'"),
        ("encodings: [int4, Q4_K_M]", "encodings: [int5]", "encodings[0]: no type is called 'int5'; did you mean"),
        ("  ram_mb: measured\n", "", "mine.yaml:11:1: sources: expected where 'ram_mb' comes from, found nothing"),
        ("  budgets: ours", "  budget: ours", "no field is called 'budget'; did you mean 'budgets'?"),
        ("  budgets: ours", "  budgets: ''", "sources.budgets"),
        ('python: ["3.11"]', "python: [3.11]", "python[0]: expected text"),
        ('python: ["3.11"]', "python: []", "python: expected at least one version where os is linux"),
        ("os: linux", "os: browser", "python: expected none where os is browser"),
        ("os: linux", "os: browser", "arch: expected wasm32 where os is browser"),
        ("os: linux", "os: browser", "wheel_tags: expected none where os is browser"),
        ("arch: aarch64", "arch: wasm32", "arch: expected another than wasm32 where os is linux"),
        ('python: ["3.11"]', "python: ['3.11; x']", "python[0]: expected a value such as '3.11'"),
        ("[manylinux_2_28_aarch64]", "['--target']", "wheel_tags[0]: expected a value such as manylinux_2_28"),
        ("description: a board", "name: other", "a device is called after its file"),
        ("description: a board", "host: pi@10.0.0.7", "unknown key 'host'"),
    ],
)
def test_what_is_wrong_is_said_by_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in WHOLE
    assert says in refused(write(tmp_path, WHOLE.replace(old, new, 1)))


def test_all_errors_at_once(tmp_path: Path) -> None:
    text = (
        WHOLE.replace("ram_mb: 8000", "ram_mb: much").replace("arch: aarch64", "arch: arm64").replace("os: l", "os: L")
    )
    said = refused(write(tmp_path, text))
    assert "3 problems; nothing was done" in said
    assert all(f"mine.yaml:{line}:" in said for line in (2, 3, 11))


def test_extends_lays_over_and_asks_for_new_sources(tmp_path: Path) -> None:
    write(tmp_path, WHOLE, "base")
    over = "extends: base\nram_mb: 4000\nsources:\n  ram_mb: data sheet\n"
    device = read_device(write(tmp_path, over))
    assert (device.ram_mb, device.os_mb) == (4000, 500)
    assert (device.sources["ram_mb"], device.sources["os_mb"]) == ("data sheet", "estimate")
    said = refused(write(tmp_path, "extends: base\nram_mb: 4000\n"))
    assert "mine.yaml:2:1: sources: expected a source of its own for 'ram_mb'" in said
    assert "did you mean 'base'?" in refused(write(tmp_path, "extends: bases\n"))
    write(tmp_path, "extends: mine\n", "twice")
    write(tmp_path, over)
    assert "one level is allowed: extend 'base'" in refused(tmp_path / "twice.yaml")


def test_local_is_no_name_for_a_file(tmp_path: Path) -> None:
    assert "rename the file" in refused(write(tmp_path, WHOLE, "local"))


@pytest.mark.parametrize("name", ["raspberry-pi-5", "RASPBERRY-PI-5-8GB", "../x", "nothing.yaml", "", "a\0b"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        catalog.find_device(name)
    if name.lower().startswith("raspberry"):
        assert "did you mean 'raspberry-pi-5-" in caught.value.message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.integers(0, WHOLE.count("\n")), text=st.text(max_size=40), cut=st.booleans())
def test_no_text_gives_a_traceback(tmp_path: Path, line: int, text: str, cut: bool) -> None:
    lines = WHOLE.splitlines()
    lines[line : line + cut] = [text]
    path = tmp_path / "any.yaml"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(DeviceError):
        assert read_device(path).name == "any"


def system(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "read_bandwidth", lambda threads, nbytes: 11.5)
    cpu = "processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: 2596.992\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
    memory = "MemTotal:       8000000 kB\nMemFree: 1 kB\nMemAvailable:   6000000 kB\n"
    device = local.detect(system(tmp_path, proc__cpuinfo=cpu, proc__meminfo=memory))
    assert device.name == "local"
    assert device.isa == ("avx2", "avx512", "vnni")
    assert (device.ram_bytes, device.os_bytes) == (8_192_000_000, 2_048_000_000)
    assert [(c.count, c.mhz) for c in device.cores] == [(1, 2596)]
    assert device.bandwidth_gbps == 11.5
    assert set(SOURCED) <= set(device.sources)


@pytest.mark.parametrize(("load", "said"), [(0.1, False), (64.0, True), (None, False)])
def test_a_busy_machine_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, load: float | None, said: bool) -> None:
    monkeypatch.setattr(local, "read_bandwidth", lambda threads, nbytes: 11.5)
    monkeypatch.setattr(local, "load_average", lambda: load)
    assert ("busy (load 64)" in local.detect().description) is said


def test_a_system_without_memory_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="expected to learn its memory"):
        local.detect(system(tmp_path, proc__cpuinfo="processor\t: 0\n"))


def test_bandwidth_is_measured_in_gigabytes() -> None:
    assert 0.2 < local.read_bandwidth(2, 32 << 20) < 2000


def test_an_installed_wheel_brings_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "_devices"
    folder.mkdir()
    write(folder, WHOLE, "only")
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path)
    assert catalog.device_names() == ["only"]
    assert catalog.find_device("only").name == "only"


def test_json_has_every_field() -> None:
    made: dict[str, Any] = catalog.find_device("raspberry-pi-5-8gb").to_json()
    assert set(made) == set(Device.model_fields)


def test_the_documentation_has_every_device_and_every_field() -> None:
    table, fields = docs.TABLES["devices"](), docs.TABLES["device fields"]()
    assert all(f"| `{name}` |" in table for name in catalog.device_names())
    assert all(f"| `{name}` |" in fields for name in Device.model_fields if name != "name")
    assert "| `cores` | list of mappings | required |" in fields
    assert "| `cores.mhz` | whole number from 100 to 10000 | required |" in fields


@pytest.mark.parametrize("name", catalog.device_names())
def test_a_profile_is_valid_by_the_schema_too(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = yaml_source.parse(catalog.paths("devices")[name].read_bytes(), name).data
    jsonschema.Draft202012Validator(device_schema()).validate(data)


@pytest.mark.parametrize(
    ("old", "new"),
    [("ram_mb: 8000\n", ""), ("isa: [dotprod", "isa: [dotprd"), ("mhz: 2400", "clock: 1"), ("{ram_share: 0.8, ", "{")],
)
def test_the_schema_refuses_what_the_reader_refuses(tmp_path: Path, old: str, new: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(device_schema())
    good, bad = (yaml_source.parse(text.encode(), "mine").data for text in (WHOLE, WHOLE.replace(old, new, 1)))
    assert validator.is_valid(good)
    assert not validator.is_valid(bad)
    refused(write(tmp_path, WHOLE.replace(old, new, 1)))
