"""The prefix cache: engine states in memory and on disk, on both engines, and what becomes of stale ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeship_runtime
from edgeship_runtime import prefix as prefixes
from edgeship_runtime.errors import ArtifactError, EngineError, ResourceError, UsageError
from edgeship_runtime.model import Model
from edgeship_runtime.prefix import Key, Prefix, PrefixCache, key_of, load_prefix, remember, save_prefix

KEY = Key("ab" * 32, "engine 1", "kv float32")
GREEDY: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 4, "ignore_eos": True}
FIRST, SECOND = [(7 * i) % 250 for i in range(50)], [(11 * i + 3) % 250 for i in range(50)]


@pytest.fixture
def model(artifact: str, form: str) -> Iterator[Model]:
    with edgeship_runtime.load(Path(artifact) / form, threads=1, context=96) as loaded:
        yield loaded


def logits_after(model: Model, ids: Sequence[int]) -> Any:
    model.engine.truncate(0)
    return model.engine.evaluate(ids).copy()


class TestEngineState:
    def test_it_gives_the_logits_of_the_tokens_it_is_of(self, model: Model) -> None:
        engine = prefixes.restorable(model.engine)
        model.engine.evaluate(FIRST)
        state = engine.save()
        want = model.engine.evaluate([5]).copy()
        model.engine.truncate(0)
        model.engine.evaluate(SECOND)
        other = model.engine.evaluate([5]).copy()
        assert not np.array_equal(want, other)
        engine.restore(state, FIRST)
        assert model.engine.length == len(FIRST)
        np.testing.assert_array_equal(model.engine.evaluate([5]), want)
        model.engine.truncate(20)
        cut = model.engine.evaluate([9]).copy()
        np.testing.assert_allclose(cut, logits_after(model, [*FIRST[:20], 9]), atol=1e-4 * np.abs(cut).max())

    def test_what_is_no_state_is_refused_and_the_engine_goes_on(self, model: Model) -> None:
        engine = prefixes.restorable(model.engine)
        want = logits_after(model, FIRST)
        state = engine.save()
        for wrong, ids in ((state[:-7], FIRST), (b"", FIRST), (state, FIRST[:-1])):
            with pytest.raises(EngineError):
                engine.restore(wrong, ids)
            np.testing.assert_array_equal(logits_after(model, FIRST), want)

    def test_nothing_held_is_nothing_to_save(self, model: Model) -> None:
        with pytest.raises(EngineError, match="no tokens"):
            prefixes.save_model_prefix(model, Path("none"))


class TestAnswers:
    def test_conversations_in_turn_are_not_evaluated_again(self, model: Model) -> None:
        plain = [model.generate(ids, **GREEDY).text for ids in (FIRST, SECOND)]
        model.forget()
        cache = remember(model, 1 << 24)
        got = [model.generate(ids, **GREEDY) for ids in (FIRST, SECOND, FIRST, SECOND)]
        assert [each.text for each in got] == plain * 2
        assert [each.stats.cached_tokens for each in got] == [0, 0, 49, 49]
        assert 1 <= len(cache) <= 2
        assert cache.used_bytes > 0

    def test_without_room_answers_are_the_same(self, model: Model) -> None:
        remember(model, 10)
        got = [model.generate(ids, **GREEDY) for ids in (FIRST, SECOND, FIRST)]
        assert got[0].text == got[2].text
        assert got[2].stats.cached_tokens == 0

    def test_a_state_the_engine_refuses_is_dropped(self, model: Model) -> None:
        want = model.generate(FIRST, **GREEDY).text
        model.forget()
        cache = remember(model, 1 << 24)
        cache.put(Prefix(tuple(FIRST), b"no state at all"))
        got = model.generate(FIRST, **GREEDY)
        assert (got.text, got.stats.cached_tokens, len(cache)) == (want, 0, 0)

    def test_saved_and_shipped(self, artifact: str, form: str) -> None:
        directory = Path(artifact) / form
        path = prefixes.shipped_path(directory)
        try:
            with edgeship_runtime.load(directory, threads=1, context=96) as first:
                want = first.generate(FIRST, **GREEDY).text
                saved = prefixes.save_model_prefix(first, path)
                assert list(saved.tokens[: len(FIRST)]) == FIRST
            with edgeship_runtime.load(directory, threads=1, context=96) as again:
                remember(again, 1 << 24)
                got = again.generate(FIRST, **GREEDY)
                assert (got.text, got.stats.cached_tokens) == (want, 49)
            path.write_bytes(path.read_bytes()[:-1])
            with edgeship_runtime.load(directory, threads=1, context=96) as third:
                assert len(remember(third, 1 << 24)) == 0
                assert third.generate(FIRST, **GREEDY).text == want
        finally:
            path.unlink(missing_ok=True)


class TestMemory:
    def test_the_longest_unused_goes_first(self) -> None:
        cache = PrefixCache(30)
        for first in (1, 2, 3):
            assert cache.put(Prefix((first, 0), b"x" * 10))
        assert cache.find([1, 5]) == (Prefix((1, 0), b"x" * 10), 1)
        assert cache.put(Prefix((4, 0), b"y" * 10))
        assert cache.find([2]) is None
        assert cache.find([1]) is not None
        assert not cache.put(Prefix((9,), b"z" * 31))
        assert cache.used_bytes == 30
        cache.clear()
        assert (len(cache), cache.used_bytes) == (0, 0)

    def test_a_limit_below_nothing(self) -> None:
        with pytest.raises(UsageError, match="-1 bytes"):
            PrefixCache(-1)

    @given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 12)), max_size=12))
    def test_the_limit_holds_and_the_longest_is_found(self, puts: list[tuple[list[int], int]]) -> None:
        cache = PrefixCache(25)
        for tokens, size in puts:
            kept = cache.put(Prefix(tuple(tokens), b"x" * size))
            assert cache.used_bytes <= 25
            assert kept
            found = cache.find([*tokens, 9])
            assert found is not None
            assert found[1] == len(tokens)


class TestFiles:
    def test_there_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "a.prefix"
        save_prefix(path, KEY, Prefix((1, 2, 3), b"state"))
        assert load_prefix(path, KEY) == Prefix((1, 2, 3), b"state")
        assert [each.name for each in tmp_path.iterdir()] == ["a.prefix"]

    @pytest.mark.parametrize("member", ["artifact", "engine", "layout"])
    def test_stale(self, tmp_path: Path, member: str) -> None:
        path = tmp_path / "a.prefix"
        save_prefix(path, KEY, Prefix((1, 2, 3), b"state"))
        with pytest.raises(ArtifactError, match=f"stale: its {member}"):
            load_prefix(path, replace(KEY, **{member: "another"}))

    @given(st.data())
    def test_no_changed_byte_passes(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        path = tmp_path_factory.mktemp("bytes") / "a.prefix"
        whole = Prefix((1, 2, 3), b"state")
        save_prefix(path, KEY, whole)
        raw = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw[: data.draw(st.integers(place + 1, len(raw)))])
        try:
            found = load_prefix(path, KEY)
        except ArtifactError:
            return
        assert found == whole

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_prefix(tmp_path / "none", KEY)

    def test_a_full_disk_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.prefix"
        save_prefix(path, KEY, Prefix((1,), b"old"))

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(prefixes.os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left"):
            save_prefix(path, KEY, Prefix((1,), b"new"))
        assert load_prefix(path, KEY).state == b"old"
        assert len(list(tmp_path.iterdir())) == 1

    def test_the_key_follows_artifact_engine_and_options(self, model: Model) -> None:
        key = key_of(model.engine, model.directory, model.manifest)
        assert key == key_of(model.engine, model.directory, model.manifest)
        other = replace(model.manifest, name="another")
        assert key_of(model.engine, model.directory, other).artifact != key.artifact
        assert key.engine == model.engine.name
        assert key.layout
        assert json.dumps(key.to_json())
