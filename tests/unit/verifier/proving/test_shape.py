"""What only another shape shows: reading the domains, and judging the tasks that are bound to them."""

from __future__ import annotations

import pytest

from verifier.lab.doubt import stretch_of
from verifier.proving import lifecycle, mix, shape
from verifier.proving.crew import Record
from verifier.proving.prove import ORACLES, PHASES, SHAPED_PHASES, WATCHDOG_MS, Depth, chosen

MS = 1_000_000


class Watched:
    """A task of which only its record and name are looked at."""

    def __init__(self, name="a task", **fields):
        self.name = name
        self.record = Record()
        for field, value in fields.items():
            setattr(self.record, field, value)

    def cpu_ns(self):
        return 0

    def family_ns(self):
        return 0

    def whereabouts(self):
        return self.name


def system(folder, nodes, llcs):
    files = {"cpu/online": "0-7\n"}
    files |= {f"node/node{number}/cpulist": f"{cpus}\n" for number, cpus in enumerate(nodes)}
    files |= {f"cpu/cpu{number}/cache/index3/shared_cpu_list": f"{cpus}\n" for number, cpus in enumerate(llcs)}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_domains_are_the_nodes_and_caches_the_last_first(tmp_path):
    pairs = [f"{cpu - cpu % 2}-{cpu - cpu % 2 + 1}" for cpu in range(8)]
    seen = shape.domains(system(tmp_path, ["0-3", "4-7"], pairs))
    assert list(seen) == [
        "cache of CPUs 6-7",
        "node of CPUs 4-7",
        "cache of CPUs 4-5",
        "cache of CPUs 2-3",
        "node of CPUs 0-3",
        "cache of CPUs 0-1",
    ]
    assert seen["node of CPUs 4-7"] == (4, 5, 6, 7)


def test_what_holds_every_cpu_or_a_single_one_is_no_domain(tmp_path):
    assert shape.domains(system(tmp_path, ["0-7"], [str(cpu) for cpu in range(8)])) == {}


def judged(stretch=1.0, misplaced=0, longest_s=0.1, moves=5, wrong=0, refreshed_ms=10):
    hog, flipper = Watched("hog pinned to CPU 7"), Watched("flipper", events=moves, wrong=wrong)
    refresher = Watched("refresher", events=9, worst_ns=refreshed_ms * MS)
    bound = shape.Bound({hog: (7,)}, [Watched("sleeper", events=5)], flipper, refresher)
    watch = mix.GapWatch(bound.watched)
    watch.gaps[hog].longest_s = longest_s
    return {result.name: result for result in shape.judge(bound, watch, misplaced, stretch)}


def test_bounds_in_seconds_are_stretched_and_counts_are_not():
    late = mix.STARVATION_BOUND_S * 1.5
    assert not judged(longest_s=late)["starvation"].ok
    assert judged(longest_s=late, stretch=2.0)["starvation"].ok
    assert judged(stretch=2.0)["starvation"].bound == 2 * mix.STARVATION_BOUND_S
    assert not judged(refreshed_ms=2000)["pinned kernel workers"].ok
    assert judged(refreshed_ms=2000, stretch=2.0)["pinned kernel workers"].ok
    assert not judged(misplaced=1, stretch=2.0)["affinity"].ok


def test_a_task_that_moves_must_get_where_its_mask_says():
    assert judged()["affinity"].ok
    assert not judged(moves=0)["affinity"].ok
    assert not judged(wrong=1)["affinity"].ok


def test_what_has_not_run_for_long_is_known():
    gap = mix.Gap(10.0, 500)
    gap.look(11.0, 501)
    gap.look(12.5, 501)
    assert gap.open_s(12.5) == pytest.approx(1.5)


def test_bounds_stretch_with_the_cpus_that_the_host_lacks():
    assert stretch_of(8, 2) == 2.0
    assert stretch_of(8, 8) == stretch_of(8, 64) == 1.0


def test_the_phases_of_a_shape_have_oracles_that_are_known_and_end_the_policy_last():
    known = {phase.name for phase in PHASES}
    for phase in SHAPED_PHASES:
        assert phase.name not in known
        assert all(ORACLES[info.name] is info for info in phase.oracles)
    assert [bool(phase.ending) for phase in SHAPED_PHASES] == [False] * (len(SHAPED_PHASES) - 1) + [True]
    assert chosen([phase.name for phase in reversed(SHAPED_PHASES)]) == list(SHAPED_PHASES)
    assert sum(phase.share(Depth.STANDARD.value) for phase in SHAPED_PHASES) < 5


def test_hogs_are_watched_for_longer_than_they_may_wait_unless_they_run_before():
    assert shape.LEAST_DOMAINS_S > mix.STARVATION_BOUND_S
    assert shape.OPEN_S < mix.STARVATION_BOUND_S
    assert WATCHDOG_MS / 1000 > mix.STARVATION_BOUND_S


def test_hotplug_waits_as_long_as_its_bound_is_stretched():
    assert lifecycle.CPU_HOTPLUG.stretched(2.0).bound == 2 * lifecycle.RUN_AGAIN_BOUND_S
    late = lifecycle.judge(lifecycle.CPU_HOTPLUG.stretched(2.0), [lifecycle.Wait("the CPU went", 3.0)], "", "")
    assert late.ok
    assert lifecycle.until_all_ran([Watched()], "its start", 0.05).seconds < 1.0
