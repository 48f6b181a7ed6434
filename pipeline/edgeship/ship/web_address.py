"""Where a phone finds this machine: its address, a QR code of it, and a certificate for https."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from edgeship.errors import DependencyError, ResourceError

DAYS = 90
_RENEW_DAYS = 14
_HINT = "pip install 'edgeship[web]'"


@dataclass(frozen=True)
class Certificate:
    """Paths of a certificate and its key in PEM, and the certificate's sha256 as browsers show it."""

    path: Path
    key: Path
    fingerprint: str


def own_address() -> str:
    """This machine's address in the local network; the loopback address where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # asks the routing table; a datagram socket sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def qr_code(text: str) -> str:
    """A QR code for a terminal; raises DependencyError without segno."""
    try:
        segno = import_module("segno")
    except ImportError:
        raise DependencyError("the QR code needs the package segno.", hint=_HINT) from None
    out = StringIO()
    segno.make(text, micro=False).terminal(out, compact=True)
    return out.getvalue()


def own_certificate(address: str, folder: Path | None = None) -> Certificate:
    """A self-signed certificate for `address` and localhost, kept in the user's cache until it is about to end.

    A phone that trusts it goes on trusting it: it is made anew only for another address. Raises DependencyError
    without the package cryptography, ResourceError where it cannot be written.
    """
    try:
        x509 = import_module("cryptography.x509")
    except ImportError:
        raise DependencyError("a certificate needs the package cryptography.", hint=_HINT) from None
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeship" / "https"
    path, key = folder / f"{address.replace(':', '-')}.crt", folder / f"{address.replace(':', '-')}.key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = _found(x509, path, key)
        if found is None:
            _write(path, key, *_make(x509, address))
            found = _found(x509, path, key)
    except OSError as error:
        text = f"{error.filename or folder}: the certificate cannot be written: {error.strerror or error}."
        raise ResourceError(text, hint="set XDG_CACHE_HOME to a folder that you may write to") from error
    assert found is not None
    hashes = import_module("cryptography.hazmat.primitives.hashes")
    digest = found.fingerprint(hashes.SHA256()).hex(":").upper()
    return Certificate(path, key, digest)


def _found(x509: Any, path: Path, key: Path) -> Any | None:
    if not path.is_file() or not key.is_file():
        return None
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        return None
    return found if found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=_RENEW_DAYS) else None


def _make(x509: Any, address: str) -> tuple[bytes, bytes]:
    ec = import_module("cryptography.hazmat.primitives.asymmetric.ec")
    hashes = import_module("cryptography.hazmat.primitives.hashes")
    forms = import_module("cryptography.hazmat.primitives.serialization")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"edgeship serve-web {address}")])
    now = datetime.now(UTC)
    hosts = sorted({address, "127.0.0.1", "localhost"})
    names = [_name(x509, each, ipaddress.ip_address) for each in hosts]
    permitted = [_name(x509, each, ipaddress.ip_network) for each in hosts]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a phone's clock may be behind
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # Android takes only authorities into its store; this one may sign for nobody but itself.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    return made.public_bytes(forms.Encoding.PEM), private


def _name(x509: Any, host: str, kind: Callable[[str], Any]) -> Any:
    try:
        return x509.IPAddress(kind(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, key: Path, certificate: bytes, private: bytes) -> None:
    handle = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(private)
    path.write_bytes(certificate)
