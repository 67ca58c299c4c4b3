"""What real runs print, through the guest and back: colours, NUL bytes, both streams, an expression that backtracks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedagent.core.readings.presets import settle
from schedagent.core.settings import load_settings
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.workload import Goal, WorkloadCommand
from schedagent.run.opening import open_lab
from tests.support.benchmark_outputs import SCHBENCH

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

PRINTED = r"printf '\033[32mp99: 7.5ms\033[0m\n'; printf '\000\377rps: 1,234.5\n' >&2"
WORKLOAD = WorkloadCommand(
    PRINTED,
    "/",
    Goal.LATENCY,
    metric=r"p99: ([\d.]+)",
    objective="p99",
    guards=(Guard(Metric("rps", r"rps: ([\d.]+)", Direction.HIGHER), 0.05),),
)


@pytest.fixture(scope="module")
def lab():
    return open_lab(load_settings())


def test_the_numbers_of_a_run_are_read_from_both_streams(lab):
    with lab.session(WORKLOAD) as session:
        sample = session.run_default()
        assert (sample.value, dict(sample.values)) == (0.0075, {"p99": 0.0075, "rps": 1234.5})
        assert session.run_default().values == sample.values


def test_a_run_that_prints_what_schbench_does_is_recognised(lab, tmp_path):
    (tmp_path / "printed").write_text("x" * 20_000 + "\n" + SCHBENCH)
    workload = WorkloadCommand("cat printed", str(tmp_path))
    sample, _observation = lab.observe(workload)
    settled = settle(workload, sample.output_tail, recognise=True).workload
    assert settled.preset == "schbench"
    with lab.session(settled) as session:
        assert session.run_default().values == {
            "wake-up p99": pytest.approx(3060e-6),
            "requests/s": 7324.45,
            "request p99": pytest.approx(24288e-6),
        }


def test_an_expression_that_backtracks_ends_the_run(lab):
    hostile = replace(WORKLOAD, command="printf '%060d!' 0 | tr 0 a", metric="(a|a)+$", guards=())
    with lab.session(hostile) as session:
        assert "took more than 5 s" in session.run_default().failure
