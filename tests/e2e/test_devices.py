"""Devices as a user asks about them: `plan --device`, `devices`, `recipes --device`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from commands import assert_refused, run

pytestmark = pytest.mark.e2e


def answer(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_plan_says_what_fits_and_what_to_prefer() -> None:
    boards = ["--device", "raspberry-pi-4-4gb", "--device", "raspberry-pi-5-8gb", "--device", "local"]
    done = run("edgeship", "plan", "qwen2.5-0.5b-int4", *boards)
    assert done.returncode == 0, done.stderr
    assert "raspberry-pi-4-4gb: fits as gguf" in done.stdout
    assert "prefer gguf (llama.cpp): Cortex-A72 has no dotprod" in done.stdout
    assert done.stdout.count("largest context") == 3
    assert "estimates" in done.stdout
    made = answer(run("edgeship", "plan", "qwen2.5-0.5b-int4", *boards, "--json"))
    assert [d["device"] for d in made["devices"]] == boards[1::2]
    pi = made["devices"][0]
    assert (pi["verdict"], pi["format"]) == ("fits", "gguf")
    llama = pi["formats"]["gguf"]
    assert llama["ram_bytes"]["total"] < pi["ram_budget_bytes"]
    assert 0 < llama["decode_tokens_per_s"][0] < llama["decode_tokens_per_s"][1]
    assert llama["largest_context"] == 32768


def test_plan_fails_where_it_does_not_fit() -> None:
    done = run("edgeship", "plan", "qwen3-8b-int4", "--device", "raspberry-pi-5-8gb", "--device", "raspberry-pi-4-2gb")
    assert done.returncode == 4
    assert "raspberry-pi-4-2gb: too big" in done.stdout
    assert "none of its formats can be used there: 5.32 GB needed, 1.44 GB may be taken" in done.stdout


def test_plan_without_a_device_is_as_it_was() -> None:
    assert "devices" not in answer(run("edgeship", "plan", "tiny-int4", "--json"))


def test_devices_are_listed_and_ranked() -> None:
    done = run("edgeship", "devices")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert {"raspberry-pi-zero-2-w", "jetson-orin-nano", "local"} <= set(names)
    made = answer(run("edgeship", "devices", "--json"))["devices"]
    assert [d["name"] for d in made] == names
    assert all(d["sources"]["bandwidth_gbps"] for d in made)
    ranked = answer(run("edgeship", "devices", "--recipe", "qwen2.5-1.5b-int4", "--json"))
    verdicts = [d["verdict"] for d in ranked["devices"]]
    assert ranked["recipe"] == "qwen2.5-1.5b-int4"
    assert (verdicts[0], ranked["devices"][-1]["device"]) == ("fits", "raspberry-pi-zero-2-w")
    assert verdicts.index("too big") > verdicts.index("fits")


def test_recipes_are_ranked_for_a_device() -> None:
    done = run("edgeship", "recipes", "--device", "raspberry-pi-4-2gb")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[1] == "fits"
    made = answer(run("edgeship", "recipes", "--device", "raspberry-pi-4-2gb", "--json"))
    assert made["device"] == "raspberry-pi-4-2gb"
    assert {"recipe", "verdict", "formats", "advice"} <= set(made["recipes"][0])


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: raspberry-pi-5-8gb\nos_mb: 2000\nsources: {os_mb: measured}\n")
    made = answer(run("edgeship", "plan", "tiny-int4", "--device", mine, "--json"))
    assert made["devices"][0]["device"] == "mine"
    mine.write_text("extends: raspberry-pi-5-8gb\nos_mb: 2000\nram: 4\n")
    done = run("edgeship", "plan", "tiny-int4", "--device", mine)
    assert_refused(done, 11, "mine.yaml:2:1", "mine.yaml:3:1", "did you mean 'ram_mb'?")


@pytest.mark.parametrize("command", [("plan", "tiny-int4"), ("recipes",)])
def test_an_unknown_device_is_refused(command: tuple[str, ...]) -> None:
    assert_refused(run("edgeship", *command, "--device", "raspberry-pi-5-8g"), 11, "did you mean 'raspberry-pi-5-8gb'?")
    made = answer(run("edgeship", *command, "--device", "nothing", "--json"), 11)
    assert made["error"]["kind"] == "device"


def test_an_unknown_recipe_is_refused() -> None:
    assert_refused(run("edgeship", "devices", "--recipe", "qwen"), 3, "no recipe is called 'qwen'")
