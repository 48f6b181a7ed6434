"""Where a page is served: a certificate of its own, and the address as a QR code."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship.errors import ResourceError
from edgeship.ship.web_address import own_certificate, qr_code


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
