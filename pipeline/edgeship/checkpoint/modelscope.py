"""ModelScope, through its HTTP API: list the files of a revision, then download them with resume and hash check.

Endpoints and fields as in modelscope's own client (modelscope/hub/api.py `get_model_files`, hub/file_download.py
`get_file_download_url`, modelscope_hub/_legacy_api.py):

    GET /api/v1/models/{repo}/repo/files?Revision=R&Recursive=B    {"Data": {"Files": [...], "LatestCommitter": {...}}}
    GET /api/v1/models/{repo}/repo?Revision=R&FilePath=F    the file; Range is honoured; may redirect to a CDN

MODELSCOPE_ENDPOINT (or MODELSCOPE_DOMAIN), MODELSCOPE_API_TOKEN and MODELSCOPE_CACHE are honoured, and so is
HF_HUB_OFFLINE: one switch keeps edgeship off the network.
"""

from __future__ import annotations

import http.client
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from edgeship import __version__
from edgeship.checkpoint.files import (
    CONFIG,
    INDEX,
    JSON_LIMIT,
    MODULES,
    choose_weights,
    is_module_config,
    is_plain,
    module_configs,
    read_limited,
    require_tokenizer,
    side_files,
)
from edgeship.checkpoint.strict_json import parse_object
from edgeship.checkpoint.transfer import (
    ALTERED,
    ATTEMPTS,
    BLOCK,
    Progress,
    Want,
    not_cached,
    offline,
    pause,
    sha256_of,
    storage_error,
    unreachable,
    wrong_hash,
)
from edgeship.errors import CheckpointError, SourceError

ENDPOINT = "https://www.modelscope.cn"
TIMEOUT = 60  # seconds without a byte, as in modelscope's client
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Remote:
    """A file as the listing announces it."""

    size: int
    sha256: str  # empty where the hub gives none


class _Unreachable(Exception):  # noqa: N818  (a state, turned into a SourceError where nothing is cached)
    """The hub did not answer, or answered that it cannot at the moment."""


def fetch(repo: str, revision: str, want: Want, progress: Progress) -> tuple[Path, str]:
    """See `hub.fetch`; the directory lies in edgeship's own cache, the revision is a commit where the hub names it."""
    hub = _Hub(repo, revision)
    if offline():
        return _from_cache(hub, want, not_cached(hub.place))
    try:
        commit, files = hub.list_files()
    except _Unreachable as e:
        return _from_cache(hub, want, unreachable(hub.place, str(e)))
    snapshot = hub.cache / commit

    def download(name: str) -> Path:
        return hub.download(name, files[name], snapshot, progress)

    if CONFIG not in files:
        raise SourceError(
            f"{hub.place}: the repository has no {CONFIG}.",
            hint="name the original model: repositories of GGUF files, adapters or pickles cannot be exported",
        )
    try:
        download(CONFIG)
        if want == "all":
            require_tokenizer(files, hub.place)
            weights = choose_weights(files, hub.place, lambda: read_limited(download(INDEX)))
            for name in side_files(files):
                download(name)
            if MODULES in files:
                _, listed = hub.list_files(recursive=True)
                for name in module_configs(read_limited(snapshot / MODULES), listed):
                    hub.download(name, listed[name], snapshot, progress)
            for name in weights:
                download(name)
        hub.remember(commit)
    except _Unreachable as e:
        raise unreachable(hub.place, str(e)) from e
    except OSError as e:
        raise storage_error(e, hub.place, hub.cache) from e
    return snapshot, commit


def _from_cache(hub: _Hub, want: Want, otherwise: SourceError) -> tuple[Path, str]:
    """What an earlier run brought for this revision, if it is whole; raises `otherwise` if not."""
    commit = hub.remembered()
    snapshot = hub.cache / (commit or "-")
    try:
        names = {p.name for p in snapshot.iterdir() if not p.name.startswith(".")}
        if want == "all":
            require_tokenizer(names, hub.place)
            choose_weights(names, hub.place, lambda: read_limited(snapshot / INDEX))
    except (CheckpointError, OSError) as e:
        raise otherwise from e
    if commit is None or CONFIG not in names:
        raise otherwise
    return snapshot, commit


