"""A stand-in for the Hugging Face and ModelScope hubs on localhost: one repository, both protocols, faults on demand.

Hugging Face: `/api/models/{repo}/revision/{rev}` and HEAD or GET `/{repo}/resolve/{rev}/{file}`, with the headers and
error codes that huggingface_hub reads (no Xet headers: files travel over plain HTTP). ModelScope:
`/api/v1/models/{repo}/repo/files` and `/api/v1/models/{repo}/repo`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Standin:
    """The repository served, the faults to show, and what was asked."""

    files: dict[str, bytes]
    repo: str = "owner/model"
    commit: str = COMMIT
    branches: tuple[str, ...] = ("main", "master")
    token: str | None = None  # asked for when set
    deny: int = 401  # status for a request without the token
    gated: bool = False
    cut: dict[str, list[int]] = field(default_factory=dict)  # file -> bytes sent by the first, second, ... answer
    short: set[str] = field(default_factory=set)  # files whose GET has one byte less than was announced
    altered: set[str] = field(default_factory=set)  # files whose GET has another content of the same size
    fail: dict[str, int] = field(default_factory=dict)  # file, or "list" -> HTTP status
    ignore_range: bool = False
    short_commit: bool = False  # ModelScope: name the commit by eight digits, as it often does
    listing: bytes | None = None  # ModelScope: the answer to a request for the list of files
    shift: int = 0  # answer a Range with a part that starts this many bytes later
    no_commit: bool = False  # ModelScope: do not name the commit at all
    redirect: str | None = None  # address of another server that has the files (a CDN)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def asked(self, method: str = "GET") -> Counter[str]:
        """How often each file was asked for by `method`."""
        names = (
            re.search(r"(?:FilePath=|resolve/[^/]+/)([^&]+)$", path) for m, path, _ in self.requests if m == method
        )
        return Counter(unquote(n[1]) for n in names if n)

    def ranges(self, file: str) -> list[str | None]:
        """The Range headers of the GETs of `file`."""
        return [h.get("range") for m, path, h in self.requests if m == "GET" and path.endswith(file)]


@contextmanager
def serve(standin: Standin) -> Iterator[Standin]:
    """Serve on a free port of localhost; `standin.url` is the address."""
    handler = type("Handler", (_Handler,), {"standin": standin})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    standin.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    standin: Standin
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        s = self.standin
        s.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
        if path.startswith("/cdn/"):
            self._file(path.removeprefix("/cdn/"), {})
        elif s.token and s.token not in (self.headers.get("Authorization", "") + self.headers.get("Cookie", "")):
            code = "GatedRepo" if s.gated else "RepoNotFound" if s.deny == 401 else ""
            self._answer(s.deny, b'{"error":"denied"}', {"X-Error-Code": code} if code else {})
        elif path.startswith("/api/v1/models/"):
            self._modelscope(path.removeprefix("/api/v1/models/"), query)
        elif path.startswith("/api/models/"):
            self._model_info(path.removeprefix("/api/models/"))
        else:
            self._resolve(path)

    # Hugging Face

    def _model_info(self, path: str) -> None:
        s = self.standin
        repo, _, revision = path.partition("/revision/")
        if not self._known(repo, revision) or self._failing("list"):
            return
        siblings = [
            {"rfilename": n, "size": len(b), "lfs": {"sha256": _sha256(b), "size": len(b), "pointerSize": 1}}
            if n.endswith(".safetensors")
            else {"rfilename": n, "size": len(b)}
            for n, b in s.files.items()
        ]
        info = {"id": s.repo, "modelId": s.repo, "sha": s.commit, "siblings": siblings, "tags": [], "private": False}
        self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        s = self.standin
        match = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        if match is None:
            self._answer(404, b"", {})
            return
        repo, revision, name = match.groups()
        if not self._known(repo, revision) or self._failing(name):
            return
        if name not in s.files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": s.commit})
            return
        self._file(name, {"X-Repo-Commit": s.commit, "ETag": f'"{_sha256(s.files[name])}"'})

    def _known(self, repo: str, revision: str) -> bool:
        s = self.standin
        if repo != s.repo:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (*s.branches, s.commit):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    # ModelScope

    def _modelscope(self, path: str, query: dict[str, str]) -> None:
        s = self.standin
        known = query.get("Revision") in (*s.branches, s.commit)
        if path not in (f"{s.repo}/repo", f"{s.repo}/repo/files"):
            self._answer(404, b'{"Code":10010205001,"Message":"not found","Success":false}', {})
        elif path.endswith("/files"):
            if not self._failing("list"):
                body = (
                    json.dumps(self._listing(known, query["Recursive"] == "True")).encode()
                    if s.listing is None
                    else s.listing
                )
                self._answer(200, body, {"Content-Type": "application/json"})
        elif not known or query["FilePath"] not in s.files:
            self._answer(404, b"{}", {})
        elif s.redirect:
            self._answer(302, b"", {"Location": f"{s.redirect}/cdn/{query['FilePath']}"})
        elif not self._failing(query["FilePath"]):
            self._file(query["FilePath"], {})

    def _listing(self, known: bool, recursive: bool) -> dict[str, Any]:
        s = self.standin
        listed = {n: b for n, b in s.files.items() if recursive or not re.fullmatch(r"[\w.-]+/[\w./-]+", n)}
        entry = {"Type": "blob", "Revision": "" if s.no_commit else s.commit, "IsLFS": False}
        files = [{**entry, "Name": n, "Path": n, "Size": len(b), "Sha256": _sha256(b)} for n, b in listed.items()]
        files.append({"Type": "tree", "Name": "figures", "Path": "figures", "Size": 0, "Revision": s.commit})
        latest = {"Id": "", "ShortId": s.commit[:8]} if s.short_commit else {"Id": s.commit, "ShortId": s.commit[:8]}
        latest = {} if s.no_commit else latest
        data = {"Files": files, "LatestCommitter": latest} if known else {"Files": None, "LatestCommitter": None}
        return {"Code": 200, "Data": data, "Message": "success", "Success": True}

    # Both

    def _failing(self, what: str) -> bool:
        status = self.standin.fail.get(what)
        if status is not None:
            self._answer(status, b"", {})
        return status is not None

    def _file(self, name: str, headers: Mapping[str, str]) -> None:
        s, body, start = self.standin, self.standin.files[name], 0
        if self.command == "GET" and name in s.short:
            body = body[:-1]
        if self.command == "GET" and name in s.altered:
            body = bytes([body[0] ^ 1]) + body[1:]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if asked and not s.ignore_range:
            start, total = int(asked[1]) + s.shift, len(body)
            if start >= total:
                self._answer(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            body = body[start:]
        cuts = s.cut.get(name, [])
        sent = cuts.pop(0) if self.command == "GET" and cuts else None
        self._answer(206 if "Content-Range" in headers else 200, body, headers, sent)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else body[:sent])
        if sent is not None:
            self.close_connection = True


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
