"""A phone for tests: headless Chromium with a phone's viewport, touch and a slow processor, and a host that serves."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from edgeship.ship.report import Report
from edgeship.ship.validate import keep_report
from edgeship.ship.web_serve import Options, listen
from edgeship.ship.web_server import web_app
from edgeship.ship.web_site import Site, read_site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
"""WebGPU in software; SwiftShader's shaders have no 16-bit floats."""
NO_HALF = "the shaders of this browser's adapter have no 16-bit floats (shader-f16)"
SLOWER = 2
"""The processor of the page, by as much; workers, which compute, are as fast as this machine."""
MINUTES = 60_000.0

_WATCH = "addEventListener('securitypolicyviolation', e => console.error('POLICY', e.violatedDirective, e.blockedURI))"


@dataclass
class Host:
    """A running server of a bundle; `stop` it, and the phone is alone."""

    site: Site
    url: str
    reports: Path
    stop: Callable[[], None]
    cut: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """By file name what happens to the bytes that are sent; an exception cuts the connection."""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(folder: Path, reports: Path, *, isolated: bool = True, port: int = 0) -> Iterator[Host]:
    """Serve a bundle at this machine's own address, which browsers take for secure."""
    site = read_site(folder)

    def keep(report: Report) -> str:
        path = keep_report(report.host, report, reports).path
        return path.name if path else ""

    host = Host(site, "", reports, lambda: None)
    app = _Spoiling(web_app(site, keep, isolated=isolated), host)
    listener = listen(Options("127.0.0.1", port, reports))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        listener.close()

    host.url, host.stop = f"http://localhost:{listener.getsockname()[1]}/", stop
    try:
        yield host
    finally:
        stop()


class _Spoiling:
    """Does to the bytes of some files what a bad network or a damaged host does."""

    def __init__(self, app: Any, host: Host) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = scope["path"][1:]
        self._host.asked.append(name)
        spoil = self._host.cut.get(name)

        async def spoilt(message: Any) -> None:
            if spoil and message["type"] == "http.response.body" and message.get("body"):
                message = message | {"body": spoil(message["body"])}
            await send(message)

        await self._app(scope, receive, spoilt)


def cut_after(count: int) -> Callable[[bytes], bytes]:
    """The connection breaks once `count` bytes have gone out, and again whenever it is tried."""
    left = [count]

    def work(body: bytes) -> bytes:
        left[0] -= len(body)
        if left[0] < 0:
            raise ConnectionResetError("cut")
        return body

    return work


def flipped(body: bytes) -> bytes:
    """One bit is wrong."""
    return bytes([body[0] ^ 1]) + body[1:]


@dataclass
class Phone:
    """A browser with a profile of its own, and a page in it; `complaints` are errors and what left the origin."""

    context: Any
    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    def open(self, query: str = "") -> None:
        """Go to the site and wait for the page to be there."""
        self.page.goto(f"{self.url}{query}")
        self.until("window.edgeship !== undefined")

    def until(self, script: str, timeout: float = MINUTES) -> None:
        """Wait for a script to be true; Playwright's own way needs `eval`, which the page's policy forbids."""
        end = time.monotonic() + timeout / 1000
        while not self.page.evaluate(script):
            assert time.monotonic() < end, f"never came true: {script}"
            time.sleep(0.05)

    def ask(self, call: str, *arguments: Any) -> Any:
        """What a function of `window.edgeship` gives; `call` is its name."""
        return self.page.evaluate("([name, given]) => window.edgeship[name](...given)", [call, list(arguments)])

    def install(self, minutes: float = 3) -> None:
        """Press Install, and wait for the chat."""
        self.page.tap("#install-button")
        self.page.wait_for_selector("#chat:not([hidden])", timeout=minutes * MINUTES)

    def message(self) -> str:
        """What the page says went wrong, once it says it."""
        self.page.wait_for_selector("#message:not([hidden])", timeout=MINUTES)
        return re.sub(r"\s+", " ", str(self.page.inner_text("#message")))


@contextmanager
def phone(
    playwright: Any, url: str, profile: Path, *, gpu: bool = False, slower: int = SLOWER, offline: bool = True
) -> Iterator[Phone]:
    """A phone with the profile folder `profile`, which outlives it; its page is `slower` by as much.

    `offline` False: no service worker, so that every file comes from the network.
    """
    context = playwright.chromium.launch_persistent_context(
        str(profile),
        executable_path=CHROMIUM,
        headless=True,
        service_workers="allow" if offline else "block",
        viewport={"width": 390, "height": 844},
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
        args=["--no-sandbox", *(GPU if gpu else [])],
    )
    try:
        page = context.pages[0] if context.pages else context.new_page()
        found = Phone(context, page, url)
        context.add_init_script(_WATCH)
        watch(found)
        slow = context.new_cdp_session(page)
        slow.send("Emulation.setCPUThrottlingRate", {"rate": slower})
        yield found
    finally:
        with suppress(Exception):  # a test has ended the browser
            context.close()


def watch(found: Phone) -> None:
    """Note all that the page asks for, and every breach of its policy."""
    origin = found.url.rstrip("/")

    def request(request: Any) -> None:
        found.urls.append(request.url)
        if not request.url.startswith((f"{origin}/", f"blob:{origin}/", "data:")):
            found.complaints.append(f"left the origin: {request.url}")

    def console(message: Any) -> None:
        if "POLICY" in message.text or "Content Security Policy" in message.text:
            found.complaints.append(message.text)

    found.context.on("request", request)
    found.context.on("console", console)
    found.context.on("weberror", lambda error: found.complaints.append(f"error: {error.error}"))
