"""The command that serves a bundle for a browser."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeship.errors import UsageError, VerdictError

if TYPE_CHECKING:
    from edgeship.ship.validate import Outcome
    from edgeship.ship.web_address import Certificate


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("serve-web", epilog="Example: edgeship serve-web dist/bundles/tiny-int4-phone-web-ort --https")(
        serve_web
    )


def serve_web(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder of `bundle --device phone-web`.")],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 127.0.0.1: this machine only.")] = (
        "0.0.0.0"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8443,
    https: Annotated[
        bool, typer.Option("--https", help="With a certificate of its own, which the phone has to be told to trust.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In PEM, in place of one of its own; with --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key in PEM.")] = None,
    reports: Annotated[Path, typer.Option(metavar="DIR", help="Where results go.")] = Path("reports"),
    no_isolation: Annotated[
        bool,
        typer.Option("--no-isolation", help="As a host without COOP and COEP headers: the model gets one thread."),
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="End with the first result; exits with 14 where its verdict is fail.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line: the address, then results.")] = False,
) -> None:
    """Serve a bundle to phones in the local network; what they send back lands among the reports.

    Browsers install pages, keep files and use WebGPU over https only, or from localhost: an Android phone on a cable
    sees this machine's port as its own after `adb reverse tcp:8443 tcp:8443`. Only files that the bundle names are
    served, and everybody in the network may read them and send results.
    """
    from edgeship.ship.web_address import own_address
    from edgeship.ship.web_serve import Options, serve
    from edgeship.ship.web_site import read_site

    if (certificate is None) != (key is None):
        given, missing = ("--certificate", "--key") if key is None else ("--key", "--certificate")
        raise UsageError(f"{given} without {missing}", hint="give both in PEM, or --https alone")
    site = read_site(bundle)
    address = own_address() if host in ("0.0.0.0", "::") else host
    used = _certificate(certificate, key, address) if https or certificate else None
    scheme = "https" if used else "http"

    def ready(found: int) -> None:
        shown = f"[{address}]" if ":" in address else address
        _tell_address(f"{scheme}://{shown}:{found}/", used, own=certificate is None, as_json=as_json)

    def told(outcome: Outcome) -> None:
        if as_json:
            print(json.dumps(outcome.to_json()), flush=True)
        elif outcome.report:
            r = outcome.report
            print(f"{r.time} {outcome.host}: {r.verdict}, {r.board.cpu[:60]}: {outcome.path}", flush=True)

    options = Options(host, port, reports, used, once, not no_isolation)
    report = serve(site, options, ready, told)
    if report and report.verdict == "fail":
        raise typer.Exit(VerdictError.exit_code)


def _certificate(path: Path | None, key: Path | None, address: str) -> Certificate:
    from edgeship.ship.web_address import Certificate, own_certificate

    return Certificate(path, key, "") if path and key else own_certificate(address)


def _tell_address(url: str, used: Certificate | None, *, own: bool, as_json: bool) -> None:
    from edgeship.ship.web_address import qr_code

    if as_json:
        body: dict[str, Any] = {"url": url} | ({"fingerprint": used.fingerprint} if used and own else {})
        print(json.dumps(body), flush=True)
        return
    print(qr_code(url) if sys.stdout.isatty() else "", end="")
    print(f"serving at {url}")
    if used and own:
        print(f"certificate: sha256 {used.fingerprint}")
        print(f"the phone trusts it once it is installed there, as a certificate authority: {url}certificate.crt")
    elif used is None:
        print("without https a phone's browser installs nothing and has no WebGPU: --https, or adb reverse")
    sys.stdout.flush()
