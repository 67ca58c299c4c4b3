"""What the tests of both netlink readers share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def on_one_cpu():
    """Children inherit it: events are numbered per CPU, and a gap shows only on a CPU that sends another one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)
