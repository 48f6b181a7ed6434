"""Serving a bundle for a browser: what is answered, what is not, and results that land among the reports."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acceptance_files import write_acceptance
from edgeship import catalog
from edgeship.cli import run
from edgeship.errors import ArtifactError, HostError, ResourceError, UsageError
from edgeship.progress import Silent
from edgeship.ship.report import Report, parse_report, read_reports
from edgeship.ship.validate import keep_report
from edgeship.ship.web_address import own_certificate, qr_code
from edgeship.ship.web_bundle import make_web_bundle
from edgeship.ship.web_results import MAX_RESULT, read_result
from edgeship.ship.web_server import Limit, web_app
from edgeship.ship.web_site import Site, read_site
from edgeship_runtime.bench import measure
from edgeship_runtime.verify import verify
from toy_artifact import write_toy
from web_apps import write_app

COMMAND = [sys.executable, "-c", "from edgeship.cli import main; main()"]
AGENT = "Mozilla/5.0 (Linux; Android 16) AppleWebKit/537.36 Chrome/156.0 Mobile"
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_acceptance(write_toy(tmp_path_factory.mktemp("artifacts") / "toy/onnx"))


@pytest.fixture(scope="module")
def folder(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    phone = catalog.find_device("phone-web")
    app = write_app(root / "app")
    return make_web_bundle(artifact, phone, None, root / "out", app=app, kind=None, progress=Silent()).path


@pytest.fixture
def site(folder: Path) -> Site:
    return read_site(folder)


@pytest.fixture
def ask(site: Site, tmp_path: Path) -> Ask:
    """Send requests, to one application."""

    def keep(report: Report) -> str:
        path = keep_report(report.host, report, tmp_path / "reports").path
        assert path is not None
        return path.name

    app = web_app(site, keep, certificate=b"---")

    def asked(method: str, url: str, **options: Any) -> httpx.Response:
        async def work() -> httpx.Response:
            transport = httpx.ASGITransport(app, client=("192.168.1.20", 5))
            async with httpx.AsyncClient(transport=transport, base_url="http://phone.test") as client:
                return await client.request(method, url, **options)

        return asyncio.run(work())

    return asked


@pytest.fixture(scope="module")
def told(artifact: Path, folder: Path) -> dict[str, Any]:
    """What a page sends: the verdict and measurement are those of the runtime, which has their form."""
    manifest = json.loads((artifact / "edgeship.json").read_bytes())
    return {
        "schema": 1,
        "device": "phone-web",
        "name": manifest["name"],
        "engine": "onnx",
        "digest": json.loads((folder / "site.json").read_bytes())["digest"],
        "browser": {
            "user_agent": AGENT,
            "platform": "Android",
            "cores": 8,
            "memory_gb": 8,
            "isolated": True,
            "backend": "wasm",
            "threads": 2,
            "adapter": None,
        },
        "verify": json.loads(json.dumps(verify(artifact).to_json())),
        "bench": measure(artifact, prompt_tokens=8, decode_tokens=4, repeats=1, threads=1).to_json(),
    }


# files


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


# results


def test_a_result_becomes_a_report(ask: Ask, site: Site, told: dict[str, Any], tmp_path: Path) -> None:
    answer = ask("POST", "/results", json=told)
    assert answer.status_code == 201, answer.text
    found, wrong = read_reports(tmp_path / "reports")
    assert not wrong
    [(path, report)] = found
    sealed = hashlib.sha256((site.path / "model/edgeship.json").read_bytes()).hexdigest()
    assert path.parts[-3:-1] == ("phone-web", sealed[:12])
    assert path.with_suffix(".html").is_file()
    assert answer.json() == {"report": path.name, "verdict": report.verdict}
    assert (report.device, report.engine, report.host) == ("phone-web", "ort", "192.168.1.20")
    assert report.verdict == "pass"
    assert {"hashes", "templates", "tokens", "fidelity", "verify", "kernels"} <= {c.name for c in report.checks}
    assert report.board.cpu == AGENT
    assert report.board.arch == "wasm32"
    assert report.samples[0].threads == 1
    assert report.notes == ("measured in a browser: wasm, 2 of 8 threads",)


def test_a_failed_verdict_is_kept_as_one(ask: Ask, told: dict[str, Any]) -> None:
    failed = told | {"verify": told["verify"] | {"verdict": "fail", "failures": ["tokens: one: the token ids differ"]}}
    assert ask("POST", "/results", json=failed).json()["verdict"] == "fail"


def test_a_software_adapter_is_not_judged_by_its_speed(ask: Ask, told: dict[str, Any], tmp_path: Path) -> None:
    slow = changed(changed(told, "bench.decode_tokens_per_s", 0.1), "browser.adapter", "google swiftshader")
    assert ask("POST", "/results", json=slow).json()["verdict"] == "fail"
    assert ask("POST", "/results", json=changed(slow, "browser.backend", "webgpu")).json()["verdict"] == "pass"
    emulated = {report.board.emulated for _, report in read_reports(tmp_path / "reports")[0]}
    assert emulated == {"", "WebGPU in software, google swiftshader"}


def changed(told: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(told))
    inner = made
    *front, last = path.split(".")
    for each in front:
        inner = inner[each]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("device", "raspberry-pi-5-8gb"),
        ("device", "../../etc"),
        ("name", "other"),
        ("engine", "gguf"),
        ("digest", "0" * 64),
        ("browser.user_agent", "a\x1b[31m"),
        ("browser.user_agent", "a" * 2000),
        ("browser.cores", 1.5),
        ("browser.cores", -1),
        ("browser.isolated", 1),
        ("browser.backend", "cuda"),
        ("browser.more", "x"),
        ("more", 1),
        ("browser", ...),
        ("verify", None),
        ("verify", []),
        ("verify.verdict", "perfect"),
        ("verify.agreement.wrong", -1),
        ("verify.agreement.kernels", 5),
        ("verify.failures", "none"),
        ("bench", []),
        ("bench.decode_tokens_per_s", -5),
        ("bench.decode_tokens_per_s", "fast"),
        ("bench.threads", True),
    ],
)
def test_a_result_with_one_thing_wrong(ask: Ask, told: dict[str, Any], path: str, value: Any, tmp_path: Path) -> None:
    answer = ask("POST", "/results", json=changed(told, path, value))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["message"].isprintable()
    assert error["hint"]
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"schema": 1, "schema": 1}', b"\xff", b'{"schema": NaN}', b"[" * 5000]
)
def test_what_is_no_json(ask: Ask, raw: bytes) -> None:
    answer = ask("POST", "/results", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_bounds_of_a_result(ask: Ask, told: dict[str, Any], tmp_path: Path) -> None:
    json_type = {"Content-Type": "application/json"}
    assert ask("POST", "/results", content=b" " * (MAX_RESULT + 1), headers=json_type).status_code == 413
    assert ask("POST", "/results", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    other = {"Origin": "https://evil.example"}
    assert ask("POST", "/results", json=told, headers=other).status_code == 403
    assert ask("POST", "/results", json=told, headers={"Origin": "null"}).status_code == 403
    assert not (tmp_path / "reports").exists()
    assert ask("POST", "/results", json=told, headers={"Origin": "http://phone.test"}).status_code == 201


def test_too_many_results(ask: Ask, told: dict[str, Any]) -> None:
    codes = [ask("POST", "/results", json=told | {"schema": 2}).status_code for _ in range(8)]
    assert codes == [422] * 6 + [429] * 2


def test_the_limit_passes() -> None:
    limit = Limit(each=2, total=3)
    assert [limit.wait("a", t) for t in (0.0, 1.0)] == [0.0, 0.0]
    assert limit.wait("a", 2.0) == 58.0
    assert limit.wait("b", 2.0) == 0.0
    assert limit.wait("c", 3.0) == 57.0
    assert limit.wait("a", 60.5) == 0.0


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    member=st.sampled_from(["schema", "browser", "verify", "bench", "digest", "verify.agreement", "verify.size"]),
)
def test_any_value_is_refused_in_words_or_read(told: dict[str, Any], site: Site, value: Any, member: str) -> None:
    raw = json.dumps(changed(told, member, value)).encode()
    with suppress(HostError):  # what pydantic itself would say is none
        report = read_result(raw, site, "phone")
        assert parse_report(report.to_json(), "here") == report


# certificate and QR code


def test_a_certificate_is_kept_and_private(tmp_path: Path) -> None:
    made = own_certificate("192.168.1.5", tmp_path)
    assert made.key.stat().st_mode & 0o77 == 0
    again = own_certificate("192.168.1.5", tmp_path)
    assert again == made
    assert own_certificate("192.168.1.6", tmp_path).fingerprint != made.fingerprint
    assert own_certificate("laptop.local", tmp_path).path.is_file()
    made.path.write_text("damaged")
    assert own_certificate("192.168.1.5", tmp_path).fingerprint != made.fingerprint


def test_a_certificate_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="the certificate cannot be written"):
        own_certificate("127.0.0.1", tmp_path / "file" / "x")


def test_a_qr_code() -> None:
    lines = qr_code("https://192.168.1.5:8443/").splitlines()
    assert len(lines) > 10
    assert len({len(line) for line in lines if line}) <= 2


# the command


@pytest.mark.parametrize("https", [False, True])
def test_the_command_serves_until_a_result(folder: Path, told: dict[str, Any], tmp_path: Path, https: bool) -> None:
    given = ["serve-web", str(folder), "--host", "127.0.0.1", "--port", "0", "--once", "--json"]
    given += ["--reports", str(tmp_path / "reports"), *(["--https"] if https else [])]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen([*COMMAND, *given], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        url = ready["url"]
        assert url.startswith("https://" if https else "http://")
        trusted: Any = True
        if https:
            trusted = ssl.create_default_context(cafile=str(tmp_path / "cache/edgeship/https/127.0.0.1.crt"))
            pem = httpx.get(f"{url}certificate.crt", verify=trusted).content
            assert pem == (tmp_path / "cache/edgeship/https/127.0.0.1.crt").read_bytes()
        assert httpx.get(url, verify=trusted).status_code == 200
        assert httpx.post(f"{url}results", json=told, verify=trusted).status_code == 201
        assert process.wait(30) == 0
        assert json.loads(process.stdout.readline())["report"]["verdict"] == "pass"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_failed_result_is_the_exit_code(folder: Path, told: dict[str, Any], tmp_path: Path) -> None:
    given = ["serve-web", str(folder), "--host", "127.0.0.1", "--port", "0", "--once", "--json"]
    given += ["--reports", str(tmp_path / "reports")]
    process = subprocess.Popen([*COMMAND, *given], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = json.loads(process.stdout.readline())["url"]
        failed = told | {"verify": told["verify"] | {"verdict": "fail"}}
        assert httpx.post(f"{url}results", json=failed).status_code == 201
        assert process.wait(30) == 14
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_an_interrupt_ends_it(folder: Path, tmp_path: Path) -> None:
    given = ["serve-web", str(folder), "--host", "127.0.0.1", "--port", "0", "--json"]
    process = subprocess.Popen([*COMMAND, *given], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_cannot_be_served(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve-web", str(tmp_path)]) == ArtifactError.exit_code
    assert run(["serve-web", str(folder), "--key", "x"]) == UsageError.exit_code
    assert "--key without --certificate" in capsys.readouterr().err
    assert run(["serve-web", str(folder), "--host", "203.0.113.9"]) == ResourceError.exit_code
    assert "cannot be listened at" in capsys.readouterr().err
    (tmp_path / "cert.pem").write_text("no certificate")
    both = ["--certificate", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "cert.pem")]
    assert run(["serve-web", str(folder), "--host", "127.0.0.1", "--port", "0", *both]) == UsageError.exit_code
