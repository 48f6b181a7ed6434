"""What sensors say during a measurement: read on a stand-in of /sys as kernels show it, and never trusted."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boards import plant
from edgeship.ship import scripts
from edgeship.ship.report import Report, Sample, histories
from edgeship.ship.report_html import page
from edgeship.ship.sensors import Sensed, read_sensors
from edgeship.ship.transports.local import LocalTransport
from edgeship.ship.verdict import judge
from tiny_bundle import device

PMIC = """   3V7_WL_SW_A current(0)=0.50000000A
   VDD_CORE_A current(7)=2.00000000A
   3V7_WL_SW_V volt(8)=4.00000000V
   VDD_CORE_V volt(15)=1.00000000V
      EXT5V_V volt(24)=5.14834000V
"""
linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/uptime")


def measured(home: Path, sys: Path, *command: str) -> tuple[Sensed, str]:
    """What MEASURE prints of the sensors below `sys`, and the answer it prints."""
    run = ["sh", "-c", scripts.MEASURE, "sh", "answers/bench.json", str(sys), *command]
    done = LocalTransport(home).run(run, timeout=30)
    assert done.code == 0, done.stderr
    sensors, _, answer = done.stdout.partition(f"{scripts.ANSWER}\n")
    assert all(scripts.is_sensor(line) for line in sensors.splitlines())
    assert not (home / "answers/bench.json.power").exists()
    return read_sensors(sensors), answer


@linux
class TestMeasure:
    def test_no_sensor_and_no_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in = tmp_path / "bin/sleep"
        stand_in.parent.mkdir()
        stand_in.write_text(f"#!/bin/sh\ntouch {tmp_path}/slept\n")
        stand_in.chmod(0o755)
        monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
        told, answer = measured(tmp_path, tmp_path / "sys", "echo", '{"a": 1}')
        assert (told.watts, told.power_sensor, told.celsius) == (None, "", None)
        assert answer == '{"a": 1}\n'
        assert not (tmp_path / "slept").exists()
        assert told.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def test_rails_of_a_monitor(self, tmp_path: Path) -> None:
        chip = "class/hwmon/hwmon1"
        files = {
            "name": "ina3221\n",
            "in1_label": "VDD_IN\n",
            "in1_input": "5000\n",
            "curr1_input": "1200\n",
            "in2_label": "VDD_CPU\n",
            "in2_input": "5000\n",
            "curr2_input": "300\n",
            "in4_input": "7\n",
        }
        root = plant(tmp_path / "sys", {f"{chip}/{name}": text for name, text in files.items()})
        plant(root, {"class/thermal/thermal_zone0/temp": "61500\n"})
        told, _ = measured(tmp_path, root, "sleep", "2.3")
        assert (told.watts, told.power_sensor, told.celsius) == (6.0, "ina3221 VDD_IN", 61.5)

    def test_power_in_microwatts(self, tmp_path: Path) -> None:
        root = plant(
            tmp_path / "sys",
            {"class/hwmon/hwmon0/name": "ina226\n", "class/hwmon/hwmon0/power1_input": "4200000\n"},
        )
        assert measured(tmp_path, root, "sleep", "1.3")[0].watts == 4.2

    @pytest.mark.parametrize(
        ("files", "watts"),
        [
            ({"status": "Discharging\n", "power_now": "9500000\n"}, 9.5),
            ({"status": "Discharging\n", "current_now": "-800000\n", "voltage_now": "4000000\n"}, 3.2),
            ({"status": "Charging\n", "power_now": "9500000\n"}, None),
        ],
    )
    def test_battery(self, tmp_path: Path, files: dict[str, str], watts: float | None) -> None:
        named = {f"class/power_supply/BAT0/{name}": text for name, text in files.items()}
        assert measured(tmp_path, plant(tmp_path / "sys", named), "sleep", "1.3")[0].watts == watts

    def test_counter_of_energy(self, tmp_path: Path) -> None:
        zone = "class/powercap/intel-rapl:0"
        files = {"name": "package-0\n", "energy_uj": "1000000\n", "max_energy_range_uj": "262143328850\n"}
        root = plant(tmp_path / "sys", {f"{zone}/{name}": text for name, text in files.items()})
        spend = f"sleep 1; echo 31000000 > {root}/{zone}/energy_uj"
        told, _ = measured(tmp_path, root, "sh", "-c", spend)
        assert told.power_sensor == "RAPL package-0"
        assert told.watts is not None
        assert 15 < told.watts <= 30  # 30 joules in a second and the starts of programs

    def test_rails_of_a_raspberry_pi_5(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "pmic").write_text(PMIC)
        tool = tmp_path / "bin/vcgencmd"
        tool.write_text(
            f'#!/bin/sh\nif [ "$1" = get_throttled ]; then echo throttled=0x0; else cat {tmp_path}/pmic; fi\n'
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
        told, _ = measured(tmp_path, tmp_path / "sys", "sleep", "2.3")
        assert (told.watts, told.throttled) == (
            4.0,
            "0x0",
        )  # 0.5 A at 4 V and 2 A at 1 V; what has no current is no rail

    def test_ends_with_a_program_that_is_killed(self, tmp_path: Path) -> None:
        root = plant(tmp_path / "sys", {"class/hwmon/hwmon0/power1_input": "1000000\n"})
        run = ["sh", "-c", scripts.MEASURE, "sh", "answers/x.json", str(root), "sh", "-c", "kill -9 $$"]
        assert LocalTransport(tmp_path).run(run, timeout=20).code == 137


class TestRead:
    def test_the_whole_and_its_parts(self) -> None:
        text = (
            "tick=\nmicrowatts=6000000 chip VDD_IN\nmicrowatts=2000000 chip CPU\ntick=\nmicrowatts=8000000 chip VDD_IN"
        )
        assert read_sensors(text) == Sensed(watts=7.0, power_sensor="chip VDD_IN")

    def test_a_counter_that_began_anew(self) -> None:
        text = "uptime=10.00\nmicrojoules=9000000 10000000 RAPL p\nuptime=12.00\nmicrojoules=3000000 10000000 RAPL p"
        assert read_sensors(text).watts == 2.0

    @pytest.mark.parametrize(
        "text",
        [
            "microwatts=-5 x",
            "microwatts=99999999999999 x",
            "microwatts=5",
            "microwatts=٣ x",
            "uptime=5.0\nmicrojoules=1 1 a\nuptime=5.0\nmicrojoules=9 1 a",
            "microjoules=1 1 a\nmicrojoules=9 1 a",
            "uptime=1.0\nuptime=2.0\nmicrojoules=9 9",
            "pmic=A_A current(0)=1.0A",
            "pmic=A_V volt(0)=nanV",
        ],
    )
    def test_nothing_to_learn(self, text: str) -> None:
        assert read_sensors(text).watts is None

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["microwatts", "microjoules", "uptime", "pmic", "tick", "boot"]), st.text(max_size=60)
            )
        )
    )
    def test_any(self, lines: list[tuple[str, str]]) -> None:
        told = read_sensors("\n".join(f"{key}={value}" for key, value in lines))
        assert told.watts is None or 0 < told.watts < 10_000
        assert told.power_sensor.isprintable()
        assert told.boot.isprintable()

    def test_many_names(self) -> None:
        assert read_sensors("\n".join(f"microwatts=1000000 s{n}" for n in range(5000))).watts == 1.0


SAMPLE = Sample(
    load_s=1,
    ttft_s=1,
    prefill_tokens_per_s=50,
    decode_tokens_per_s=10,
    peak_rss_mb=100,
    prompt_tokens=8,
    decode_tokens=8,
    threads=1,
    at_s=1,
    watts=6.5,
    power_sensor="ina <b>",
)


class _Manifest:
    files: dict[str, object] = {}  # noqa: RUF012

    class budgets:  # noqa: N801
        size_mb = None
        ram_mb = None


class TestTold:
    def test_in_the_verdict(self) -> None:
        checks = {c.name: c for c in judge([SAMPLE], device(), _Manifest(), "")}  # type: ignore[arg-type]
        assert checks["power W"].passed is None
        assert checks["power W"].found == "6.50 (ina <b>), at that 0.65 J a token decoded"

    def test_on_the_page(self) -> None:
        made = Report(
            time="2026-01-01T00:00:00Z",
            device="d",
            host="h",
            artifact="a",
            format="onnx",
            engine="ort",
            digest="0" * 12,
            verdict="pass",
            checks=(),
            steps=(),
            board={},  # type: ignore[arg-type]
            samples=(SAMPLE, SAMPLE),
        )
        (history,) = histories([made])
        shown = page(history)
        assert "power (ina &lt;b&gt;)" in shown
        assert "6.5 W" in shown
        assert "Mean power of each run" in shown
