"""A folder onto a board, only what changed by content: a cut-off push goes on where it stopped, file by file.

A file travels under the name of its sha256 in `.parts/` and gets its own name when the board's sum of it is right.
What the board has in another version is linked from there, or copied where links cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeship.errors import HostError
from edgeship.ship.scripts import LIST, PARTS, SUM
from edgeship.ship.transports import Source, Transport
from edgeship.ship.transports.command import SEND_TIMEOUT, last_line, write_error
from edgeship_runtime.files import FileEntry, name_problem

HASH_TIMEOUT = 1800.0  # seconds: gigabytes on a slow card
SAME = "same"
"""In the place of a sum: one file with another whose sum is known."""
_WORTH_REUSING = 1 << 16  # bytes; smaller files are sent sooner than looked for
_DAMAGED = 65  # exit code of _RECEIVE for a file that arrived otherwise than it left

# Boards name the tool differently; both print the sum, two characters and the name. What tools say is read here.
_SEEK = f"""{SUM}cd -- "$1" 2>/dev/null || exit 0
shift
find . -name venv -prune -o -type f \\( "$@" \\) -print | while IFS= read -r f; do sum "$f"; done
exit 0
"""
_REUSE = """LC_ALL=C; export LC_ALL
mkdir -p -- "$(dirname -- "$2")" || exit
rm -f -- "$2.reused"
{ ln -- "$1" "$2.reused" 2>/dev/null || cp -- "$1" "$2.reused"; } && mv -f -- "$2.reused" "$2"
"""
_RECEIVE = f"""{SUM}part=$1; name=$2; want=$3
mkdir -p -- "$(dirname -- "$part")" "$(dirname -- "$name")" || exit
if [ "$4" = 0 ]; then cat > "$part"; else cat >> "$part"; fi || {{ code=$?; rm -f -- "$part"; exit $code; }}
# Shorter than it should be: the connection was cut, and the next try may be writing the rest already.
size=$(wc -c < "$part") || exit
[ $((size)) -ge "$5" ] || exit {_DAMAGED}
got=$(sum "$part") || exit
case "$got" in "$want"*) mv -f -- "$part" "$name" ;; *) rm -f -- "$part"; exit {_DAMAGED} ;; esac
"""
_REMOVE = 'cd -- "$1" || exit; shift; rm -f -- "$@"'


@dataclass(frozen=True)
class Need:
    """What a push has to do: bytes to send (less what is there in part), files by where they come from."""

    send: tuple[str, ...]
    reuse: Mapping[str, str]
    """By file: the path on the board of equal content."""
    stale: tuple[str, ...]
    parts: Mapping[str, int]
    """By sha256: bytes that are there already."""
    send_bytes: int


@dataclass(frozen=True)
class Pushed:
    """What a push did, in files and bytes that travelled."""

    sent: int
    sent_bytes: int
    reused: int
    kept: int


def compare(
    transport: Transport, files: Mapping[str, FileEntry], folder: str, root: str, listing: str | None = None
) -> Need:
    """What `folder` on the board lacks of `files`; equal content is looked for under `root` there.

    `listing` is what LIST printed there, None: not asked yet. Raises HostError.
    """
    there, parts = _listed(_ask(transport, LIST, folder) if listing is None else listing)
    missing = [name for name, entry in files.items() if there.get(name) != entry.sha256]
    large = {files[name].size for name in missing if files[name].size >= _WORTH_REUSING}
    reuse: dict[str, str] = {}
    if large:
        sizes = [part for size in sorted(large) for part in ("-o", "-size", f"{size}c")][1:]
        elsewhere, _ = _listed(_ask(transport, _SEEK, root, *sizes))
        by_sum = {digest: name for name, digest in elsewhere.items() if f"/{PARTS}/" not in f"/{name}"}
        reuse = {name: f"{root}/{by_sum[files[name].sha256]}" for name in missing if files[name].sha256 in by_sum}
    send = tuple(sorted((name for name in missing if name not in reuse), key=lambda name: files[name].size))
    left = sum(files[name].size - _offset(files[name], parts) for name in send)
    stale = tuple(name for name in there if name not in files)
    return Need(send, reuse, stale, parts, left)


def push(
    transport: Transport,
    local: Path,
    files: Mapping[str, FileEntry],
    folder: str,
    need: Need,
    progress: Callable[[int, str], None],
) -> Pushed:
    """Do what `compare` found; `progress` is told bytes sent and the file. Raises HostError, ResourceError."""
    for name, path in need.reuse.items():
        done = transport.run(["sh", "-c", _REUSE, "sh", path, f"{folder}/{name}"], timeout=HASH_TIMEOUT)
        if done.code:
            raise write_error(name, done)
    sent = 0
    for name in need.send:
        sent += _send(transport, local / name, name, files[name], folder, need.parts, progress)
    if need.stale:
        transport.run(["sh", "-c", _REMOVE, "sh", folder, *(f"./{name}" for name in need.stale)], timeout=HASH_TIMEOUT)
    kept = len(files) - len(need.send) - len(need.reuse)
    return Pushed(len(need.send), sent, len(need.reuse), kept)


def _send(
    transport: Transport,
    path: Path,
    name: str,
    entry: FileEntry,
    folder: str,
    parts: Mapping[str, int],
    progress: Callable[[int, str], None],
) -> int:
    """Send one file, from where an earlier push stopped; once more from its beginning when it arrives damaged."""
    for offset in (_offset(entry, parts), 0):
        source = Source(path, offset, lambda n: progress(n, name))
        part = f"{folder}/{PARTS}/{entry.sha256}"
        given = [part, f"{folder}/{name}", entry.sha256, str(offset), str(entry.size)]
        done = transport.run(["sh", "-c", _RECEIVE, "sh", *given], timeout=SEND_TIMEOUT, source=source)
        if done.code == 0:
            return entry.size - offset
        if done.code != _DAMAGED:
            raise write_error(name, done)
    hint = "check the board's storage (dmesg) and memory; a worn SD card does this"
    raise HostError(f"{name} arrived twice with another sha256 than it was sent with", hint=hint)


def _offset(entry: FileEntry, parts: Mapping[str, int]) -> int:
    there = parts.get(entry.sha256, 0)
    return there if there < entry.size else 0


def _ask(transport: Transport, script: str, *given: str) -> str:
    done = transport.run(["sh", "-c", script, "sh", *given], timeout=HASH_TIMEOUT)
    if done.code:
        hint = "the board needs sh, find and sha256sum (coreutils or busybox)"
        raise HostError(f"the files on the board cannot be listed: {last_line(done.stderr)}", hint=hint)
    return done.stdout


def read_sums(text: str) -> dict[str, str]:
    """Names with their sha256, or SAME, of lines that say them; unsafe names are left out."""
    lines = [each.partition(" ") for each in text.splitlines()]
    told = {rest[1:].removeprefix("./"): first for first, _, rest in lines if len(first) == 64 or first == SAME}
    return {name: first for name, first in told.items() if not name_problem(name)}


def _listed(text: str) -> tuple[dict[str, str], dict[str, int]]:
    """Names with their sha256, and parts with their bytes; lines that are neither, or unsafe names, are left out."""
    parts: dict[str, int] = {}
    for line in text.splitlines():
        first, _, rest = line.partition(" ")
        size, _, path = rest.strip().partition(" ")
        if first == "part" and size.isdigit() and len(size) < 16:
            parts[path.rpartition("/")[2]] = int(size)
    return {name: digest for name, digest in read_sums(text).items() if digest != SAME}, parts
