"""What running a block gave, so that it is not run again while nothing that it looks at has changed.

A function is followed again whenever memory that it reads changes, and most of its blocks find everything as before.
What a block looks at are the registers that it reads, its stack if it uses that, what decides whether it runs
(`setting`), and the `Source`s that it reads, each of which counts its changes. What it does to the rest of the analysis
is only ever added, so doing it once is enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from verifier.logic.taint.graph import Block
from verifier.logic.taint.state import Stack, State
from verifier.logic.taint.values import Area, Value
from verifier.logic.walk.code import Code, Op

Source = Area | str
"""Memory, or a function whose result is used."""

_MOST_RUNS = 4
"""Runs of a block that are remembered: a loop is gone through a few times each time a function is followed."""

_CLOBBERED = (0, 1, 2, 3, 4, 5)
_EXCHANGE = 0xF1


class Registers(NamedTuple):
    """The registers that a block reads before it sets them, and those that it sets."""

    read: tuple[int, ...]
    set: tuple[int, ...]


class _Run(NamedTuple):
    setting: tuple[object, ...]
    read: list[Value | None]
    stack: Stack | None
    sources: tuple[tuple[Source, int], ...]
    set: list[Value | None]
    stack_after: Stack | None


class Replay:
    """The runs of all blocks, by function and number."""

    def __init__(self) -> None:
        self._changes: dict[Source, int] = defaultdict(int)
        self._read: dict[Source, int] = {}
        self._runs: dict[tuple[str, int], list[_Run]] = defaultdict(list)
        self._stores: dict[tuple[object, ...], tuple[tuple[Source, int], ...]] = {}

    def forget(self) -> None:
        """From now on everything is looked at in another way."""
        self._runs.clear()
        self._stores.clear()

    def reads(self, source: Source) -> None:
        """The block that is run now looks at this, and may change it later on."""
        self._read.setdefault(source, self._changes[source])

    def changed(self, source: Source) -> None:
        """What a source shows is another thing from now on."""
        self._changes[source] += 1

    def stored(self, key: tuple[object, ...], areas: list[Area]) -> None:
        """A store was done; `key` is all that it depends on, besides what is in these areas."""
        self._stores[key] = tuple((area, self._changes[area]) for area in areas)

    def is_stored(self, key: tuple[object, ...]) -> bool:
        """Whether a store was done, and nothing in its areas has changed since."""
        sources = self._stores.get(key)
        return sources is not None and self._are_current(sources)

    def recall(
        self, block: tuple[str, int], registers: Registers, before: State, setting: tuple[object, ...]
    ) -> State | None:
        """Return the state after a block, None if it has to be run."""
        read = [before.regs[register] for register in registers.read]
        for run in self._runs[block]:
            if run.setting != setting or run.read != read or not self._are_current(run.sources):
                continue
            if run.stack is not None and run.stack is not before.shared and run.stack != before.shared:
                continue
            after = before.copy()
            for register, value in zip(registers.set, run.set, strict=True):
                after.regs[register] = value
            after.shared = before.shared if run.stack_after is None else run.stack_after
            return after
        return None

    def _are_current(self, sources: tuple[tuple[Source, int], ...]) -> bool:
        return all(self._changes[source] == count for source, count in sources)

    def run(
        self,
        block: tuple[str, int],
        registers: Registers,
        before: State,
        setting: tuple[object, ...],
        execute: Callable[[State], None],
    ) -> State:
        """Run a block on a copy of a state and remember what it gave."""
        self._read.clear()
        after = before.copy()
        execute(after)
        sources = tuple(self._read.items())
        stacks = (before.shared, after.shared) if after.touched else (None, None)
        read = [before.regs[register] for register in registers.read]
        runs = self._runs[block]
        runs.insert(0, _Run(setting, read, stacks[0], sources, [after.regs[each] for each in registers.set], stacks[1]))
        del runs[_MOST_RUNS:]
        return after


def registers_of(code: Code, block: Block) -> Registers:
    """Return what a block does to registers."""
    read: dict[int, None] = {}
    written: dict[int, None] = {}
    for op in code.ops[block.start : block.end]:
        reads, writes = _registers(op)
        read.update(dict.fromkeys(register for register in reads if register not in written))
        written.update(dict.fromkeys(writes))
    return Registers(tuple(read), tuple(written))


def _registers(op: Op) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The registers that an operation reads, and those that it sets."""
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    match op.kind:
        case "alu" | "branch":
            reads = (op.src,) if op.from_register else ()
            reads = reads if op.name == "mov" else (op.dst, *reads)
            writes = (op.dst,) if op.kind == "alu" else ()
        case "imm64":
            writes = (op.dst,)
        case "load":
            reads, writes = (op.src,), (op.dst,)
        case "store":
            reads = (op.dst, op.src) if op.from_register else (op.dst,)
        case "atomic":
            reads, writes = (0, op.dst, op.src), (0,) if op.raw.imm == _EXCHANGE else (op.src,)
        case "call":
            reads, writes = _CLOBBERED[1:], _CLOBBERED
        case "exit":
            reads = (0,)
    return reads, writes
