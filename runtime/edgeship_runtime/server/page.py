"""The web page at `/`: three files of this package, which load nothing from anywhere else."""

from __future__ import annotations

from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Asked for again each time: a newer server must not be driven by an older page.
    "Cache-Control": "no-cache",
}


def routes() -> list[BaseRoute]:
    """GET / and what the page is made of; no key is asked for, since none of it is anyone's data."""
    return [Route(path, _serve, methods=["GET"]) for path in _FILES]


def _serve(request: Request) -> Response:
    path = request.scope["edgeship.route"] = request.url.path
    name, media_type = _FILES[path]
    return Response(_read(name), media_type=media_type, headers=_HEADERS)


@cache
def _read(name: str) -> bytes:
    return (resources.files(__package__) / "page_files" / name).read_bytes()
