"""Driving the data flow of an object to its end.

reaches = reaches_of(image)         # every input that reaches a decision, whether declared or not
"""

from __future__ import annotations

from verifier.logic.taint.calls import Calls
from verifier.logic.taint.flow import OUTSIDE, Reach, TooMuch
from verifier.logic.taint.graph import blocks_of
from verifier.logic.walk.code import BadCode, prepare
from verifier.object.image import BpfImage

UNDECIDED = "anything"
"""The input that stands for all, where the flow could not be followed."""


def reaches_of(image: BpfImage, kept: frozenset[str] = frozenset()) -> tuple[Reach, ...]:
    """Return each input that reaches a decision of the policy, once for each thing it decides.

    Args:
        kept: functions that are taken as a whole (taint.limits.kept_functions).
    """
    arity = {name: len(function.parameters) for name, function in image.functions.items()}
    try:
        codes = {name: prepare(function, arity) for name, function in image.functions.items()}
        flow = Calls(image, codes, {name: blocks_of(code) for name, code in codes.items()}, kept)
        settle(flow)
    except (BadCode, TooMuch) as error:
        return (Reach(UNDECIDED, f"everything: {error}", "", None, None),)
    return tuple(flow.reaches.values())


def settle(flow: Calls) -> None:
    """Find the fixpoint of kinds, then of labels, and note what is decided by them.

    Raises:
        TooMuch: it takes more work than any honest object.
    """
    member_of = {name: member for ops in flow.image.ops for member, name in ops.callbacks.items()}
    for name, routine in flow.routines.items():
        if name not in flow.kept and (routine.code.function.is_program or name in member_of):
            flow.enter(name, member_of.get(name, OUTSIDE), [None] * 5, 0, latched=False)
    _until_settled(flow)
    flow.memory.seeded = True
    _mark_all(flow)
    _until_settled(flow)
    flow.labelling = True
    _mark_all(flow)
    _until_settled(flow)
    flow.reporting = True
    for name, routine in flow.routines.items():
        if routine.members:
            flow.follow(name)


def _mark_all(flow: Calls) -> None:
    flow.replay.forget()
    flow.dirty.update(dict.fromkeys(name for name, routine in flow.routines.items() if routine.members))


def _until_settled(flow: Calls) -> None:
    while flow.dirty:
        name = next(iter(flow.dirty))
        del flow.dirty[name]
        flow.follow(name)
