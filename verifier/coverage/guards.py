"""Which inputs decide a branch by themselves: what its condition is computed from, not what led to it.

A branch that a policy's own state decides is left out, unless that state is computed from an input: whatever else
depends on an input depends on an earlier branch, which is judged itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from verifier.logic.taint.calls import Calls
from verifier.logic.taint.flow import Routine, TooMuch
from verifier.logic.taint.graph import blocks_of
from verifier.logic.taint.settle import settle
from verifier.logic.walk.code import Code, Op
from verifier.object.image import BpfImage

ANYTHING = "anything"
"""Stands for all inputs where the flow of data could not be followed."""


@dataclass(frozen=True)
class Input:
    """An input that decides a branch.

    Args:
        name: as in core.policies.policy.READABLE.
        file: where it was read, or used for what it is not meant for; empty if the object does not say.
    """

    name: str
    file: str


Guards = Mapping[tuple[str, int], frozenset[Input]]
"""Function and index of a branch -> what it is decided by."""


class _DataFlow(Calls):
    """The flow of data alone: what decides whether something is computed does not become a part of it."""

    def _spread_control(self, routine: Routine) -> set[int]:
        before = routine.shadows
        super()._spread_control(routine)
        routine.contexts = [0] * len(routine.blocks)
        return {number for number, shadow in enumerate(routine.shadows) if shadow != before[number]}


def guards_of(image: BpfImage, codes: Mapping[str, Code], kept: frozenset[str] = frozenset()) -> Guards:
    """Return what decides each branch of an object; nothing does in functions that are taken as a whole (`kept`)."""
    branches = [(name, index) for name, code in codes.items() for index, op in enumerate(code.ops) if _decides(op.kind)]
    guards = dict.fromkeys(branches, frozenset[Input]())
    flow = _DataFlow(image, codes, {name: blocks_of(code) for name, code in codes.items()}, kept)
    try:
        settle(flow)
    except TooMuch:
        return dict.fromkeys(branches, frozenset({Input(ANYTHING, "")}))
    for name, routine in flow.routines.items():
        for block in routine.blocks:
            if (name, block.end - 1) in guards and routine.decided:
                labels = flow.labels.inputs(routine.decided[block.number])
                guards[name, block.end - 1] = frozenset(
                    Input(label, file_of(codes[function].ops[index])) for label, function, index in labels
                )
    return guards


def file_of(op: Op) -> str:
    """The file of an operation's source line, as clang calls it in the sandbox; empty if the object does not say."""
    return op.line.file.removeprefix("./") if op.line else ""


def _decides(kind: str) -> bool:
    return kind in ("branch", "may_goto")
