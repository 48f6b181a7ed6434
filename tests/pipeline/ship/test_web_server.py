"""Serving a bundle for a browser: what is answered, with which headers, and what is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from edgeship import catalog
from edgeship.errors import ArtifactError
from edgeship.progress import Silent
from edgeship.ship.web_bundle import make_web_bundle
from edgeship.ship.web_server import web_app
from edgeship.ship.web_site import Site, read_site
from web_apps import write_app

Ask = Callable[..., httpx.Response]


def test_every_file_of_the_bundle_and_no_other(ask: Ask, site: Site) -> None:
    for name, entry in site.files.items():
        answer = ask("GET", f"/{name}")
        assert answer.status_code == 200, name
        if name != "site.json":
            assert answer.content == (site.path / name).read_bytes()
            assert answer.headers["etag"] == f'"{entry.sha256}"'
    assert ask("GET", "/").content == (site.path / "index.html").read_bytes()
    assert json.loads(ask("GET", "/site.json").content)["results"] == "results"
    for name in ("bundle.json", "model", "model/", "assets/", "engines", "nothing.js", "results", ".git/config"):
        answer = ask("GET", f"/{name}")
        assert answer.status_code == 404, name
        assert json.loads(answer.content)["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/../bundle.json",
        "/model/../bundle.json",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/model/%2e%2e/bundle.json",
        "//etc/passwd",
        "/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/model\\..\\bundle.json",
        "/index.html%00.js",
        "/INDEX.HTML",
    ],
)
def test_nothing_outside(ask: Ask, path: str) -> None:
    answer = ask("GET", httpx.URL("http://phone.test").copy_with(raw_path=path.encode()))
    assert answer.status_code == 404


def test_a_file_beside_those_named_is_not_served(artifact: Path, tmp_path: Path) -> None:
    phone, app = catalog.find_device("phone-web"), write_app(tmp_path / "app")
    made = make_web_bundle(artifact, phone, None, tmp_path / "out", app=app, kind=None, progress=Silent())
    (made.path / "key.pem").write_text("secret")
    served = web_app(read_site(made.path), lambda report: "")

    async def work() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://x") as client:
            return (await client.get("/key.pem")).status_code

    assert asyncio.run(work()) == 404


TYPES = {
    "index.html": "text/html; charset=utf-8",
    "sw.js": "text/javascript; charset=utf-8",
    "manifest.webmanifest": "application/manifest+json",
    "engines/onnx/ort.wasm": "application/wasm",
    "icon.svg": "image/svg+xml",
    "site.json": "application/json",
    "model/model.onnx": "application/octet-stream",
}


@pytest.mark.parametrize(("name", "wanted"), TYPES.items())
def test_types(ask: Ask, name: str, wanted: str) -> None:
    assert ask("GET", f"/{name}").headers["content-type"] == wanted


def test_headers_are_on_every_answer(ask: Ask) -> None:
    for method, path in (("GET", "/"), ("GET", "/nothing"), ("HEAD", "/sw.js"), ("POST", "/results"), ("PUT", "/")):
        headers = ask(method, path).headers
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert "http" not in policy
    assert ask("PUT", "/").status_code == 405


def test_without_isolation(site: Site) -> None:
    app = web_app(site, lambda report: "", isolated=False)

    async def work() -> httpx.Headers:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return (await client.get("/")).headers

    headers = asyncio.run(work())
    assert "cross-origin-embedder-policy" not in headers
    assert "content-security-policy" in headers


def test_ranges(ask: Ask, site: Site) -> None:
    raw = (site.path / "model/model.onnx").read_bytes()

    def part(header: str, **more: str) -> httpx.Response:
        return ask("GET", "/model/model.onnx", headers={"Range": header} | more)

    found = part("bytes=10-19")
    assert (found.status_code, found.content) == (206, raw[10:20])
    assert found.headers["content-range"] == f"bytes 10-19/{len(raw)}"
    assert part("bytes=-5").content == raw[-5:]
    assert part(f"bytes={len(raw) - 3}-").content == raw[-3:]
    assert part(f"bytes={len(raw)}-").status_code == 416
    etag = found.headers["etag"]
    assert part("bytes=0-3", **{"If-Range": etag}).status_code == 206
    assert part("bytes=0-3", **{"If-Range": '"other"'}).status_code == 200
    for wrong in ("bytes=5-2", "pages=1-2", "bytes=a-b", "bytes"):
        assert part(wrong).status_code in (200, 400, 416), wrong


def test_caching(ask: Ask) -> None:
    assert ask("GET", "/index.html").headers["cache-control"] == "no-cache"
    assert ask("GET", "/model/tokenizer.json").headers["cache-control"] == "no-store"
    kept = ask("GET", "/assets/app.js")
    assert "immutable" in kept.headers["cache-control"]
    again = ask("GET", "/assets/app.js", headers={"If-None-Match": f'"x", {kept.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert ask("HEAD", "/assets/app.js").content == b""


def test_a_file_that_was_changed_since(ask: Ask, site: Site) -> None:
    path = site.path / "icon.svg"
    raw = path.read_bytes()
    path.write_bytes(raw + b" ")
    try:
        assert ask("GET", "/icon.svg").status_code == 503
    finally:
        path.write_bytes(raw)


def damage_size(folder: Path) -> None:
    (folder / "model/tokenizer.json").write_text("{}")


def damage_missing(folder: Path) -> None:
    (folder / "sw.js").unlink()


def damage_link(folder: Path) -> None:
    (folder / "sw.js").unlink()
    (folder / "sw.js").symlink_to("/etc/hostname")


def damage_kind(folder: Path) -> None:
    (folder / "bundle.json").write_text('{"schema": 1}')


def damage_name(folder: Path) -> None:
    value = json.loads((folder / "bundle.json").read_text())
    value["files"]["../outside"] = {"size": 1, "sha256": "0" * 64}
    (folder / "bundle.json").write_text(json.dumps(value))


def damage_device(folder: Path) -> None:
    value = json.loads((folder / "bundle.json").read_text())
    value["device"]["ram_mb"] = "much"
    (folder / "bundle.json").write_text(json.dumps(value))


@pytest.mark.parametrize("damage", [damage_size, damage_missing, damage_link, damage_kind, damage_name, damage_device])
def test_a_bundle_that_is_not_whole(artifact: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    phone, app = catalog.find_device("phone-web"), write_app(tmp_path / "app")
    made = make_web_bundle(artifact, phone, None, tmp_path / "out", app=app, kind=None, progress=Silent())
    damage(made.path)
    with pytest.raises(ArtifactError) as caught:
        read_site(made.path)
    assert "make the bundle again" in caught.value.hint
