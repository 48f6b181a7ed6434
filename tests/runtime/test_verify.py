"""The verdict: pass where nothing differs, a named failure for every difference, an error for files that are none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tolerances
from acceptance_files import golden, seal, write_acceptance
from edgeship_runtime import verify as verifying
from edgeship_runtime.acceptance import read_chats, read_golden
from edgeship_runtime.errors import ArtifactError, EdgeshipRuntimeError, EngineError, UsageError
from edgeship_runtime.manifest import Budgets, read_manifest, write_manifest
from edgeship_runtime.verify import CHECKS, verify
from json_values import mutate
from toy_artifact import Toy, write_toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return write_toy(tmp_path / "toy" / "onnx")


@pytest.fixture(scope="module")
def shared_toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """For tests that put every file back as it was."""
    made = write_toy(tmp_path_factory.mktemp("shared") / "onnx")
    write_acceptance(made)
    return made


class TestPass:
    def test_everything_equal(self, toy: Toy) -> None:
        seen: list[tuple[str, float]] = []
        write_acceptance(toy)
        verdict = verify(toy.directory.parent, threads=1, progress=lambda what, share: seen.append((what, share)))
        assert verdict.failures == ()
        assert verdict.verdict == "pass"
        assert verdict.exit_code == 0
        assert verdict.intact is True
        assert verdict.templates == verifying.Count(3, 3)
        assert verdict.tokens == verifying.Count(2, 2)
        assert verdict.agreement is not None
        assert (verdict.agreement.positions, verdict.agreement.equal, verdict.agreement.wrong) == (22, 22, 0)
        assert verdict.agreement.max_logit_error_std < tolerances.VERIFY_FLOAT32_STD
        assert {what for what, _ in seen} == {"files", "templates", "tokens", "agreement"}
        assert all(0 <= share <= 1 for _, share in seen)
        assert seen[-1] == ("agreement", 1.0)

    def test_json_and_table(self, toy: Toy) -> None:
        verdict = verify(write_acceptance(toy))
        value = json.loads(json.dumps(verdict.to_json()))
        assert {"verdict", "intact", "templates", "tokens", "agreement", "size", "failures"} <= set(value)
        assert value["agreement"]["ties"] == []
        table = verdict.table()
        for word in ("intact", "3 of 3 equal", "22 of 22 tokens equal", "of 10 MB", "pass"):
            assert word in table

    @pytest.mark.parametrize("check", CHECKS)
    def test_a_skipped_check_does_not_run(self, toy: Toy, check: str) -> None:
        verdict = verify(write_acceptance(toy), skip=[check])
        value = verdict.to_json()
        assert value["skipped"] == (check,)
        assert value["intact" if check == "files" else check] is None
        assert "skipped" in verdict.table()
        assert verdict.verdict == "pass"

    def test_without_the_engine_nothing_is_imported(self, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verifying, "open_engine", None)
        assert verify(write_acceptance(toy), skip=("agreement",)).verdict == "pass"

    def test_unknown_check(self, toy: Toy) -> None:
        with pytest.raises(UsageError, match=r'no check "template" \(nearest known: "templates"\)'):
            verify(toy.directory, skip=["template"])

    def test_unsealed(self, tmp_path: Path) -> None:
        made = write_toy(tmp_path / "built", sealed=False)
        verdict = verify(made.directory)
        assert verdict.verdict == "unsealed"
        assert verdict.exit_code == 15
        assert "nothing to verify" in verdict.table()


def change_golden(change: Callable[[Any], None]) -> Callable[[str, Any], None]:
    return lambda name, value: change(value) if name == "golden" else None


def change_chats(change: Callable[[Any], None]) -> Callable[[str, Any], None]:
    return lambda name, value: change(value) if name == "chats" else None


class TestFail:
    def test_damaged_files_end_it(self, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verifying, "open_engine", None)  # nothing may be opened
        directory = write_acceptance(toy)
        data = bytearray((directory / "model.onnx.data").read_bytes())
        data[1000] ^= 1
        (directory / "model.onnx.data").write_bytes(data)
        (directory / "extra").write_bytes(b"")
        (directory / "chat_template.jinja").unlink()
        verdict = verify(directory)
        assert verdict.verdict == "fail"
        assert verdict.exit_code == 14
        assert verdict.intact is False
        assert [failure.split(":")[1].strip() for failure in verdict.failures] == [
            "chat_template.jinja",
            "extra",
            "model.onnx.data",
        ]
        assert verdict.agreement is None
        assert "NOT intact" in verdict.table()
        assert "not run" in verdict.table()

    def test_over_budget(self, toy: Toy) -> None:
        directory = write_acceptance(toy)
        write_manifest(directory, replace(read_manifest(directory), budgets=Budgets(size_mb=0.01)))
        verdict = verify(directory)
        assert verdict.verdict == "fail"
        assert "more than the budget of 0.01 MB" in verdict.failures[0]

    def test_template(self, toy: Toy) -> None:
        write_acceptance(toy)
        template = toy.directory / "chat_template.jinja"
        template.write_text(template.read_text().replace("You are a small model.", "You are a small modal."))
        verdict = verify(seal(toy.directory))
        assert verdict.templates == verifying.Count(3, 2)
        assert verdict.failures == (
            'templates: one: the text differs at character 38: expected "el.<|im_end|>\\n<|im_s", '
            'found "al.<|im_end|>\\n<|im_s"',
        )

    def test_template_refuses_or_no_longer_does(self, toy: Toy) -> None:
        write_acceptance(toy)
        template = toy.directory / "chat_template.jinja"
        template.write_text("{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}x")
        failures = verify(seal(toy.directory)).failures
        assert [failure.split(":")[1].strip() for failure in failures] == ["one", "two", "refused"]
        assert "one only" in failures[1]
        assert "was refused when the artifact was sealed" in failures[2]

    def test_no_template(self, toy: Toy) -> None:
        write_acceptance(toy)
        (toy.directory / "chat_template.jinja").unlink()
        assert "the artifact no chat template" in verify(seal(toy.directory)).failures[0]

    def test_tokens(self, toy: Toy) -> None:
        verdict = verify(write_acceptance(toy, change_chats(lambda value: value["cases"][0]["token_ids"].append(3))))
        assert verdict.failures == ("tokens: one: the token ids differ",)
        assert verdict.tokens == verifying.Count(2, 1)

    def test_ids_by_llamacpp_are_not_those_of_the_tokenizer(self, toy: Toy) -> None:
        def change(value: Any) -> None:
            case = value["cases"][0]
            case["gguf_token_ids"], case["token_ids"] = case["token_ids"], [3]

        assert verify(write_acceptance(toy, change_chats(change))).failures == ("tokens: one: the token ids differ",)

    def test_another_token(self, toy: Toy) -> None:
        def change(value: Any) -> None:
            place = value["cases"][1]["positions"][3]
            place["top_ids"][:2] = place["top_ids"][1::-1]
            place["top_logits"][0] += place["std"] * 0.2

        verdict = verify(write_acceptance(toy, change_golden(change)))
        assert verdict.agreement is not None
        assert verdict.agreement.wrong == 1
        assert verdict.agreement.equal == 21
        tie = verdict.agreement.ties[0]
        assert (tie.case, tie.index, tie.tolerated) == ("long", 3, False)
        assert any("agreement: long, position 3: expected token" in failure for failure in verdict.failures)

    def test_a_near_tie_is_tolerated_and_shown(self, toy: Toy) -> None:
        def change(value: Any) -> None:
            place = value["cases"][1]["positions"][3]
            place["top_ids"][:2] = place["top_ids"][1::-1]
            place["top_logits"][:2] = [place["top_logits"][0], place["top_logits"][0] - place["std"] * 0.05]

        verdict = verify(write_acceptance(toy, change_golden(change)))
        assert verdict.failures == ()
        assert verdict.agreement is not None
        assert verdict.agreement.near_ties == 1
        assert verdict.agreement.ties[0].gap_std == pytest.approx(0.05)
        assert "near tie: long, position 3: gap 0.050" in verdict.table()

    def test_a_token_out_of_nowhere(self, toy: Toy) -> None:
        def change(value: Any) -> None:
            for place in value["cases"][0]["positions"]:
                place["top_ids"] = [(token + 100) % 320 for token in place["top_ids"]]
                place["top_logits"] = [-10.0 - i for i in range(5)]

        verdict = verify(write_acceptance(toy, change_golden(change)))
        assert verdict.agreement is not None
        assert verdict.agreement.wrong == 6
        assert any("not among the golden best" in failure for failure in verdict.failures)
        assert any("deviations, more than 0.5" in failure for failure in verdict.failures)

    def test_the_golden_token_follows_whatever_was_chosen(self, toy: Toy) -> None:
        """A wrong top-1 at one place must not change the places after it."""

        def change(value: Any) -> None:
            place = value["cases"][0]["positions"][0]
            place["top_ids"] = place["top_ids"][::-1]

        verdict = verify(write_acceptance(toy, change_golden(change)))
        assert verdict.agreement is not None
        assert verdict.agreement.wrong == 1

    def test_gaps_between_positions(self, toy: Toy) -> None:
        def change(value: Any) -> None:
            for case in value["cases"]:
                case["positions"] = case["positions"][1::3]

        verdict = verify(write_acceptance(toy, change_golden(change)))
        assert verdict.verdict == "pass"

    def test_logits_that_are_no_numbers(self, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken:
            name, length = "broken", 0

            def evaluate(self, tokens: Any) -> Any:
                self.length += len(tokens)
                return np.full(320, np.nan, np.float32)

            def truncate(self, length: int) -> None:
                self.length = length

            def close(self) -> None: ...

        monkeypatch.setattr(verifying, "open_engine", lambda *_, **__: Broken())
        verdict = verify(write_acceptance(toy))
        assert verdict.verdict == "fail"
        assert all("no numbers" in failure for failure in verdict.failures)
        json.dumps(verdict.to_json(), allow_nan=False)

        def fail(self: Broken, tokens: Any) -> Any:
            raise EngineError("the engine fell over")

        monkeypatch.setattr(Broken, "evaluate", fail)
        assert verify(toy.directory).failures == ("agreement: short: the engine fell over",)

    def test_context_too_small(self, toy: Toy) -> None:
        with pytest.raises(UsageError, match="needs a context of 17 tokens, found 3"):
            verify(write_acceptance(toy), context=3)


BAD_FILES: list[tuple[str, Any, Any, str]] = [
    ("golden", "schema", 2, "schema version 2"),
    ("golden", "cases", {}, "cases: expected a list"),
    ("golden", "tie_tolerance", 0.9, "tie_tolerance: expected a number from 0 to 0.5"),
    ("golden", "more", 1, 'unknown member "more"'),
    ("golden case", "prompt_ids", [], "at least one token"),
    ("golden case", "prompt_ids", [320], r"cases.0..prompt_ids.0.: expected a whole number from 0 to 319"),
    ("golden case", "prompt_ids", [1] * 100, "does not fit the model's 96"),
    ("golden case", "continuation", [True], "whole number"),
    ("golden case", "positions", [1], "expected an object"),
    ("golden case", "positions", [], "expected positions to compare"),
    ("position", "index", 99, "index: expected a whole number from 0 to 6"),
    ("position", "top_ids", [1, 1, 2, 3, 4], "expected different ids"),
    ("position", "top_ids", [1], "one for each of 5 logits"),
    ("position", "top_logits", [1, 2, 3, 4, 5], "the largest first"),
    ("position", "top_logits", ["a"], "expected a number"),
    ("position", "std", -1, "std: expected a number"),
    ("chats", "schema", None, "schema version null"),
    ("chats", "cases", None, "cases: expected a list"),
    ("chat", "name", 1, "name: expected text"),
    ("chat", "messages", "x", "messages: expected a list"),
    ("chat", "tools", 1, "tools: expected a list"),
    ("chat", "enable_thinking", 1, "enable_thinking: expected true or false"),
    ("chat", "add_generation_prompt", None, "add_generation_prompt: expected true or false"),
    ("chat", "rendered", None, "rendered: expected text"),
    ("chat", "token_ids", [-1], "token_ids"),
    ("chat", "gguf_token_ids", [-1], "gguf_token_ids"),
    ("chat", "error", "x", "found both"),
]


class TestHostileFiles:
    @pytest.mark.parametrize(("where", "name", "value", "message"), BAD_FILES)
    def test_members(self, toy: Toy, where: str, name: str, value: Any, message: str) -> None:
        def change(file: str, root: Any) -> None:
            if file != ("chats" if where.startswith("chat") else "golden"):
                return
            inner = root if where == file else root["cases"][0]
            (inner["positions"][0] if where == "position" else inner)[name] = value

        with pytest.raises(ArtifactError, match=message) as caught:
            verify(write_acceptance(toy, change))
        assert caught.value.hint

    @pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b'{"schema": 1, "schema": 1}', b"[" * 10_000])
    def test_bytes(self, toy: Toy, raw: bytes) -> None:
        write_acceptance(toy)
        (toy.directory / "acceptance" / "golden.json").write_bytes(raw)
        with pytest.raises(ArtifactError):
            verify(seal(toy.directory))

    def test_absent(self, toy: Toy) -> None:
        with pytest.raises(
            ArtifactError, match=r"acceptance/chats\.json is needed and edgeship\.json does not name it"
        ):
            verify(toy.directory)

    @given(st.data())
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_fuzz(self, shared_toy: Toy, data: st.DataObject) -> None:
        """Whatever the file holds: cases, or ArtifactError."""
        directory = shared_toy.directory
        manifest = replace(read_manifest(directory), sealed=False)  # sizes are not the point here
        name, read = data.draw(st.sampled_from((("chats", read_chats), ("golden", read_golden))))
        path = directory / "acceptance" / f"{name}.json"
        kept = path.read_bytes()
        path.write_text(json.dumps(mutate(data, copy.deepcopy(json.loads(kept)))))
        try:
            read(directory, replace(manifest, files={}))
        except EdgeshipRuntimeError as error:
            check_message(error)
        finally:
            path.write_bytes(kept)


def check_message(error: EdgeshipRuntimeError) -> None:
    assert isinstance(error, ArtifactError)
    assert len(str(error).encode()) < 4000


def test_golden_of_the_toy_is_consistent(toy: Toy) -> None:
    """The helper's own oracle: the continuation is what its positions predict."""
    for case in golden(toy)["cases"]:
        ids = case["prompt_ids"] + case["continuation"]
        for place in case["positions"][len(case["prompt_ids"]) - 1 :]:
            assert ids[place["index"] + 1] == place["top_ids"][0]
