"""What holds for the whole suite."""

from __future__ import annotations

from hypothesis import settings

# A deadline measures the machine, not the code: on a busy one it fails tests that are right.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
