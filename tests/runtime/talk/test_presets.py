"""Presets: the package's own, the user's, damaged ones; and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import Ended
from edgeship_runtime.errors import UsageError
from edgeship_runtime.talk.presets import preset_names, read_preset

GOOD = """about = "Says hello."
system = "Say hello in {language}.\\nTo {person}."
thinking = false
[settings.language]
about = "the language"
[settings.person]
about = "who"
default = ""
[options]
temperature = 0.5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    presets = tmp_path / "edgeship" / "presets"
    presets.mkdir(parents=True)
    return presets


def test_our_own_are_read_and_filled() -> None:
    assert preset_names() == ["coding", "multilingual", "reasoning"]
    for name in preset_names():
        preset = read_preset(name)
        given = dict.fromkeys(preset.settings, "some words")
        filled = preset.fill(given)
        assert filled.system.count("some words") == len(given)
        assert "{" not in filled.system
        assert preset.about
    coding = read_preset("coding").fill({"language": "Rust"})
    assert coding.system.startswith("You write Rust.")
    assert "constraints" not in coding.system, "a line without its setting is left out"
    assert read_preset("coding").fill({}).system.startswith("You write Python.")
    assert read_preset("reasoning").fill({}).thinking is True


def test_the_users_come_before_ours(folder: Path) -> None:
    (folder / "coding.toml").write_text(GOOD)
    (folder / "hello.toml").write_text(GOOD)
    assert preset_names() == ["coding", "hello", "multilingual", "reasoning"]
    filled = read_preset("coding").fill({"language": "{person} \\1"})
    assert filled.system == "Say hello in {person} \\1.", "a value is put in as it is"
    assert (filled.thinking, filled.options) == (False, {"temperature": 0.5})
    assert read_preset(str(folder / "hello.toml")).name == "hello"


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match='no setting "lang"') as caught:
        read_preset("coding").fill({"lang": "C"})
    assert "language" in caught.value.hint
    with pytest.raises(UsageError, match="needs languages"):
        read_preset("multilingual").fill({})
    with pytest.raises(UsageError, match="there are: coding, multilingual, reasoning"):
        read_preset("codin")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("about =", "about", "not TOML"),
        ('about = "Says hello."', "about = 3", "about: expected text"),
        ("thinking = false", "think = false", 'no member "think"'),
        ("thinking = false", 'thinking = "no"', "thinking: expected true or false"),
        ("{person}", "somebody", "person is in one of system and settings alone"),
        ("{language}", "{tongue}", "language, tongue is in one"),
        ('default = ""', "default = 3", "settings: expected tables"),
        ("temperature", "temprature", 'no option "temprature"'),
        ("0.5", "-1.0", "options: temperature"),
        ("[options]", "[[options]]", "options"),
    ],
)
def test_a_damaged_preset_says_what_is_wrong(folder: Path, old: str, new: str, reason: str) -> None:
    path = folder / "hello.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=reason) as caught:
        read_preset("hello")
    assert str(path) in caught.value.message


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_preset(str(folder / "none.toml"))
    (folder / "bytes.toml").write_bytes(b'about = "\xff"')
    with pytest.raises(UsageError, match="not TOML"):
        read_preset("bytes")
    (folder / "long.toml").write_bytes(b"#" * (1 << 17))
    with pytest.raises(UsageError, match="at most 65536 bytes"):
        read_preset("long")


class TestCommandLine:
    def test_a_setting_that_lacks_is_named(self, command: Callable[..., Ended], artifact: str) -> None:
        ended = command("run", artifact, "x", "--preset", "multilingual")
        assert (ended.code, "--set languages=" in ended.err) == (2, True)

    def test_the_system_message_and_the_options_arrive(
        self, command: Callable[..., Ended], artifact: str, folder: Path
    ) -> None:
        (folder / "tiny.toml").write_text('about = "a"\nsystem = "a"\n[options]\nmax_tokens = 2\n')
        for more, tokens in (((), 2), (("--max-tokens", 3), 3)):
            ended = command("run", artifact, "x", "--preset", "tiny", "--json", "--greedy", *more)
            plain = command("run", artifact, "x", "--system", "a", "--max-tokens", tokens, "--json", "--greedy")
            assert ended.code == plain.code == 0
            assert ended.json()["tokens"] == plain.json()["tokens"]

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            (("--set", "a=b"), "--set fills in a preset"),
            (("--preset", "coding", "--system", "x"), "both say the system message"),
            (("--preset", "coding", "--set", "language"), "expected NAME=VALUE"),
            (("--preset", "coding", "--raw"), "--raw has no chat template"),
            (("--preset", "nothing"), "there is no preset"),
        ],
    )
    def test_contradictions(self, command: Callable[..., Ended], given: tuple[str, ...], reason: str) -> None:
        ended = command("run", "nowhere", "x", *given)
        assert ended.code == 2
        assert reason in ended.err
