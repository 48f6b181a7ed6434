"""What holds for the whole suite."""

from __future__ import annotations

import signal

from hypothesis import settings

# A deadline measures the machine, not the code: on a busy one it fails tests that are right.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# A shell has what it starts in the background ignore Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
