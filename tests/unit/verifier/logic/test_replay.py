"""verifier.logic.taint.replay: a block is not run again while it would do the same."""

from verifier.logic.taint.replay import Registers, Replay
from verifier.logic.taint.state import State
from verifier.logic.taint.values import Area, constant

BLOCK = ("f", 0)
USES = Registers((1,), (0,))
MAP = Area("map", "m")


def state(first=None, other=None):
    return State([None, first, other], {(-8, 8): constant(3)})


def run(replay, before, *, changes=False, stores=False, setting=()):
    def execute(after):
        replay.reads(MAP)
        if changes:
            replay.changed(MAP)
        if stores:
            after.stack[-8, 8] = constant(4)
        after.regs[0] = constant(7)

    return replay.run(BLOCK, USES, before, setting, execute)


def test_what_a_block_does_not_look_at_passes_through():
    replay = Replay()
    run(replay, state(constant(1)))
    after = replay.recall(BLOCK, USES, state(constant(1), other=constant(5)), ())
    assert after.regs == [constant(7), constant(1), constant(5)]
    assert after.stack == {(-8, 8): constant(3)}


def test_another_register_setting_or_stack_makes_it_run_again():
    replay = Replay()
    after = run(replay, state(constant(1)), stores=True)
    assert replay.recall(BLOCK, USES, state(constant(1)), ()).stack == after.stack == {(-8, 8): constant(4)}
    assert replay.recall(BLOCK, USES, state(constant(2)), ()) is None
    assert replay.recall(BLOCK, USES, state(constant(1)), ("another",)) is None
    assert replay.recall(BLOCK, USES, State([None, constant(1), None], {}), ()) is None


def test_what_changed_since_makes_it_run_again():
    replay = Replay()
    run(replay, state())
    replay.changed(MAP)
    assert replay.recall(BLOCK, USES, state(), ()) is None


def test_a_block_that_changes_what_it_has_read_runs_again():
    replay = Replay()
    run(replay, state(), changes=True)
    assert replay.recall(BLOCK, USES, state(), ()) is None


def test_a_store_is_done_once_until_its_area_changes():
    replay = Replay()
    replay.stored(("key",), [MAP])
    assert replay.is_stored(("key",))
    assert not replay.is_stored(("another",))
    replay.changed(MAP)
    assert not replay.is_stored(("key",))