def cache_directory() -> Path:
    """Where ModelScope downloads are kept."""
    chosen = os.environ.get("MODELSCOPE_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "edgeship"  # apart from the files of modelscope's own client
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgeship" / "modelscope"


def _endpoint() -> str:
    url = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or ENDPOINT
    url = url if "://" in url else f"https://{url}"
    if urlsplit(url).scheme not in ("http", "https"):
        raise SourceError(
            f"MODELSCOPE_ENDPOINT: expected an http(s) address, found {url!r}.", hint=f"for instance {ENDPOINT}"
        )
    return url.rstrip("/")


class _Hub:
    """One repository at one revision."""

    def __init__(self, repo: str, revision: str) -> None:
        self.place = f"modelscope: {repo} ({revision})"
        self.cache = cache_directory() / repo.replace("/", "--")
        self._revision = revision
        self._at = revision  # what files are asked for by: the commit, once it is known
        self._pinned = True  # whether the directory of the snapshot is named after a commit
        self._url = f"{_endpoint()}/api/v1/models/{quote(repo)}/repo"

    def remember(self, commit: str) -> None:
        """Note which commit the revision stood for, for later runs without the network."""
        ref = self._ref()
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)

    def remembered(self) -> str | None:
        """The commit that the revision stood for when it was last fetched."""
        try:
            commit = self._ref().read_text()
        except OSError:
            return None
        return commit if is_plain(commit) else None

    def _ref(self) -> Path:
        return self.cache / "refs" / _file_name(self._revision)

    def list_files(self, *, recursive: bool = False) -> tuple[str, dict[str, _Remote]]:
        """The commit and its top-level files; of those below, with `recursive`, what may be wanted."""
        try:
            blob = self._listing(recursive)
        except _Unreachable:
            pause(1)
            blob = self._listing(recursive)
        try:
            reply = parse_object(blob, self.place, "the list of files")
            data = reply.get("Data")
            if not isinstance(data, dict):
                raise CheckpointError(f"{self.place}: the hub lists no files: {_printable(reply.get('Message'))}.")
            blobs = [f for f in data.get("Files") or [] if f["Type"] == "blob"]
            files = {f["Path"]: _Remote(int(f["Size"]), str(f.get("Sha256") or "").lower()) for f in blobs}
            commit = self._commit(data.get("LatestCommitter") or {}, blobs)
        except CheckpointError as e:
            raise SourceError(e.message, hint="check MODELSCOPE_ENDPOINT and any proxy on the way") from e
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise SourceError(
                f"{self.place}: the hub's list of files has an unknown form ({type(e).__name__}: {e}).",
                hint="check MODELSCOPE_ENDPOINT; if it is right, ModelScope has changed and edgeship must follow",
            ) from e
        if not files:  # how the hub answers to a revision it does not know
            raise SourceError(
                f"{self.place}: the repository has no revision {self._revision!r}, or no files in it.",
                hint="name a branch, tag or full commit; ModelScope's default branch is called master",
            )
        wanted = (is_plain, is_module_config)[: 1 + recursive]
        return commit, {name: remote for name, remote in files.items() if any(fits(name) for fits in wanted)}

    def _listing(self, recursive: bool) -> bytes:
        query = urlencode({"Revision": self._at, "Recursive": str(recursive)})
        with self._open(f"{self._url}/files?{query}") as answer:
            try:
                return answer.read(JSON_LIMIT)
            except (OSError, http.client.HTTPException) as e:
                raise _Unreachable(_reason(e)) from e

    def _commit(self, latest: dict[str, Any], blobs: list[dict[str, Any]]) -> str:
        """The full commit: the hub often gives eight digits of it, and the files it touched carry the rest."""
        if COMMIT.fullmatch(self._revision):
            return self._revision
        short = str(latest.get("Id") or latest.get("ShortId") or "")
        known = {short, *(str(f.get("Revision") or "") for f in blobs)}
        full = sorted(c for c in known if short and c.startswith(short) and COMMIT.fullmatch(c))
        if full:
            self._at = full[0]
            return full[0]
        self._pinned = bool(short) and is_plain(short)
        return short if self._pinned else _file_name(self._revision)

    def download(self, name: str, remote: _Remote, snapshot: Path, progress: Progress) -> Path:
        """The path of a file in `snapshot`, downloaded when it is not there; resumes what an earlier run left."""
        target = snapshot / name
        if self._is_kept(target, remote):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with FileLock(target.with_name(f".{target.name}.lock")):
            if self._is_kept(target, remote):
                return target  # another process brought it meanwhile
            attempt = 1
            while (before := self._size(part, remote)) < remote.size or not part.exists():
                try:
                    self._receive(name, remote, part, before, progress)
                except _Unreachable:
                    attempt = 1 if self._size(part, remote) > before else attempt + 1
                    if attempt > ATTEMPTS:
                        raise
                    pause(attempt)
            self._keep(name, remote, part, target)
        return target

    def _is_kept(self, target: Path, remote: _Remote) -> bool:
        """Whether an earlier run brought the file; it was compared with its hash when it got its name."""
        if not target.is_file() or target.stat().st_size != remote.size:
            return False
        return self._pinned or not remote.sha256 or sha256_of(target) == remote.sha256

    @staticmethod
    def _size(part: Path, remote: _Remote) -> int:
        """Bytes that can be resumed from: none of a part that is longer than the file."""
        size = part.stat().st_size if part.exists() else 0
        if size <= remote.size:
            return size
        part.unlink()
        return 0

    def _receive(self, name: str, remote: _Remote, part: Path, done: int, progress: Progress) -> None:
        """Append to `part` from byte `done` on; raises _Unreachable when the connection ends early."""
        url = f"{self._url}?" + urlencode({"Revision": self._at, "FilePath": name})
        with self._open(url, done) as answer:
            if answer.status != 206:
                done = 0  # the whole file comes, Range or not
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise _Unreachable("the hub sent another part than was asked for")
            announced = answer.headers.get("Content-Length", "")
            if announced.isdecimal() and int(announced) != remote.size - done:
                part.unlink(missing_ok=True)
                raise SourceError(
                    f"{self.place}: {name}: expected {remote.size} bytes, the hub sends {int(announced) + done}. "
                    "Nothing of it was kept.",
                    hint=ALTERED,
                )
            with part.open("r+b" if part.exists() else "wb") as out:
                out.truncate(done)
                out.seek(done)
                while done < remote.size:
                    block = _read(answer, min(BLOCK, remote.size - done))
                    out.write(block)
                    done += len(block)
                    progress(name, done, remote.size)

    def _keep(self, name: str, remote: _Remote, part: Path, target: Path) -> None:
        found = sha256_of(part) if remote.sha256 else ""
        if found != remote.sha256:
            part.unlink()
            raise wrong_hash(self.place, name, remote.sha256, found)
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.replace(target)

    def _open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        request = Request(url, headers={"User-Agent": f"edgeship/{__version__}"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        if token:  # older endpoints read the cookie, newer ones the header; a redirect to a CDN must get neither
            request.add_unredirected_header("Authorization", f"Bearer {token}")
            request.add_unredirected_header("Cookie", f"m_session_id={token}")
        try:
            answer: http.client.HTTPResponse = urlopen(request, timeout=TIMEOUT)
        except HTTPError as e:
            raise self._refused(e.code) from e
        except (URLError, OSError, http.client.HTTPException) as e:
            raise _Unreachable(_reason(e)) from e
        return answer

    def _refused(self, status: int) -> Exception:
        if status >= 500 or status in (408, 429):
            return _Unreachable(f"HTTP {status}")
        if status in (401, 403):
            return SourceError(
                f"{self.place}: access denied (HTTP {status}): it is private or gated, or the token is wrong.",
                hint="set MODELSCOPE_API_TOKEN to a token that may read it (modelscope.cn, My access token)",
            )
        if status == 404:
            return SourceError(
                f"{self.place}: no such repository, revision or file (HTTP 404).",
                hint="check owner/name on modelscope.cn; the default branch there is called master",
            )
        return SourceError(f"{self.place}: the hub answered HTTP {status}.", hint="try again later")


def _read(answer: http.client.HTTPResponse, size: int) -> bytes:
    try:
        block = answer.read(size)
    except http.client.IncompleteRead as e:  # newer Pythons; older ones return what there is
        block = e.partial
    except (OSError, http.client.HTTPException) as e:
        raise _Unreachable(_reason(e)) from e
    if not block:
        raise _Unreachable("the connection was cut")
    return block


def _file_name(revision: str) -> str:
    return quote(revision, safe="").replace(".", "%2E")  # a branch may hold slashes, and no name may be ".."


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return _printable(f"{type(inner).__name__}: {inner}")


def _printable(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]
