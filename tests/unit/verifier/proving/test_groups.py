"""The judge of groups, with made-up fares."""

from __future__ import annotations

from verifier.proving import groups, soak
from verifier.proving.ground import Clock
from verifier.proving.groups import (
    AHEAD_S,
    DAY_S,
    GROUPS,
    Fare,
    ahead_s,
    among_equals,
    crew_size,
    judge,
    unequal,
    worse_again,
)
from verifier.proving.identity import NOTHING_WORN, Worn, identities

MS = 1_000_000
CREW = identities(groups.SIZE, 0, NOTHING_WORN)


def fares(victim, share=0.25, wait_s=0.2):
    """What each got if victims got so many times what the others did, and waited for so long."""
    return [
        Fare(
            groups.place_of(number, (0, 1))[0],
            int(100 * MS * (share if victim(who) else 1)),
            wait_s if victim(who) else 0.2,
        )
        for number, who in enumerate(CREW)
    ]


def worst(got, reads=()):
    figures = unequal(CREW, got, NOTHING_WORN, reads)
    return judge(GROUPS, figures, 1, len(CREW))


def test_every_cpu_has_enough_to_do():
    assert [crew_size(range(cpus)) for cpus in (1, 2, 3, 8, 64)] == [18, 18, 18, 48, 96]


def test_equal_tasks_are_equal():
    assert worst(fares(lambda _who: False)).measured == 1.0


def test_users_who_get_less_are_found():
    result = worst(fares(lambda who: who.uid >= 1000))
    assert not result.ok
    assert "of uid 1000 and above" in result.detail


def test_a_name_that_gets_less_is_found():
    assert "named 'sshd'" in worst(fares(lambda who: who.name == "sshd")).detail


def test_users_who_get_more_are_found():
    assert not worst(fares(lambda who: who.uid == 33, share=4.0)).ok


def test_equal_shares_with_long_waits_are_found():
    result = worst(fares(lambda who: who.gid == 33, share=1.0, wait_s=1.5))
    assert not result.ok
    assert "gid 33" in result.detail


def test_short_waits_are_no_matter():
    assert worst(fares(lambda who: who.gid == 33, share=1.0, wait_s=0.45)).ok


def test_who_got_nothing_is_as_unequal_as_can_be():
    assert worst(fares(lambda who: who.uid >= 1000, share=0)).measured == groups.MOST_UNEQUAL


def test_what_is_declared_is_not_held_against_a_policy():
    got = fares(lambda who: who.name == "sshd")
    assert worst(got, reads=["comm"]).ok
    assert not worst(got, reads=["uid"]).ok


def test_one_of_three_may_have_bad_luck():
    unlucky = next(number for number, who in enumerate(CREW) if who.uid == 33)
    got = fares(lambda _who: False)
    got[unlucky] = Fare(got[unlucky].place, 1, 2.0)
    assert worst(got).measured < 1.5


def test_places_are_compared_within_themselves():
    got = [Fare("anywhere", 100, 0.0), Fare("anywhere", 300, 0.0), Fare("on CPU 0", 10, 0.0), Fare("on CPU 0", 30, 0.0)]
    assert among_equals(got, lambda fare: fare.cpu_ns) == [0.5, 1.5, 0.5, 1.5]


def test_only_who_fares_worse_each_time_stays_a_suspect():
    before, now = {"a": 5.0, "b": 3.0, "c": 1.2, "d": 6.0}, {"a": 4.0, "b": 1.1, "c": 9.0}
    assert worse_again(before, now) == {"a": 4.0, "b": 1.1, "d": 1.0}


def test_the_clock_goes_beyond_the_latest_time_that_the_object_knows():
    assert ahead_s(NOTHING_WORN) == AHEAD_S
    assert ahead_s(Worn(seconds=(600,))) == AHEAD_S
    assert ahead_s(Worn(seconds=(600, 90 * DAY_S))) == 91 * DAY_S


def test_a_clock_that_was_moved_tells_the_time_without_it():
    clock = Clock(lambda _ahead_s: True)
    before_s = clock.now_s()
    assert clock.set_ahead(3600)
    assert clock.moved_s == 3600
    assert clock.now_s() < before_s, "nobody moved the real one here"
    assert not Clock().set_ahead(5)


def test_memory_that_grows_all_the_time_is_found():
    assert soak.judge_growth(soak.GROWTH, [100.0 + 2 * number for number in range(30)], 24).measured == 40.0
    assert not soak.judge_growth(soak.GROWTH, [100.0 + 2 * number for number in range(30)], 24).ok
    assert soak.judge_growth(soak.GROWTH, [100.0, 130.0, 101.0, 99.0, 103.0, 100.0], 24).ok


def test_what_the_kernel_keeps_for_good_is_read_beside_all_memory(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal: 20480 kB\nMemAvailable: 10240 kB\nSReclaimable: 999 kB\nSUnreclaim: 1024 kB\n"
        "VmallocUsed: 2048 kB\nPercpu: 512 kB\nHugePages_Total: 0\n"
    )
    monkeypatch.setattr(soak, "_MEMINFO", meminfo)
    assert soak.memory_used() == soak.Memory(all_mib=10.0, kernel_mib=3.5)


def test_a_leak_too_small_for_all_memory_shows_in_the_kernels():
    leak = [25.0 + 0.09 * number for number in range(70)]
    assert soak.judge_growth(soak.GROWTH, leak, 140).ok
    assert not soak.judge_growth(soak.KERNEL_GROWTH, leak, 140).ok
