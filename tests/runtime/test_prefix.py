"""The prefix cache: engine states in memory and on disk, on both engines, and what becomes of stale ones."""

from __future__ import annotations

import json
import os
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
from edgeship_runtime import prefix_files
from edgeship_runtime.errors import ArtifactError, ContextError, EngineError, ResourceError, UsageError
from edgeship_runtime.model import Model
from edgeship_runtime.prefix import PrefixCache, key_of, remember
from edgeship_runtime.prefix_files import Key, Prefix, PrefixFolder, common, load_prefix, save_prefix
from small_disks import full

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
                got = again.generate(FIRST, **GREEDY)
                assert (got.text, got.stats.cached_tokens) == (want, 49)
            with edgeship_runtime.load(directory, threads=1, context=32) as short:
                assert short.held == ()
            with pytest.raises(ContextError, match="do not fit"):
                edgeship_runtime.load(directory, threads=1, context=32, prefix=path)
            path.write_bytes(path.read_bytes()[:-1])
            with edgeship_runtime.load(directory, threads=1, context=96) as third:
                assert third.held == ()
                assert third.generate(FIRST, **GREEDY).text == want
            with pytest.raises(ArtifactError, match="not a whole prefix file"):
                edgeship_runtime.load(directory, threads=1, context=96, prefix=path)
        finally:
            path.unlink(missing_ok=True)


class TestFolder:
    """What outlives the process."""

    def test_conversations_go_on_after_a_restart(self, artifact: str, form: str, tmp_path: Path) -> None:
        directory, reports = Path(artifact) / form, list[str]()
        with edgeship_runtime.load(directory, threads=1, context=96) as first:
            remember(first, 1 << 24, tmp_path, reports.append)
            want = [first.generate(ids, **GREEDY).text for ids in (FIRST, SECOND)]
        files = list(tmp_path.rglob("*.prefix"))
        assert len(files) == 2
        assert files[0].parent.stat().st_mode & 0o077 == 0, "what was said can be read out of a state"
        with edgeship_runtime.load(directory, threads=1, context=96) as again:
            remember(again, 1 << 24, tmp_path, reports.append)
            got = [again.generate(ids, **GREEDY) for ids in (FIRST, SECOND)]
        assert [each.text for each in got] == want
        assert [each.stats.cached_tokens for each in got] == [49, 49]
        assert reports == []

    @pytest.mark.parametrize("harm", ["cut", "flip", "stale"])
    def test_what_is_damaged_or_stale_is_removed_and_answers_are_the_same(
        self, artifact: str, form: str, tmp_path: Path, harm: str
    ) -> None:
        directory, reports = Path(artifact) / form, list[str]()
        with edgeship_runtime.load(directory, threads=1, context=96) as first:
            remember(first, 1 << 24, tmp_path)
            want = first.generate(FIRST, **GREEDY).text
        (path,) = tmp_path.rglob("*.prefix")
        raw = bytearray(path.read_bytes())
        if harm == "stale":
            raw = bytearray(bytes(raw).replace(b'"artifact":"', b'"artifact":"0', 1))
            raw[8:12] = (int.from_bytes(raw[8:12], "little") + 1).to_bytes(4, "little")
        else:
            raw[-1] ^= 1
        path.write_bytes(raw[:-1] if harm == "cut" else raw)
        with edgeship_runtime.load(directory, threads=1, context=96) as again:
            remember(again, 1 << 24, tmp_path, reports.append)
            got = again.generate(FIRST, **GREEDY)
            assert (got.text, got.stats.cached_tokens) == (want, 0)
            assert not path.exists()
        assert len(reports) == 1
        assert ("stale" if harm == "stale" else "not a whole prefix file") in reports[0]

    def test_the_limit_holds_and_the_longest_unused_goes_first(self, tmp_path: Path) -> None:
        reports: list[str] = []
        folder = PrefixFolder(tmp_path, KEY, 2000, reports.append)
        for first in range(1, 5):
            folder.store([Prefix((first, 0), bytes(500))])
            os.utime(next(each for each in tmp_path.iterdir() if folder_tokens(each) == (first, 0)), (first, first))
        assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 2000
        again = PrefixFolder(tmp_path, KEY, 2000, reports.append)
        assert (again.longest([4, 0], 9), again.longest([1, 0], 9)) == (((4, 0), 2), None)
        assert again.longest([4, 0], 1) is None
        again.store([Prefix((4, 0, 7), bytes(500)), Prefix((9,), bytes(3000))])
        assert (4, 0) not in map(folder_tokens, tmp_path.iterdir())
        assert (9,) not in map(folder_tokens, tmp_path.iterdir())

    def test_a_full_disk_is_reported_and_nothing_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reports: list[str] = []
        folder = PrefixFolder(tmp_path, KEY, 1 << 20, reports.append)
        monkeypatch.setattr(prefix_files.os, "fsync", full)
        folder.store([Prefix((1,), b"state")])
        assert "No space left" in reports[0]
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_goes_away_or_is_changed_meanwhile(self, tmp_path: Path) -> None:
        folder = PrefixFolder(tmp_path, KEY, 1 << 20, [].append)
        folder.store([Prefix((1, 2), b"state")])
        (path,) = tmp_path.iterdir()
        save_prefix(path, KEY, Prefix((3,), b"other"))
        assert folder.load((1, 2)) is None
        folder.store([Prefix((1, 2), b"state")])
        path.unlink()
        assert folder.load((1, 2)) is None
        assert len(folder) == 0

    def test_no_memory_and_no_permission_cost_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise MemoryError if short else PermissionError

        folder = PrefixFolder(tmp_path, KEY, 1 << 20, (reports := list[str]()).append)
        folder.store([Prefix((1, 2), b"state")])
        short = True
        with monkeypatch.context() as patch:
            patch.setattr(prefix_files, "load_prefix", refuse)
            assert folder.load((1, 2)) is None
        short = False
        monkeypatch.setattr(prefix_files.os, "utime", refuse)
        assert folder.load((1, 2)) == Prefix((1, 2), b"state")
        assert reports == []

    def test_a_directory_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ResourceError, match="cannot be kept there"):
            PrefixFolder(tmp_path / "file", KEY, 1, [].append)

    def test_what_a_killed_writer_left_is_cleared_away(self, tmp_path: Path) -> None:
        (tmp_path / ".a.prefix.1.partial").write_bytes(b"x")
        PrefixFolder(tmp_path, KEY, 1, [].append)
        assert list(tmp_path.iterdir()) == []


