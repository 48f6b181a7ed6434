"""Serving a bundle for a browser to the local network, until told to end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeship.errors import DependencyError, ResourceError, UsageError
from edgeship.ship.report import Report
from edgeship.ship.validate import Outcome, keep_report
from edgeship.ship.web_address import Certificate
from edgeship.ship.web_site import Site

_CONNECTIONS = 64
_GRACE_S = 3


@dataclass(frozen=True)
class Options:
    """What the user chose; `isolated` False: without the headers that give the page threads."""

    host: str
    port: int
    reports: Path
    certificate: Certificate | None = None
    once: bool = False
    isolated: bool = True


def serve(site: Site, options: Options, ready: Callable[[int], None], told: Callable[[Outcome], None]) -> Report | None:
    """Serve until interrupted, with `once` until a result is kept, which is returned.

    `ready` gets the port once it listens, `told` every result. Raises DependencyError without starlette and uvicorn,
    ResourceError where the address cannot be listened at, UsageError for a certificate that is none.
    """
    try:
        uvicorn: Any = import_module("uvicorn")
        from edgeship.ship.web_server import web_app
    except ImportError as error:
        text = f"serve-web needs the package {error.name}."
        raise DependencyError(text, hint="pip install 'edgeship[web]'") from None
    kept: list[Report] = []

    def keep(report: Report) -> str:
        outcome = keep_report(report.host, report, options.reports)
        told(outcome)
        kept.append(report)
        server.should_exit = server.should_exit or options.once
        return outcome.path.name if outcome.path else ""

    own = options.certificate
    app = web_app(site, keep, isolated=options.isolated, certificate=own.path.read_bytes() if own else None)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_S,
        **({"ssl_certfile": str(own.path), "ssl_keyfile": str(own.key)} if own else {}),
    )
    _load(config, own)
    server: Any = uvicorn.Server(config)
    listener = listen(options)
    ready(listener.getsockname()[1])
    try:
        server.run([listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
    return kept[0] if kept and options.once else None


def _load(config: Any, own: Certificate | None) -> None:
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        named = f"{own.path} and {own.key}: " if own else ""
        raise UsageError(
            f"{named}no certificate with its key: {error}", hint="give both in PEM, or --https alone"
        ) from None


def listen(options: Options) -> socket.socket:
    """A socket that listens; raises ResourceError."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(_CONNECTIONS)
    except (OSError, OverflowError) as error:
        listener.close()
        text = f"{options.host}:{options.port}: cannot be listened at: {getattr(error, 'strerror', None) or error}"
        raise ResourceError(text, hint="give another --port (0: any free one), or --host") from None
    return listener
