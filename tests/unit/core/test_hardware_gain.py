"""What carries over to hardware: the formula's properties, its units, and when it gives no number."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from schedagent.core.trials.hardware_gain import HardwareRatio, expected
from schedagent.core.trials.trial import Sample
from schedagent.core.trials.usage import MachineCosts, Usage

US, MS, S = 1_000, 1_000_000, 1_000_000_000
COSTS = MachineCosts(kappa=10, lab_switch_ns=100 * US, host_switch_ns=2 * US)

work = st.integers(100 * MS, 1000 * S)
switches = st.integers(0, 1_000_000)
use = st.floats(0.05, 1)
kappas = st.floats(1, 50)
host_costs = st.floats(0, 20 * US)
costs_of_machines = st.builds(MachineCosts, kappas, st.floats(0, 200 * US), host_costs)


def sample(cpu_ns: float, voluntary=0, involuntary=0, *, use=1.0, cpus=2) -> Sample:
    """A run that used each CPU for this fraction of its time."""
    wall_ns = round(cpu_ns / (cpus * use))
    usage = Usage(voluntary, involuntary)
    return Sample("", wall_ns / 1e9, wall_ns, round(cpu_ns), 0, "2026-01-01T00:00:00", 1000, usage=usage)


def run_in_lab(work_ns, voluntary, involuntary, costs=COSTS, *, use=1.0) -> Sample:
    """A run as the model has it: the work, and what its switches cost."""
    return sample(work_ns + costs.lab_switch_ns * (voluntary + involuntary), voluntary, involuntary, use=use)


def between(inner: float, one: float, other: float) -> bool:
    return min(one, other) * (1 - 1e-6) <= inner <= max(one, other) * (1 + 1e-6)


class TestProperties:
    @given(work, switches, switches, use, costs_of_machines)
    def test_equal_arms_are_equal_on_hardware(self, work_ns, voluntary, involuntary, used, costs):
        run = run_in_lab(work_ns, voluntary, involuntary, costs, use=used)
        assert expected(run, run, costs, 2) == HardwareRatio(1, 1, 1)

    @given(work, switches, switches, use, use, costs_of_machines)
    def test_the_arms_exchanged_give_the_inverse(self, work_ns, first, second, one_use, other_use, costs):
        one, other = run_in_lab(work_ns, first, second, costs, use=one_use), run_in_lab(work_ns, second, 0, costs)
        there, back = expected(one, other, costs, 2), expected(other, one, costs, 2)
        assert math.isclose(there.ratio * back.ratio, 1)
        assert math.isclose(there.utilisation * back.utilisation, 1)
        assert math.isclose(there.raw * back.raw, 1)

    @given(work, use, use, costs_of_machines)
    def test_without_switches_and_with_equal_cpu_time_all_three_agree(self, work_ns, one_use, other_use, costs):
        found = expected(sample(work_ns, use=one_use), sample(work_ns, use=other_use), costs, 2)
        assert found.ratio == found.utilisation
        assert math.isclose(found.ratio, found.raw, rel_tol=1e-6)

    @given(work, work, use, use, costs_of_machines)
    def test_cpu_time_that_no_switch_explains_is_left_out(self, one_ns, other_ns, one_use, other_use, costs):
        found = expected(sample(one_ns, use=one_use), sample(other_ns, use=other_use), costs, 2)
        assert found.ratio == found.utilisation

    @given(work, switches, switches, switches, switches, use, use, kappas, host_costs, st.floats(2, 50))
    @example(S, 10_000, 10_000, 10_000, 0, 1.0, 1.0, 10.0, 2.0 * US, 2.0)
    def test_between_the_bounds_where_the_docstring_says_so(
        self, work_ns, voluntary, involuntary, more, more_involuntary, one_use, other_use, kappa, host_ns, dearer
    ):
        costs = MachineCosts(kappa, dearer * kappa * host_ns, host_ns)
        assume(costs.lab_switch_ns * involuntary <= work_ns)
        fewer = run_in_lab(work_ns, voluntary, involuntary, costs, use=one_use)
        other = run_in_lab(work_ns, voluntary + more, involuntary + more_involuntary, costs, use=other_use)
        for found in (expected(fewer, other, costs, 2), expected(other, fewer, costs, 2)):
            assert between(found.ratio, found.utilisation, found.raw)

    def test_preemptions_bought_with_wake_ups_lie_outside_the_bounds(self):
        found = expected(run_in_lab(10 * S, 1000, 9000), run_in_lab(10 * S, 4000, 4000), COSTS, 2)
        assert found.ratio > 1 > found.raw

    @given(work, switches, switches, use, costs_of_machines)
    def test_the_number_of_cpus_cancels(self, work_ns, voluntary, involuntary, used, costs):
        one, other = run_in_lab(work_ns, voluntary, 0, costs, use=used), run_in_lab(work_ns, 0, involuntary, costs)
        assert math.isclose(expected(one, other, costs, 2).ratio, expected(one, other, costs, 64).ratio)


class TestFigures:
    def test_a_gain_of_cheaper_switches_alone_is_nearly_none(self):
        """10 s of work; 20 000 preemptions of 100 us become 2000: 15 % less time in the lab."""
        found = expected(run_in_lab(10 * S, 0, 20_000), run_in_lab(10 * S, 0, 2000), COSTS, 2)
        assert found.raw == pytest.approx(0.85)
        assert found.utilisation == 1
        assert found.ratio == pytest.approx((1 + 0.0004) / (1 + 0.004))

    def test_a_gain_of_better_use_is_kept_whole(self):
        found = expected(run_in_lab(10 * S, 50, 2000, use=0.7), run_in_lab(10 * S, 50, 2000, use=1), COSTS, 2)
        assert (found.ratio, found.utilisation, found.raw) == pytest.approx((0.7, 0.7, 0.7))

    def test_units_the_share_of_switches_is_that_of_the_run_on_hardware(self):
        """In host time: 1 s of work, 50 000 wake-ups of 2 us each (0.1 s), and preemptions a tenth of the lab's."""
        busy, quiet = run_in_lab(10 * S, 50_000, 10_000), run_in_lab(10 * S, 0, 0)
        on_host_s = 1 + 50_000 * 2e-6 + 10_000 / 10 * 2e-6
        assert expected(quiet, busy, COSTS, 2).ratio == pytest.approx(on_host_s / 1)

    def test_in_a_machine_that_is_the_host_itself_the_formula_is_the_raw_ratio(self):
        same = MachineCosts(1, 2 * US, 2 * US)
        one, other = run_in_lab(S, 30_000, 500, same, use=0.8), run_in_lab(S, 1000, 90_000, same, use=0.9)
        found = expected(one, other, same, 2)
        assert found.ratio == pytest.approx(found.raw)


