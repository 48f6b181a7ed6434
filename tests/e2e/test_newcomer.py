"""The README's path from nothing to an answer, through the installed commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands import assert_refused, last_json, run

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["tiny-int4", "tiny-int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    report = last_json(run("edgeship", "export", request.param, "--out", out, "--json"))
    assert set(report) >= {"artifact", "seconds", "peak_rss_mb", "size_mb", "bits_per_weight", "source_revision"}
    assert report["artifact"] == str(out / request.param)
    return out / request.param


def test_it_answers_in_its_domain(artifact: Path) -> None:
    done = run("edgeship-runtime", "run", artifact, "What sound does a cow make?")
    assert done.returncode == 0, done.stderr
    assert "moo" in done.stdout


def test_it_continues_a_story(artifact: Path) -> None:
    options = ["--raw", "--greedy", "--max-tokens", "60"]
    done = run("edgeship-runtime", "run", artifact, "Once upon a time", *options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20
    assert run("edgeship-runtime", "run", artifact, "Once upon a time", *options).stdout == done.stdout


def test_the_prompt_may_come_from_standard_input(artifact: Path) -> None:
    done = run("edgeship-runtime", "run", artifact, "-", "--json", stdin="What sound does a cow make?")
    assert "moo" in str(last_json(done)["text"])


def test_a_conversation_goes_on(artifact: Path) -> None:
    done = run("edgeship-runtime", "chat", artifact, stdin="What sound does a cow make?\nAnd a duck?\n/exit\n")
    assert done.returncode == 0, done.stderr
    assert "moo" in done.stdout
    assert "quack" in done.stdout


def test_it_verifies(artifact: Path) -> None:
    done = run("edgeship-runtime", "verify", artifact, "--json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["verdict"]) == (0, "pass")


def test_it_is_measured(artifact: Path) -> None:
    report = last_json(
        run("edgeship-runtime", "bench", artifact, "--prompt-tokens", "16", "--decode-tokens", "8", "--json")
    )
    assert {"load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_mb"} <= set(report)


def test_it_says_what_it_is(artifact: Path) -> None:
    facts = json.dumps(last_json(run("edgeship-runtime", "info", artifact, "--json")))
    assert artifact.name in facts
    assert "com.microsoft.MatMulNBits" in facts


def test_a_second_export_leaves_the_first_alone(artifact: Path) -> None:
    assert_refused(run("edgeship", "export", artifact.name, "--out", artifact.parent), 8, "exists already", "--force")


@pytest.mark.parametrize("command", ["edgeship", "edgeship-runtime"])
def test_every_command_helps_with_an_example(command: str) -> None:
    listed = [[name] for name in commands_in(run(command, "--help").stdout)]
    assert len(listed) >= 4, listed
    for words in listed:
        text = run(command, *words, "--help").stdout
        assert f"{command} {' '.join(words)}" in text.split("Usage", 1)[-1].split("\n", 1)[1] or "xample" in text, text
        if " ACTION" in text:
            listed += [[*words, name] for name in commands_in(text)]
        else:
            assert "--json" in text or words == ["schema"], text


def commands_in(help_text: str) -> list[str]:
    """The commands, or actions of a command, that a help lists."""
    return re.findall(r"^[ │]{2,4}([a-z][a-z-]+)(?:  +\S|$)", help_text, re.MULTILINE)


def test_the_readme_names_what_there_is() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", readme, re.MULTILINE)) <= targets
    house = readme[readme.index("## The house") :]
    places = re.findall(r"^\| `([a-z_/]+)` \|", house, re.MULTILINE)
    assert places
    for name in places:
        assert (ROOT / name).exists(), name
