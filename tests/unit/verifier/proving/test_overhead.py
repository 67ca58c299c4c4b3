"""How overhead is judged: what is evidence for a pass, what for a failure, and what for neither."""

import os
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.proving import overhead
from verifier.proving.crew import Crew
from verifier.proving.oracle import Undecided
from verifier.proving.overhead import (
    FEWEST_GOOD,
    FEWEST_PAIRS,
    IDLE_MACHINE,
    LOSS_BOUND,
    MOST_PAIRS,
    QUIET_SHARE,
    SATURATED_MACHINE,
    Probe,
)


def probe(*found: float, disturbed: int = 0) -> Probe:
    """A probe that has measured these ratios."""
    measured = Probe(IDLE_MACHINE, Crew(), 1, disturbed=disturbed)
    for ratio in found:
        measured.add(1000.0, 1000.0 * ratio)
    return measured


def no_verdict(measured: Probe) -> str:
    """Why a probe has no verdict; empty if it has one."""
    result = measured.judge()
    return result.reason if isinstance(result, Undecided) else ""


def test_only_a_certain_loss_counts():
    assert no_verdict(probe(0.5, 0.6, 0.7, 0.8, 0.95))
    result = probe(0.8, 0.8, 0.8, 0.82, 0.85).judge()
    assert (result.ok, result.measured) == (False, 0.15)
    assert "0.80 of the default scheduler's throughput (0.80 to 0.85 in 5 pairs" in result.detail
    assert probe(1.3, 1.2, 1.1, 1.1, 1.1).judge().measured == 0


def test_one_odd_pair_of_many_neither_condemns_nor_pardons():
    slow = probe(*[0.7] * (MOST_PAIRS - 1))
    slow.add(500.0, 650.0)
    assert not slow.judge().ok
    assert probe(*[0.97] * (MOST_PAIRS - 1), 0.1).judge().ok


def test_the_best_windows_may_pardon():
    assert not probe(*[0.8] * 5).judge().ok
    lucky = probe(*[0.8] * 5)
    lucky.add(1100.0, 1000.0)
    lucky.add(1110.0, 1000.0)
    assert lucky.judge().ok


def test_a_busy_host_condemns_nobody():
    busy_host = Probe(IDLE_MACHINE, Crew(), 2)
    busy_host.add(QUIET_SHARE * 2000 - 1, 100)
    assert (busy_host.pairs, busy_host.disturbed) == ([], 1)
    busy_host.add(QUIET_SHARE * 2000 + 1, 100)
    assert (len(busy_host.pairs), busy_host.disturbed) == (1, 1)
    assert no_verdict(probe(0.5, 0.5, 0.5, disturbed=4)).startswith("too few pairs: 0.50 of the default")
    assert not isinstance(probe(*[0.5] * FEWEST_PAIRS, disturbed=4).judge(), Undecided)


@pytest.mark.parametrize(
    ("found", "disturbed", "why"),
    [
        ([], 9, "0 pairs; 9 more were disturbed by a busy host"),
        ([1.0], 8, "too few pairs: 1.00 of the default"),
        ([0.5] * 4, 5, "too few pairs: 0.50 of the default"),
        ([0.5] * 4 + [0.95], 0, "neither a loss nor that there is none is shown: 0.50 of the default"),
    ],
)
def test_too_little_evidence_is_no_pass(found, disturbed, why):
    assert no_verdict(probe(*found, disturbed=disturbed)).startswith(why)


def test_two_good_pairs_are_evidence():
    assert probe(1.0, 0.93, disturbed=9).judge().ok
    assert probe(0.2, 1.0, 0.93).judge().measured == 0.0


def test_good_pairs_beside_a_busy_default_are_an_accident():
    """The host was busy while the default ran, and was not while the policy did, which costs half."""
    accident = probe(0.5, 0.5, 0.5, 0.5)
    for _ in range(3):
        accident.add(500.0, 500.0)
        assert no_verdict(accident)
    assert accident.decided()
    assert "at best 500 and 1000 units a second" in no_verdict(accident)


@pytest.mark.parametrize("kept", [0.4, 0.5, 0.6])
def test_what_burns_cycles_never_passes_beside_busy_loops(kept):
    """Two busy loops on two CPUs: each window gets half of a CPU, more or less, whoever runs in it."""
    random = Random(f"busy loops {kept}")
    ends = Counter()
    for _ in range(500):
        measured = Probe(SATURATED_MACHINE, Crew(), 2)
        for _ in range(9):
            default, policy = (2000 * max(random.uniform(0.3, 0.7), random.uniform(0.3, 0.7)) for _ in range(2))
            measured.add(default, kept * policy)
            if measured.decided():
                break
        result = measured.judge()
        ends["none" if isinstance(result, Undecided) else "passed" if result.ok else "failed"] += 1
    assert ends["passed"] == 0
    assert ends["failed"] > 450


@given(st.lists(st.tuples(st.floats(450, 1000), st.floats(0, 1000)), max_size=9))
def test_a_pass_and_a_failure_each_need_their_evidence(pairs):
    measured = Probe(IDLE_MACHINE, Crew(), 1)
    for default, policy in pairs:
        measured.add(default, policy)
    result = measured.judge()
    good = [policy / default for default, policy in pairs if policy / default >= 1 - LOSS_BOUND]
    if not isinstance(result, Undecided):
        assert len(good) >= FEWEST_GOOD if result.ok else len(pairs) >= FEWEST_PAIRS
        best = max(policy for _, policy in pairs) / max(default for default, _ in pairs)
        assert (best >= 1 - LOSS_BOUND - 1e-9) is result.ok


@pytest.mark.parametrize(
    ("found", "disturbed", "tells"),
    [
        ([1.0], 0, False),
        ([1.0, 0.93], 0, True),
        ([1.0, 0.8], 0, False),
        ([0.8, 0.7, 0.9, 0.8, 0.91], 0, True),
        ([0.5] * (MOST_PAIRS - 1), 0, False),
        ([0.5] * MOST_PAIRS, 0, True),
        ([1.0], 4, False),
        ([], MOST_PAIRS, False),
        ([0.5] * 2, MOST_PAIRS - 2, False),
    ],
)
def test_pairs_are_added_until_they_tell(found, disturbed, tells):
    assert probe(*found, disturbed=disturbed).decided() is tells


@pytest.mark.parametrize("found", [(1.0, 0.93), (0.9, 0.4, 0.4, 0.91)])
def test_no_later_pair_changes_what_is_decided(found):
    assert probe(*found).decided()
    for more in range(MOST_PAIRS - len(found) + 1):
        assert probe(*found, *[0.1] * more).judge().ok


def test_a_unit_takes_about_what_it_should():
    rounds = overhead.calibrate()
    start = os.times().user
    for _ in range(100):
        overhead.work(rounds)
    assert 0.03 < os.times().user - start < 0.3


def test_turns_hand_the_token_on():
    with Crew() as crew:
        overhead.start_turns(crew, 10)
        assert Probe(IDLE_MACHINE, crew, 1).throughput(0.2) > 10
        first, second = (task.record.events for task in crew.tasks)
        assert abs(first - second) <= 1
