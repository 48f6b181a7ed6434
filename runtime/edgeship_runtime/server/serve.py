"""The command `serve`: reads its options, listens, and ends cleanly on SIGTERM and Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from edgeship_runtime.commands import engine_options
from edgeship_runtime.console import print_json, safe
from edgeship_runtime.errors import ResourceError, UsageError, missing_package
from edgeship_runtime.server.keys import new_key, read_keys
from edgeship_runtime.server.options import LIMITS, dest
from edgeship_runtime.server.ready import check_ready
from edgeship_runtime.server.settings import Settings, name_artifacts

if TYPE_CHECKING:
    import uvicorn

    from edgeship_runtime.server.app import Server


def serve(args: argparse.Namespace) -> int:
    """Serve artifacts until told to end; raises UsageError, ArtifactError, DependencyError, ResourceError."""
    if args.new_key is not None:
        if args.api_key_file is None:
            raise UsageError("--new-key: there is no file to keep it in", hint="give --api-key-file FILE")
        key = new_key(Path(args.api_key_file), args.new_key)
        if args.json:
            print_json({"name": args.new_key, "key": key}, indent=None)
        else:
            print(key)
        return 0
    settings = read_settings(args)
    check_ready(settings)
    server = build(settings)
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    names = safe(", ".join(settings.artifacts))
    address = f"http://{shown}:{port}"
    if args.json:
        print_json({"artifacts": list(settings.artifacts), "url": address}, indent=None)
        sys.stdout.flush()
    print(f"serving {names} at {address}", file=sys.stderr, flush=True)
    uvicorn_server(server).run([listener])
    return 0


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings that a command line asks for; raises UsageError."""
    if not args.artifact:
        raise UsageError("no artifact to serve", hint="give one or more: edgeship-runtime serve artifacts/NAME")
    asked = {name: getattr(args, dest(name)) for name in LIMITS}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return Settings(
        artifacts=name_artifacts(args.artifact),
        host=args.host,
        port=args.port,
        keys={} if args.api_key_file is None else read_keys(Path(args.api_key_file)),
        context=args.context,
        threads=args.threads,
        engine_options=engine_options(args),
        prefix_dir=None if args.prefix_dir is None else Path(args.prefix_dir),
        **given,
    )


def build(settings: Settings, **parts: Any) -> Server:
    """The application; raises DependencyError without the packages of the extra `server`."""
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise missing_package("starlette", "server", "serving") from None
    del starlette, uvicorn
    from edgeship_runtime.server.app import Server

    return Server(settings, **parts)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ResourceError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) only on sockets that name their protocol; without that a client
    # waits 40 ms for the end of an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        hint = "another --port, or end what listens there" if taken else "--host takes an address of this machine"
        if error.errno == errno.EACCES:
            hint = "ports below 1024 are for privileged programs: take another --port"
        raise ResourceError(f"{host} port {port}: cannot listen there ({error})", hint=hint) from None
    return listener


def uvicorn_server(server: Server) -> uvicorn.Server:
    """A uvicorn server whose end begins with the queue's: waiting requests are refused, running ones get their time."""
    import uvicorn

    from edgeship_runtime.server.connection import Connection

    settings = server.settings

    class Draining(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # uvicorn's own would raise the signal again at the end; an end that was asked for is no failure.
            server.service.scheduler.drain(settings.grace_s)
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    config = uvicorn.Config(
        server.app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.grace_s) + 2,
        http=Connection,
        h11_max_incomplete_event_size=64 << 10,
        lifespan="on",
        ws="none",
    )
    return Draining(config)
