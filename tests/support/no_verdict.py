"""What a VM test makes of a proof that came to no verdict."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

BUSY = 1.5
"""Load by CPUs from which on the host has other work besides the lab's machine, which takes them all."""


def no_verdict(why: str) -> NoReturn:
    """No verdict is neither a pass nor a failure on a host that has more to do than it has CPUs; else it is a fault."""
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cpus:
        pytest.skip(f"this host was too busy (load {load:.1f} on {cpus} CPUs): {why}")
    pytest.fail(f"no verdict on a quiet host: {why}")
