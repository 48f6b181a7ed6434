"""Signs of life for the service manager that started this process, where there is one (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> bool:
    """Send a state such as "READY=1" to the socket that NOTIFY_SOCKET names; False when there is none to hear it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        sender.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        sender.sendall(state.encode())
        return True
    return False
