"""Who the crew is: dealt out evenly, told apart by every trait, and safe against what a hostile object proposes."""

from __future__ import annotations

import pytest

from verifier.proving import identity
from verifier.proving.groups import SIZE
from verifier.proving.identity import NOTHING_WORN, Origin, Worn, groups, identities, wearable

TRAITS = {"comm", "uid", "gid", "cgroup", "arguments", "namespace", "pid", "time since load"}


def test_every_trait_parts_the_crew():
    parted = groups(identities(SIZE, 0, NOTHING_WORN), NOTHING_WORN)
    assert {trait for group in parted for trait in group.traits} == TRAITS
    assert all(len(group.traits) == 1 for group in parted), "pairs are for what the object knows"


@pytest.mark.parametrize("seed", range(5))
def test_each_value_is_worn_by_as_many(seed):
    crew = identities(SIZE, seed, NOTHING_WORN)
    for trait in ("name", "uid", "gid", "cgroup", "argument", "origin"):
        values = [getattr(who, trait) for who in crew]
        counts = {values.count(value) for value in values}
        assert max(counts) - min(counts) <= 1, trait
        assert min(counts) >= 3, trait


def test_another_seed_deals_otherwise_and_leaves_the_elders_in_their_places():
    first, second = (identities(SIZE, seed, NOTHING_WORN) for seed in (0, 1))
    assert [who.uid for who in first] != [who.uid for who in second]
    assert [who.origin for who in first] == [who.origin for who in second]


def test_half_of_the_crew_wears_what_the_object_knows():
    worn = Worn(names=("evil",), uids=(4242,))
    crew = identities(SIZE, 0, worn)
    assert sum(who.name == "evil" for who in crew) == SIZE // 2
    assert sum(who.uid == 4242 for who in crew) == SIZE // 2
    assert any(who.name == "evil" and who.uid >= 4242 for who in crew), "together, too"


def test_a_line_that_the_object_draws_parts_the_crew():
    worn = Worn(uids=(50_000,))
    crew = identities(SIZE, 0, worn)
    members = {number for number, who in enumerate(crew) if who.uid >= 50_000}
    assert members in [group.members for group in groups(crew, worn) if group.traits == {"uid"}]


def test_what_the_object_knows_is_told_apart_together():
    worn = Worn(names=("evil",), uids=(4242,))
    crew = identities(SIZE, 0, worn)
    members = {number for number, who in enumerate(crew) if who.name == "evil" and who.uid >= 4242}
    assert members in [group.members for group in groups(crew, worn) if group.traits == {"comm", "uid"}]


def test_no_group_is_too_small_to_compare():
    for group in groups(identities(SIZE, 0, NOTHING_WORN), NOTHING_WORN, least=3):
        assert 3 <= len(group.members) <= SIZE - 3


def test_what_no_task_can_be_is_left_out():
    worn = wearable(
        names=["ok", "far too long for a task", "nul\0", "ok"],
        uids=[1000, -1, 1 << 40],
        gids=[True],
        pids=[1, 500, 10**9],
        cgroups=["../../etc", "a.slice", "cgroup.procs", ".", "x/y"],
        arguments=["", "ls -l", "\x1b[31m", "x" * 500],
        seconds=[5, 10**12],
    )
    assert worn == Worn(("ok",), (1000,), (), (500,), ("a.slice",), ("ls -l",), (5,))


def test_everything_has_its_turn():
    """An object full of harmless names does not hide the one that it is after."""
    worn = Worn(names=tuple("abcdefg"), uids=(1, 2, 3, 4, 5))
    seen = {who.name for turn in range(3) for who in identities(SIZE, 0, worn.turned(turn))}
    assert set("abcdefg") <= seen
    for turn in range(3):
        names = [who.name for who in identities(SIZE, 0, worn.turned(turn))]
        assert sum(names.count(name) >= 3 for name in "abcdefg") == 3, "enough of each to be a group"
    assert [worn.turned(turn).at_once("uids") for turn in range(2)] == [(1, 2, 3), (4, 5, 1)]


def test_the_high_process_ids_begin_at_the_objects_line():
    assert identity.first_high_pid(Worn(pids=(777,))) == 777
    assert identity.first_high_pid(NOTHING_WORN) == identity.FIRST_HIGH_PID


def test_no_more_is_worn_than_there_is_room_for():
    assert wearable(uids=range(10_000)).uids == tuple(range(identity.MOST_WORN))


@pytest.mark.parametrize(
    "fields",
    [
        {"cgroups": ("../x",)}, {"names": ("sixteen letters!",)}, {"uids": ("0",)}, {"pids": (1,)},
        {"uids": tuple(range(99))}, {"seconds": (0,)}, {"arguments": ("\n",)},
    ],
)  # fmt: skip
def test_the_guest_takes_nothing_else_either(fields):
    with pytest.raises(ValueError, match="no task can have"):
        Worn(**fields)


def test_the_elders_are_of_every_place():
    assert {identity.origin_of(number) for number in range(3)} == set(Origin)
