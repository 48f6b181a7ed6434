"""Pushing a folder: only what changed travels, a cut costs what was under way, and no wrong byte gets its name."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.errors import HostError, ResourceError
from edgeship.ship.push import _listed, compare, push
from edgeship.ship.transports import CutError, OnLine, Result, Source, Transport, parse_target
from edgeship.ship.transports.local import LocalTransport
from edgeship.ship.transports.ssh import SshTransport
from edgeship_runtime.files import FileEntry
from loopback_sshd import sshd
from small_disks import small_disk

LARGE = 300_000


class Spoiled(LocalTransport):
    """Changes what arrives: `spoil` gets the number of the sending and the bytes."""

    def __init__(self, home: Path, spoil: Callable[[int, bytes], bytes]) -> None:
        super().__init__(home)
        self._spoil, self._count = spoil, 0

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        if source:
            self._count += 1
            bad = source.path.with_name(f"spoiled-{self._count}")
            bad.write_bytes(self._spoil(self._count, source.path.read_bytes()[source.offset :]))
            source = Source(bad, 0, source.progress)
        return super().run(argv, timeout=timeout, on_line=on_line, source=source)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "local"
    (folder / "wheels").mkdir(parents=True)
    (folder / "artifact").mkdir()
    (folder / "install.sh").write_text("echo it's here\n")
    (folder / "wheels/a wheel.whl").write_bytes(b"w" * 5000)
    (folder / "artifact/model.data").write_bytes(os.urandom(LARGE))
    (folder / "artifact/empty").write_bytes(b"")
    return folder


def entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    return {
        str(each.relative_to(folder)): FileEntry(each.stat().st_size, hashlib.sha256(each.read_bytes()).hexdigest())
        for each in files
    }


def send(transport: Transport, folder: Path, to: str = "edgeship/one", root: str = "edgeship") -> Any:
    files = entries(folder)
    need = compare(transport, files, to, root)
    done = push(transport, folder, files, to, need, lambda n, name: None)
    assert done.sent_bytes == need.send_bytes
    return done


def same(a: Path, b: Path) -> bool:
    return entries(a) == entries(b)


class TestPush:
    def test_all_then_nothing(self, home: Path, local: Path) -> None:
        transport = LocalTransport(home)
        first = send(transport, local)
        assert (first.sent, first.kept, first.reused) == (4, 0, 0)
        assert same(local, home / "edgeship/one")
        second = send(transport, local)
        assert (second.sent, second.sent_bytes, second.kept) == (0, 0, 4)

    def test_only_what_changed(self, home: Path, local: Path) -> None:
        transport = LocalTransport(home)
        send(transport, local)
        (local / "install.sh").write_text("echo two\n")
        assert send(transport, local).sent_bytes == 9
        assert same(local, home / "edgeship/one")

    def test_what_is_no_longer_part_goes_away(self, home: Path, local: Path) -> None:
        transport = LocalTransport(home)
        send(transport, local)
        (local / "wheels/a wheel.whl").unlink()
        send(transport, local)
        assert same(local, home / "edgeship/one")

    def test_damage_on_the_board_is_repaired(self, home: Path, local: Path) -> None:
        transport = LocalTransport(home)
        send(transport, local)
        there = home / "edgeship/one/artifact/model.data"
        raw = bytearray(there.read_bytes())
        raw[1000] ^= 1
        there.write_bytes(raw)
        assert send(transport, local).sent_bytes == LARGE
        assert same(local, home / "edgeship/one")

    @pytest.mark.parametrize("links", [True, False])
    def test_taken_from_an_earlier_version(
        self, home: Path, local: Path, links: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        transport = LocalTransport(home)
        send(transport, local, "edgeship/one")
        if not links:  # a disk without links
            (tmp_path / "bin").mkdir()
            (tmp_path / "bin/ln").write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / "bin/ln").chmod(0o755)
            monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        done = send(transport, local, "edgeship/two")
        assert (done.reused, done.sent) == (1, 3)
        assert same(local, home / "edgeship/two")
        old, new = (home / f"edgeship/{each}/artifact/model.data" for each in ("one", "two"))
        assert os.path.samefile(old, new) is links

    def test_a_damaged_earlier_version_is_not_taken(self, home: Path, local: Path) -> None:
        transport = LocalTransport(home)
        send(transport, local, "edgeship/one")
        (home / "edgeship/one/artifact/model.data").write_bytes(os.urandom(LARGE))
        assert send(transport, local, "edgeship/two").reused == 0
        assert same(local, home / "edgeship/two")


class TestResume:
    def test_goes_on_where_it_was_cut(self, home: Path, local: Path) -> None:
        data = (local / "artifact/model.data").read_bytes()
        parts = home / "edgeship/one/.parts"
        parts.mkdir(parents=True)
        (parts / hashlib.sha256(data).hexdigest()).write_bytes(data[:200_000])
        done = send(LocalTransport(home), local)
        assert done.sent_bytes == LARGE - 200_000 + 5000 + len("echo it's here\n")
        assert same(local, home / "edgeship/one")
        assert (home / "edgeship/one/artifact/model.data").read_bytes() == data

    @pytest.mark.parametrize("length", [200_000, LARGE, LARGE + 5])
    def test_wrong_beginning_is_sent_again(self, home: Path, local: Path, length: int) -> None:
        data = (local / "artifact/model.data").read_bytes()
        parts = home / "edgeship/one/.parts"
        parts.mkdir(parents=True)
        (parts / hashlib.sha256(data).hexdigest()).write_bytes(b"\0" * length)
        files = entries(local)
        transport = LocalTransport(home)
        push(transport, local, files, "edgeship/one", compare(transport, files, "edgeship/one", "edgeship"), _nothing)
        assert (home / "edgeship/one/artifact/model.data").read_bytes() == data

    def test_connection_cut_in_the_middle(self, tmp_path: Path) -> None:
        folder = tmp_path / "local"
        folder.mkdir()
        (folder / "weights").write_bytes(os.urandom(64 << 20))
        files = entries(folder)
        with sshd(tmp_path / "sshd") as server:
            transport = SshTransport(parse_target(server.host), server.options)
            need = compare(transport, files, "one", "none")
            cut = threading.Event()

            def progress(n: int, name: str) -> None:
                if not cut.is_set():
                    cut.set()
                    threading.Timer(0.05, server.cut).start()

            with pytest.raises(CutError):
                push(transport, folder, files, "one", need, progress)
            assert not (server.home / "one/weights").exists()
            need = compare(transport, files, "one", "none")
            assert 0 < need.send_bytes < 64 << 20
            push(transport, folder, files, "one", need, _nothing)
            transport.close()
            assert entries(folder)["weights"] == entries(server.home / "one")["weights"]


def _nothing(n: int, name: str) -> None: ...


class TestFaults:
    def test_damaged_once_on_the_way(self, home: Path, local: Path) -> None:
        transport = Spoiled(home, lambda n, raw: raw[:-1] + b"!" if n == 4 else raw)
        files = entries(local)
        push(transport, local, files, "one", compare(transport, files, "one", "none"), _nothing)
        assert entries(home / "one") == files

    def test_damaged_always(self, home: Path, local: Path) -> None:
        transport = Spoiled(home, lambda n, raw: b"!" + raw[1:])
        files = entries(local)
        with pytest.raises(HostError, match="arrived twice"):
            push(transport, local, files, "one", compare(transport, files, "one", "none"), _nothing)
        assert not any(each.read_bytes()[:1] == b"!" for each in (home / "one").rglob("*") if each.is_file())

    def test_file_changes_here_meanwhile(self, home: Path, local: Path) -> None:
        files = entries(local)
        transport = LocalTransport(home)
        need = compare(transport, files, "one", "none")
        (local / "artifact/model.data").write_bytes(b"other")
        with pytest.raises(HostError, match="arrived twice"):
            push(transport, local, files, "one", need, _nothing)
        assert not (home / "one/artifact/model.data").exists()

    def test_full_disk(self, tmp_path: Path, local: Path) -> None:
        with small_disk(tmp_path / "disk") as disk:
            self._fill(disk, local)

    def _fill(self, small_disk: Path, local: Path) -> None:
        (local / "artifact/model.data").write_bytes(os.urandom(3 << 20))
        transport = LocalTransport(small_disk)
        files = entries(local)
        with pytest.raises(ResourceError, match="disk is full"):
            push(transport, local, files, "one", compare(transport, files, "one", "none"), _nothing)
        assert not (small_disk / "one/artifact/model.data").exists()
        assert shutil.disk_usage(small_disk).free > 500_000, "what did not fit is not left there"

    def test_no_permission(self, home: Path, local: Path) -> None:
        (home / "one").write_text("a file in the place of the folder")
        files = entries(local)
        transport = LocalTransport(home)
        with pytest.raises(HostError, match="cannot be written"):
            push(transport, local, files, "one", compare(transport, files, "one", "none"), _nothing)


class TestAnswers:
    @given(st.text(max_size=500))
    def test_nothing_a_board_lists_is_trusted(self, text: str) -> None:
        names, parts = _listed(text)
        for name in names:
            assert not name.startswith("/")
            assert ".." not in name.split("/")
        assert all(size >= 0 for size in parts.values())

    def test_unsafe_names_are_left_out(self) -> None:
        listing = "\n".join(f"{'a' * 64}  ./{name}" for name in ("good", "../up", "/etc/passwd", "x/../../y", "a\\b"))
        assert _listed(listing)[0] == {"good": "a" * 64}
