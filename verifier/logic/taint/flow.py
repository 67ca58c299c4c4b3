"""The data flow of an object to its fixpoint: which inputs reach which decisions, along data and along control.

Every function is looked at once for all who call it, registers and its stack in order, everything else without. First
the kinds of values settle (Kind), then, with these fixed, the labels of inputs spread: what is stored, what a branch
decides, what is called in its shadow. No paths are told apart, so there is no budget that padding could use up: the
work is bounded by the size of the object, and an object for which it is not says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

from verifier.logic.taint import arithmetic, kernel
from verifier.logic.taint.graph import Block
from verifier.logic.taint.memory import Memory
from verifier.logic.taint.replay import Registers, Replay, registers_of
from verifier.logic.taint.state import State, joined, of_stack, to_stack
from verifier.logic.taint.values import (
    CLOCKS,
    DURATIONS,
    INPUT_OF,
    SHOWN_EVENTS,
    SHOWN_NS,
    Area,
    Kind,
    Labels,
    Place,
    Target,
    Value,
    by_area,
    each_kind,
    join,
    pointer,
)
from verifier.logic.walk.calls import names
from verifier.logic.walk.code import FRAME_POINTER, REGISTERS, Code, Op
from verifier.object.image import BpfImage, Function, Line

OPERATION_LIMIT = 600_000
"""Operations looked at in all, at about 15 us each; the largest composed policies need a fifth of it."""

RECENT = names(
    "enqueue dequeue dispatch select_cpu tick runnable running stopping quiescent yield core_sched_before update_idle "
    "timer"
)
"""Callbacks that come again and again in the life of a task: what they store of a clock is no age."""

QUIET = frozenset({"init", "exit", "dump", "dump_cpu", "dump_task"})
"""Callbacks in which nothing is decided about a task: init that fails only refuses to start."""

CLOCK = Place(Area("clock", ""), 0)
"""Stands for the time in Routine.paces."""

OUTSIDE = "outside"
"""The member of programs that are no callbacks: tracing and syscall programs."""


class TooMuch(Exception):
    """The flow did not settle within OPERATION_LIMIT."""


@dataclass
class Routine:
    """One function and what is known of it.

    Args:
        members: callbacks that it runs in; OUTSIDE for other programs.
        arguments: of all its callers.
        context: labels of what decides whether it is called.
        paced, paces, pacing: the counters, and CLOCK for long times, that decide whether it is called, that the branch
            at the end of a block asks, and that decide whether a block runs: what is counted there counts their rounds.
        latched: whether every call of it is decided by what the policy remembers.
        before: state before each block.
        decided: labels of the branch at the end of a block; `latches`: whether it is one on remembered state.
    """

    code: Code
    blocks: tuple[Block, ...]
    registers: tuple[Registers, ...] = ()
    members: set[str] = field(default_factory=set)
    arguments: list[Value | None] = field(default_factory=lambda: [None] * 5)
    result: Value | None = None
    callers: set[str] = field(default_factory=set)
    context: int = 0
    latched: bool = True
    before: list[State | None] = field(default_factory=list)
    decided: list[int] = field(default_factory=list)
    latches: list[bool] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    shadows: list[bool] = field(default_factory=list)
    paced: frozenset[Place] = frozenset()
    paces: list[frozenset[Place]] = field(default_factory=list)
    pacing: list[frozenset[Place]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registers = tuple(registers_of(self.code, block) for block in self.blocks)

    @property
    def name(self) -> str:
        return self.code.name

    @property
    def recent(self) -> bool:
        return bool(self.members & RECENT)

    @property
    def counts(self) -> bool:
        """Whether it decides anything."""
        return bool(self.members - QUIET)

    def restart(self) -> None:
        """Forget the states; what is known of branches stays, so that nothing swings to and fro."""
        number = len(self.blocks)
        self.before = [None] * number
        if self.decided:
            return
        self.decided = [0] * number
        self.latches = [False] * number
        self.contexts = [self.context] * number
        self.shadows = [self.latched] * number
        self.paces = [frozenset()] * number
        self.pacing = [self.paced] * number


@dataclass(frozen=True)
class Reach:
    """An input that reaches a decision.

    Args:
        source, source_line: the instruction that read it: function and line.
        input: as in core.policies.policy.READABLE, or what nobody can declare.
        decision: what it decides.
        steps: where it went in between, in words.
    """

    input: str
    decision: str
    function: str
    line: Line | None
    source_line: Line | None
    steps: tuple[tuple[Line | None, str], ...] = ()


class Flow(ABC):
    """The state of the whole analysis; `run` in settle.py drives it, operations.py and calls.py fill it."""

    def __init__(
        self,
        image: BpfImage,
        codes: Mapping[str, Code],
        blocks: Mapping[str, tuple[Block, ...]],
        kept: frozenset[str] = frozenset(),
    ) -> None:
        """`kept`: functions that are taken as a whole (taint/limits.py)."""
        self.image = image
        self.kept = kept
        self.memory = Memory(image)
        self.replay = Replay()
        self.labels = Labels()
        self.routines = {name: Routine(code, blocks[name]) for name, code in codes.items()}
        self.readers: dict[Area, set[str]] = defaultdict(set)
        self.dirty: dict[str, None] = {}
        self.labelling = False
        self.reporting = False
        self.deferred = 0
        self.operations = 0
        self.reaches: dict[tuple[str, str], Reach] = {}
        self.stores: dict[Area, Line | None] = {}
        self.branches: dict[int, Line | None] = {}
        # where the analysis is
        self.routine: Routine
        self.index = 0
        self.context = 0
        self.shadow = False
        self.pacing: frozenset[Place] = frozenset()
        self.slow_timer = False

    # --- labels

    def blame(self, kinds: int) -> int:
        """The labels of kinds that are used for what they are not meant for, at the current instruction."""
        if not self.labelling:
            return 0
        labels = 0
        for kind in each_kind(kinds):
            labels |= self.labels.bit(INPUT_OF[kind], self.routine.name, self.index)
        return labels

    def label(self, *inputs: str) -> int:
        """The labels of inputs that are read at the current instruction."""
        if not self.labelling:
            return 0
        labels = 0
        for name in inputs:
            labels |= self.labels.bit(name, self.routine.name, self.index)
        return labels

    def decide(self, decision: str, labels: int) -> None:
        """Note that something is decided by these inputs, and by what decides whether we get here."""
        labels |= self.context
        if not self.reporting or not labels or not self.routine.counts:
            return
        op = self.routine.code.ops[self.index]
        for name, function, index in self.labels.inputs(labels):
            key = (name, decision)
            if key not in self.reaches:
                source = self.routines[function].code.ops[index].line
                steps = tuple(self._steps(self.labels.bit(name, function, index), source, op.line))
                self.reaches[key] = Reach(name, decision, self.routine.name, op.line, source, steps)

    def _steps(self, label: int, source: Line | None, sink: Line | None) -> Iterator[tuple[Line | None, str]]:
        for area in self.memory.holders(label):
            if area.kind in ("map", "variable") and len(area.name) and self.stores.get(area) is not None:
                yield self.stores[area], f"is stored in {self._name_of(area)}"
        for labels, line in self.branches.items():
            if labels & label and line is not None and line != sink:
                yield line, "decides which way to go"
                return

    def _name_of(self, area: Area) -> str:
        for variable in self.image.variables.values():
            if area.kind == "variable" and f"{variable.section}+{variable.offset}" == area.name:
                return variable.name
        return area.name

    # --- functions

    def enter(self, name: str, member: str, arguments: list[Value | None], context: int, *, latched: bool) -> None:
        """A function is called, from now on or again, with these arguments."""
        routine = self.routines.get(name)
        if routine is None:
            return
        changed = not routine.members
        if member not in routine.members:
            routine.members.add(member)
            changed = True
        for number, value in enumerate(arguments):
            both = join(routine.arguments[number], value, widen=True)
            if both != routine.arguments[number]:
                routine.arguments[number] = both
                changed = True
        if routine.context | context != routine.context:
            routine.context |= context
            changed = True
        if not self.pacing <= routine.paced:
            routine.paced |= self.pacing
            changed = True
        if routine.latched and not latched:
            routine.latched = False
            changed = True
        if changed:
            self.dirty[name] = None

    # --- memory

    def read(self, state: State, value: Value, offset: int, size: int) -> Value | None:
        """What is in the memory that a pointer of ours points to."""
        loaded: Value | None = None
        for area, targets in by_area(value.points, offset):
            loaded = join(loaded, self.read_area(state, area, targets, size))
        if loaded is None:
            return None
        return loaded.with_labels(value.labels)

    def read_area(self, state: State, area: Area, targets: tuple[Target, ...], size: int) -> Value | None:
        """What is in some places of one area."""
        if area.kind != "stack":
            self.reads(area)
            return self.memory.load_any(area, targets, size)
        loaded: Value | None = None
        for target in targets:
            loaded = join(loaded, self.read_place(state, target, size))
        return loaded

    def read_place(self, state: State, target: Target, size: int) -> Value | None:
        """What is in one place."""
        if target.area.kind != "stack":
            return self.read_area(state, target.area, (target,), size)
        written = Area("written", target.area.name)
        self.reads(written)
        outside = self.memory.load(target._replace(area=written), size) if written in self.memory.cells else None
        if target.area.name == self.routine.name:
            return join(of_stack(state, target, size), outside)
        self.reads(target.area)
        return join(self.memory.load(target, size), outside)

    def write(self, state: State, target: Target, size: int, value: Value) -> None:
        """Store a value; what decides whether we get here goes with it."""
        value = value.with_labels(self.context)
        area = target.area
        if area.kind == "stack" and area.name == self.routine.name:
            to_stack(state, target, size, value)
            return
        if area.kind == "stack":
            target = target._replace(area=_outside(area))
        if OUTSIDE in self.routine.members and area.kind in ("map", "variable"):
            value = value.with_labels(self.label("map values"))
        if area.kind in ("map", "variable"):
            value = value.with_labels(self.event())
        recent = self.routine.recent and not self.shadow
        if value.labels and (self.stores.get(target.area) is None):
            self.stores[target.area] = self.routine.code.ops[self.index].line
        site = (self.routine.name, self.index)
        sums = self.routine.members != {OUTSIDE}  # what these count is an input anyway
        own = Place(target.area, target.offset)
        cascaded = bool(self.pacing - {own}) or (self.slow_timer and "timer" in self.routine.members)
        if self.memory.store(target, size, value, site, recent=recent, sums=sums, cascaded=cascaded):
            self.touch(target.area)

    def write_all(self, state: State, points: frozenset[Target], offset: int, size: int, value: Value) -> None:
        """Store a value wherever a pointer of ours may point to; not again while all of it is there."""
        where = by_area(points, offset)
        apart = all(area != Area("stack", self.routine.name) for area, _targets in where)
        key = (self.routine.name, self.index, len(self.routine.members), self.context, self.shadow, self.pacing,
               self.slow_timer, points, value)  # fmt: skip
        if apart and self.replay.is_stored(key):
            return
        for area, targets in where:
            if area.kind not in ("kernel", "context", "symbol", "function"):
                for target in targets:
                    self.write(state, target, size, value)
        if apart:
            self.replay.stored(key, [_outside(area) for area, _targets in where])

    def event(self) -> int:
        """The labels of what only happens in some callbacks, if we are in one of them."""
        return self.label(*{kernel.EVENTS[member] for member in self.routine.members if member in kernel.EVENTS})

    def reads(self, area: Area) -> None:
        """The current block looks at what an area holds."""
        self.readers[area].add(self.routine.name)
        self.replay.reads(area)

    def touch(self, area: Area) -> None:
        """What an area holds has changed: whoever reads it is looked at again."""
        self.replay.changed(area)
        for name in self.readers.get(area, ()):
            self.dirty[name] = None

    def escape(self, state: State, values: list[Value | None]) -> None:
        """Our stack is shown to another function: what it holds now may be read there."""
        own = Area("stack", self.routine.name)
        if not any(value is not None and any(target.area == own for target in value.points) for value in values):
            return
        for (offset, size), value in state.stack.items():
            site = (self.routine.name, self.index)
            if self.memory.store(Target(own, offset), size, value, site, recent=False, sums=False):
                self.touch(own)

    # --- one function

    def follow(self, name: str) -> None:
        """Look at one function until nothing changes any more."""
        routine = self.routine = self.routines[name]
        if not self.labelling or not routine.before:
            routine.restart()
        entry = self._entry(routine)
        routine.before[0] = joined(routine.before[0], entry, -1, widen=False) or routine.before[0]
        waiting = set(range(len(routine.blocks))) if self.labelling else {0}
        visits = [0] * len(routine.blocks)
        while waiting:
            self._settle(routine, waiting, visits)
            waiting = self._spread_control(routine)

    def _settle(self, routine: Routine, waiting: set[int], visits: list[int]) -> None:
        """Run blocks, the first ones first, until the state before each has settled."""
        order = sorted(waiting)
        while order:
            number = heappop(order)
            waiting.discard(number)
            before = routine.before[number]
            if before is None:
                continue
            visits[number] += 1
            after = self.run_block(routine, routine.blocks[number], before)
            for target in routine.blocks[number].following:
                live = routine.code.live[routine.blocks[target].start]
                both = joined(routine.before[target], after, live, widen=visits[target] > 3)
                if both is not None:
                    routine.before[target] = both
                    if target not in waiting:
                        waiting.add(target)
                        heappush(order, target)

    def _entry(self, routine: Routine) -> State:
        regs: list[Value | None] = [None] * REGISTERS
        regs[1:6] = routine.arguments
        if routine.code.function.is_program:
            regs[1] = pointer(Target(Area("context", routine.name), 0))
        regs[FRAME_POINTER] = pointer(Target(Area("stack", routine.name), 0))
        return State(regs, {})

    def _spread_control(self, routine: Routine) -> set[int]:
        """Work out what decides whether each block runs; return the blocks for which that changed."""
        contexts, shadows, pacing = list(routine.contexts), list(routine.shadows), list(routine.pacing)
        settled = False
        while not settled:
            settled = True
            for block in routine.blocks:
                labels, latched, paced = routine.context, routine.latched, routine.paced
                for branch in block.controllers:
                    labels |= routine.decided[branch] | contexts[branch]
                    latched = latched or routine.latches[branch] or shadows[branch]
                    paced |= routine.paces[branch] | pacing[branch]
                if contexts[block.number] | labels != contexts[block.number]:
                    contexts[block.number] |= labels
                    settled = False
                if latched and not shadows[block.number]:
                    shadows[block.number] = True
                    settled = False
                if not paced <= pacing[block.number]:
                    pacing[block.number] |= paced
                    settled = False
        changed = {
            block.number
            for block in routine.blocks
            if contexts[block.number] != routine.contexts[block.number]
            or shadows[block.number] != routine.shadows[block.number]
            or pacing[block.number] != routine.pacing[block.number]
        }
        routine.contexts, routine.shadows, routine.pacing = contexts, shadows, pacing
        return changed

    def run_block(self, routine: Routine, block: Block, state: State) -> State:
        """Return the state after a block, which is executed if anything that it looks at has changed."""
        self.context, self.shadow = routine.contexts[block.number], routine.shadows[block.number]
        self.pacing = routine.pacing[block.number]
        place = (routine.name, block.number)
        timers = (self.deferred, self.slow_timer)
        setting = (self.context, self.shadow, self.pacing, len(routine.members), timers, self.reporting)
        registers = routine.registers[block.number]
        after = self.replay.recall(place, registers, state, setting)
        self.operations += 1 if after else block.end - block.start
        if self.operations > OPERATION_LIMIT:
            raise TooMuch(f"the data flow of {routine.name} did not settle")
        return after or self.replay.run(place, registers, state, setting, partial(self._execute_all, routine, block))

    def _execute_all(self, routine: Routine, block: Block, state: State) -> None:
        """Execute the operations of a block."""
        for index in range(block.start, block.end):
            self.index = index
            op = routine.code.ops[index]
            if op.kind == "branch":
                self._branch(routine, block, state, op)
            else:
                self.execute(state, op)

    @abstractmethod
    def execute(self, state: State, op: Op) -> None:
        """One operation that is no branch; operations.py has them."""

    @abstractmethod
    def operand(self, state: State, op: Op) -> Value | None:
        """The second operand; operations.py knows."""

    def _branch(self, routine: Routine, block: Block, state: State, op: Op) -> None:
        left, right = state.regs[op.dst], self.operand(state, op)
        if left is None or right is None:
            return
        if op.bits == 32:
            left, right = (arithmetic.moved_word(value, self.blame) for value in (left, right))
        labels = arithmetic.compare(op.name, left, right, self.blame)
        routine.decided[block.number] |= labels
        routine.latches[block.number] |= self._is_latch(op.name, left, right) or self._is_latch(op.name, right, left)
        if self.memory.seeded:
            routine.paces[block.number] |= _paces(left, right)
        if labels and labels not in self.branches:
            self.branches[labels] = op.line
        if block.repeats and routine.members != {OUTSIDE}:
            self.decide("how often a loop runs", labels)

    def _is_latch(self, name: str, value: Value, other: Value) -> bool:
        """Whether a condition asks if the policy has been here before: for a flag, or whether something was ever set.

        What is stored under such a condition is stored once. That a clock has gone on is none: what is done every 50 ms
        is done again and again; nor is a property of a task that varies, unless it is asked whether there is one yet.
        """
        if not self.memory.seeded or not value.remembered or not other.is_constant or value.points:
            return False
        equal = name in ("eq", "ne")
        if not equal and value.kinds & (CLOCKS | DURATIONS) & ~Kind.COUNT:
            return False
        for place in value.origins:
            self.replay.reads(place.area)
        places = [place for place in value.origins if place.area in self.memory.written]
        if not value.origins or (equal and other.const == 0 and places):
            return True
        return any(self.memory.is_flag(place) for place in places)


def _paces(left: Value, right: Value) -> frozenset[Place]:
    """What a condition waits for: counters, by where they are, or CLOCK, if so long that a few of it are too long."""
    places: frozenset[Place] = frozenset()
    for value, other in ((left, right), (right, left)):
        if value.kinds & Kind.COUNT and other.is_constant:
            places |= {value.loaded} if value.loaded is not None else value.origins
    measured = (left.kinds | right.kinds) & (CLOCKS | DURATIONS) & ~Kind.COUNT
    if measured and max(left.extent, right.extent) * SHOWN_EVENTS > SHOWN_NS:
        places |= {CLOCK}
    return places


def _outside(area: Area) -> Area:
    """Where it is kept what others write to the stack of a function."""
    return Area("written", area.name) if area.kind == "stack" else area


def program_member(function: Function, callbacks: Mapping[str, str]) -> str:
    """The callback that a program is, OUTSIDE if it is none."""
    return callbacks.get(function.name, OUTSIDE)