class TestNoNumber:
    RUN = run_in_lab(S, 100, 100)

    @pytest.mark.parametrize("other", [sample(20 * MS, 100, 100), sample(10 * MS, 100, 100)])
    def test_switches_that_would_have_taken_all_the_cpu_time(self, other):
        assert expected(self.RUN, other, COSTS, 2) is None
        assert expected(other, self.RUN, COSTS, 2) is None

    @pytest.mark.parametrize("changes", [{"usage": None}, {"wall_ns": 0}, {"cpu_ns": 0}])
    def test_a_sample_that_does_not_tell(self, changes):
        other = replace(self.RUN, **changes)
        assert expected(self.RUN, other, COSTS, 2) is None
        assert expected(other, self.RUN, COSTS, 2) is None

    @pytest.mark.parametrize(
        "costs",
        [
            MachineCosts(0.5, 1, 1),
            MachineCosts(math.nan, 1, 1),
            MachineCosts(10, math.inf, 1),
            MachineCosts(10, -1, 1),
            MachineCosts(10, 1, math.nan),
        ],
    )
    def test_costs_that_no_emulated_machine_has(self, costs):
        assert expected(self.RUN, self.RUN, costs, 2) is None

    def test_no_cpus(self):
        assert expected(self.RUN, self.RUN, COSTS, 0) is None
