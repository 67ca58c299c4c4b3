"""How fast a machine is there: the figure that "restore a fresh machine for each use" stands on."""

from __future__ import annotations

import statistics

import pytest

from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from schedagent.setup import doctor

pytestmark = [pytest.mark.bench, pytest.mark.vm]


def test_a_sealed_machine_answers_within_half_a_second():
    """Median of 20 restores, on a quiet machine."""
    lab = open_lab(load_settings())
    lab.open(hostfs=False).close()
    with lab.measuring():
        seconds = [doctor._restore_s(lab, hostfs=False) for _ in range(20)]
    print(f"\nmedian {statistics.median(seconds):.3f} s of", *(f"{second:.3f}" for second in sorted(seconds)))
    assert statistics.median(seconds) < 0.5