def folder_tokens(path: Path) -> tuple[int, ...]:
    return prefix_files.peek_tokens(path, KEY)


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_common(first: list[int], second: list[int]) -> None:
    shared = common(first, tuple(second))
    assert first[:shared] == second[:shared]
    assert shared == min(len(first), len(second)) or first[shared] != second[shared]


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

    def test_only_so_many_conversations(self) -> None:
        cache = PrefixCache(1 << 20)
        for first in range(prefixes.MOST_STATES + 5):
            cache.put(Prefix((first, 0), b"x"))
        assert len(cache) == prefixes.MOST_STATES
        assert cache.find([0]) is None

    def test_a_state_too_large_costs_none_of_the_others(self) -> None:
        cache = PrefixCache(5)
        cache.put(Prefix((1,), b"x"))
        assert not cache.put(Prefix((1, 2), b"x" * 6))
        assert len(cache) == 1

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
        with pytest.raises(ArtifactError, match="does not exist"):
            load_prefix(tmp_path / "none", KEY)

    def test_a_full_disk_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.prefix"
        save_prefix(path, KEY, Prefix((1,), b"old"))

        monkeypatch.setattr(prefix_files.os, "fsync", full)
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

    def test_without_a_manifest_every_file_counts(self, model: Model, tmp_path: Path) -> None:
        manifest = replace(model.manifest, sealed=False)
        files = [tmp_path / name for name in ("model.onnx", "model.onnx.data", "x-00001-of-00002.gguf")]
        files.append(tmp_path / "x-00002-of-00002.gguf")
        for path in files:
            path.write_bytes(b"1")
        whole, split = (key_of(model.engine, place, manifest).artifact for place in (tmp_path, files[2]))
        files[3].write_bytes(b"2")
        assert key_of(model.engine, files[2], manifest).artifact != split
        files[3].write_bytes(b"1")
        assert key_of(model.engine, files[2], manifest).artifact == split
        assert key_of(model.engine, tmp_path, manifest).artifact == whole
        files[1].write_bytes(b"2")
        assert key_of(model.engine, tmp_path, manifest).artifact != whole
