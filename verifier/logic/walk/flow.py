"""Abstract interpretation of a BPF program along its paths.

Every callback is walked from its entry; calls of the object's own functions and callbacks are followed. Two paths that
agree in everything that is still read, in what is known of it and in what happened (Marks) are one. Loops end because
a value that differs between two visits of a loop's head becomes unknown; where many different paths meet, they are
joined the same way. What is left over is cut by a budget, and the walk reports that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from verifier.logic.walk import calls, marking, refusal
from verifier.logic.walk.code import FRAME_POINTER, BadCode, Code, Op, prepare
from verifier.logic.walk.events import Comparison, Event, Exit, Marks, Site, Trail, Walk, Walked, trails
from verifier.logic.walk.facts import (
    Condition,
    Fact,
    Facts,
    Range,
    assume,
    decide,
    is_about_allowed_cpus,
    is_test_of,
    joined,
    jump_condition,
    range_of,
    terms_of,
    tests_of_both,
    union,
    with_test,
)
from verifier.logic.walk.machine import Machine
from verifier.logic.walk.state import Frame, State
from verifier.logic.walk.terms import Term, TermKind, low_half
from verifier.object.image import BpfImage, Function, Line

STEP_BUDGET = 100_000
"""Instructions looked at for one callback, at about 20 us each: seven times what any composed policy needs."""

TOTAL_BUDGET = 250_000
"""For all callbacks: ten times what any composed policy needs. No callback can use up what the others have."""

_DISTINCT_PATHS = 10
"""So many different paths may meet at one place before they are joined."""

_WIDER = 2
"""So often may the interval of a value grow at a place where paths meet before nothing is claimed of it."""

_FEW_QUEUES = 2

_NOTHING = Facts()

Spans = dict[tuple[int, Term], Range]
"""(bits, value that was joined) -> the interval of all that it was joined from."""

_DISTINCT_VALUES = 32
"""So many different values at one place are remembered where a loop is entered."""

_DEEPEST_CALL = 12
"""The kernel's verifier refuses more than 8 frames (MAX_CALL_FRAMES)."""

_ENTRY = -1
_OF_ONE_ROUND = frozenset({"map key", "map value", "dynptr"})
"""What a helper hands to its callback, another value each time."""

_RETURNS = frozenset({"select_cpu", "init_task", "init"})


class Group(NamedTuple):
    """Paths that may be joined: at one place, called from the same places, with the same Marks.

    Args:
        context: the callers, and where in them each call returns to.
    """

    context: tuple[tuple[str, int], ...]
    function: str
    place: int
    marks: Marks

    def progress(self) -> tuple[int, ...]:
        """How far it is, as the compiler lays code out; a loop comes before what follows it, a call before its end."""
        return (*(back - 1 for _function, back in self.context), self.place)


class Walker(Machine):
    """Walks the entries of one object.

    Args:
        image: the object.
        features: what the target kernel has; empty: everything is assumed to exist.
        enums: values of enumerators by short name (SCX_DSQ_LOCAL).
        plain: functions that are followed once: no rule is about what they do, and they may return anything.
    """

    def __init__(
        self,
        image: BpfImage,
        features: frozenset[str],
        enums: Mapping[str, int],
        plain: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(image, features, enums, Walk())
        self._arity = {name: len(function.parameters) for name, function in image.functions.items()}
        self._codes = self.walk.codes
        self._plain = plain
        self._followed: set[str] = set()
        self._waiting: list[State] = []
        self._seen: dict[Group, set[tuple[object, ...]]] = {}
        self._joined: dict[Group, State] = {}
        self._grown: dict[tuple[object, ...], int] = {}
        self._meeting: dict[Group, State] = {}
        """Joined paths that wait until all others have come as far."""
        self._dead = self.terms.make(TermKind.UNKNOWN, "dead")
        self._known_events: set[tuple[object, ...]] = set()
        self._deferred: list[tuple[str, str]] = []
        self._handlers = {
            "alu": self._alu,
            "imm64": self._imm64,
            "load": self._load,
            "store": self._store,
            "atomic": self._atomic,
            "jump": self._jump,
            "branch": self._branch,
            "may_goto": self._may_goto,
            "call": self._call,
            "exit": self._exit,
        }

    def enter(self, member: str, function: Function) -> None:
        """Walk one entry, and then the timer callbacks that it starts."""
        self.member = member
        self.entry = Walked(member, function.name)
        self.walk.entries.append(self.entry)
        self._seen, self._joined, self._grown, self._meeting = {}, {}, {}, {}
        try:
            state = State(self._code(function.name), [self._dead] * FRAME_POINTER)
        except BadCode as error:
            self.entry.unreadable = str(error)
            return
        state.regs.append(self.terms.make(TermKind.STACK, 0, 0))
        self.watched = self._two_queues() if member == "dispatch" else frozenset()
        self._set_arguments(state, member, function)
        self._waiting = [state]
        budget = min(STEP_BUDGET, TOTAL_BUDGET - sum(entry.steps for entry in self.walk.entries))
        while (self._waiting or self._meeting) and not self.entry.exhausted:
            if self._waiting:
                self._follow(self._waiting.pop(), budget)
            else:
                group, state = self._next_meeting()
                self._follow(state, budget, arrived=group.place != _ENTRY)
        if member == "init_task":
            self.recorded = self._certain_records()
        for name, deferred in self._deferred:
            if not any(entry.function == deferred for entry in self.walk.entries):
                self.enter(name, self.image.functions[deferred])

    def _two_queues(self) -> frozenset[int]:
        """Return the DSQs that tasks are inserted into, if they are two: of more there would be too many paths."""
        queues = {event.arguments[1] for event in self.walk.events
                  if event.name in marking.INSERTS and event.member in ("select_cpu", "enqueue")}  # fmt: skip
        known = frozenset(queue.value for queue in queues if queue.is_const and not queue.value >> 63)
        return known if len(known) == _FEW_QUEUES else frozenset()

    def _certain_records(self) -> frozenset[str]:
        """Return the task storages in which init_task leaves a record of every task that it does not refuse."""
        taken = [path for path in self.walk.exits if path.member == "init_task" and not path.marks.ended
                 and range_of(path.facts, 32, low_half(path.result)).low == 0]  # fmt: skip
        if self.entry.exhausted or self.entry.unreadable or not taken or _deletes_records(self.image):
            return frozenset()
        return frozenset.intersection(*(path.marks.stores for path in taken))

    def _set_arguments(self, state: State, member: str, function: Function) -> None:
        names = calls.CALLBACK_ARGUMENTS.get(member)
        if names is not None or function.is_program:
            state.regs[1] = self.terms.make(TermKind.CONTEXT)
            return
        for index in range(3):  # a timer's callback: map, key, value
            state.regs[1 + index] = self.terms.make(TermKind.UNKNOWN, "argument", function.name, index)

    def _code(self, name: str) -> Code:
        if name not in self._codes:
            self._codes[name] = prepare(self.image.functions[name], self._arity)
        return self._codes[name]

    def _follow(self, state: State, budget: int, *, arrived: bool = False) -> None:
        """Follow one path until it ends, meets others, or forks; `arrived`: it is known to be the first where it is."""
        self.entry.paths += 1
        while True:
            if state.index >= len(state.code.ops):
                self.entry.unreadable = f"{state.code.name} runs on behind its last instruction"
                return
            if not arrived and state.index in state.code.joins and not self._arrive(state, state.index):
                return
            arrived = False
            self.entry.steps += 1
            if self.entry.steps > budget:
                self.entry.exhausted = True
                return
            state.origin = state.index
            op = state.code.ops[state.index]
            if not self._handlers[op.kind](state, op):
                return

    def _arrive(self, state: State, place: int) -> bool:
        """Whether a path is the first to come here in this state; what nothing reads later is dropped first."""
        state.trim(self._dead)
        if place in state.code.loop_heads or place == _ENTRY:
            self._widen(state, place)
        context = tuple((frame.code.name, frame.back) for frame in state.frames)
        group = Group(context, state.code.name, place, state.marks)
        seen = self._seen.setdefault(group, set())
        if len(seen) >= _DISTINCT_PATHS:
            if self._join(state, group):
                self._meeting[group] = state
            return False
        key = state.key
        if key in seen:
            return False
        seen.add(key)
        return True

    def _widen(self, state: State, place: int) -> None:
        """At a loop's head: what differs from the visit before becomes unknown."""
        at = (len(state.frames), state.code.name, place)
        before = state.loops.get(at)
        goes_back = place == _ENTRY or (state.origin, place) in state.code.back_edges
        if not goes_back:
            self._remember(state, Site(state.code.name, place))
        if before is not None and goes_back:
            self._merge(state, before[0], before[1], at, _NOTHING)
        state.loops[at] = (tuple(state.regs), state.stack)

    def _remember(self, state: State, head: Site) -> None:
        """Note what is held where a loop is entered."""
        depth = len(state.frames)
        values = {
            register: value for register, value in enumerate(state.regs[:FRAME_POINTER]) if value is not self._dead
        }
        values |= {offset: value for (level, offset), (_size, value) in state.stack.items() if level == depth}
        held = self.walk.heads.setdefault(head, {place: {} for place in values})
        for place in list(held):
            value = values.get(place)
            if value is None or (value not in held[place] and len(held[place]) >= _DISTINCT_VALUES):
                del held[place]
                continue
            low, high, _signed_low, _signed_high = range_of(state.facts, 64, value)
            before = held[place].get(value, (low, high))
            held[place][value] = min(low, before[0]), max(high, before[1])

    def _merge(self, state: State, regs: tuple[Term, ...], stack: Mapping[tuple[int, int], tuple[int, Term]],
               at: tuple[object, ...], facts: Facts) -> Spans:  # fmt: skip
        """Join registers and stack with those of another path, of which these are the facts; return the intervals."""
        spans: Spans = {}
        for register, value in enumerate(state.regs):
            if value is not regs[register]:
                state.regs[register] = self._merged(state, (value, regs[register]), (*at, register), facts, spans)
        for slot, (size, value) in list(state.stack.items()):
            other = stack.get(slot)
            if other is None or other[0] != size:
                del state.stack[slot]
            elif (
                value.kind is TermKind.ITERATOR
                and other[1].kind is TermKind.ITERATOR
                and value.parts[:3] == other[1].parts[:3]
            ):
                used = self.terms.make(TermKind.ITERATOR, *value.parts[:3], value.parts[3] and other[1].parts[3])
                state.stack[slot] = (size, used)
            elif other[1] is not value:
                state.stack[slot] = (size, self._merged(state, (value, other[1]), (*at, slot), facts, spans))
        return spans

    def _merged(self, state: State, values: tuple[Term, Term], place: tuple[object, ...], facts: Facts,
                spans: Spans) -> Term:  # fmt: skip
        """Return the unknown that stands for a value of this path and one of another; note which, and their bounds."""
        term = self.terms.make(TermKind.UNKNOWN, "merged", place)
        known = self.walk.merged.setdefault(term, set())
        for bits in (32, 64):
            ranges = [range_of(each, bits, value) for each, value in zip((state.facts, facts), values, strict=True)]
            spans[bits, term] = union(*ranges)
        for value, bounds in zip(values, ranges, strict=True):
            if value is not term:
                known.add(value)
                low, high = self.walk.spans.get((term, value), (bounds.low, bounds.high))
                self.walk.spans[term, value] = min(low, bounds.low), max(high, bounds.high)
        state.remake(term, self.terms)
        return term

    def _next_meeting(self) -> tuple[Group, State]:
        """Return the joined path that is the least far, so that what others add to it is followed once."""
        group = min(self._meeting, key=Group.progress)
        return group, self._meeting.pop(group)

    def _join(self, state: State, group: Group) -> bool:
        """Join a path with those that came here before; false if it adds nothing to them."""
        self.entry.joined = True
        before = self._joined.get(group)
        if before is not None:
            regs, stack, facts, frames = tuple(before.regs), before.stack, before.facts, before.frames
            place = (*group[:3], "join")
            spans = self._merge(state, regs, stack, place, facts)
            self._merge_frames(state, frames, place, facts, spans)
            state.facts = self._joined_facts(group, state.facts, facts, spans)
            if tuple(state.regs) == regs and (state.stack, state.facts, state.frames) == (stack, facts, frames):
                return False
        self._joined[group] = state.fork()
        return True

    def _joined_facts(self, group: Group, facts: Facts, before: Facts, spans: Spans) -> Facts:
        """Return what is known behind the place where paths meet; an interval that keeps growing there is given up."""
        known = joined(facts, before)
        known.update(tests_of_both(self.terms, facts, before))
        known.update((key, bounds) for key, bounds in spans.items() if bounds != range_of(_NOTHING, *key))
        for key in [key for key, bounds in known.items() if isinstance(bounds, Range) and before.get(key) != bounds]:
            grown = self._grown[group, key] = self._grown.get((group, key), 0) + 1
            if grown > _WIDER:
                del known[key]
        return known

    def _merge_frames(self, state: State, frames: tuple[Frame, ...], place: tuple[object, ...], facts: Facts,
                      spans: Spans) -> None:  # fmt: skip
        """Join what the callers kept in registers."""
        merged = []
        for depth, (frame, other) in enumerate(zip(state.frames, frames, strict=True)):
            saved = tuple(
                value if value is before else self._merged(state, (value, before), (*place, depth, index), facts, spans)
                for index, (value, before) in enumerate(zip(frame.saved, other.saved, strict=True))
            )
            merged.append(frame._replace(saved=saved))
        state.frames = tuple(merged)

    # --- control flow

    def _jump(self, state: State, op: Op) -> bool:
        state.index = op.target
        return True

    def _may_goto(self, state: State, op: Op) -> bool:
        other = state.fork()
        other.index = op.target
        self._waiting.append(other)
        state.index += 1
        return True

    def _branch(self, state: State, op: Op) -> bool:
        right = state.regs[op.src] if op.from_register else self._immediate(op)
        condition, negated = jump_condition(self.terms, op.name, op.bits, state.regs[op.dst], right)
        decided = decide(state.facts, condition)
        if decided is None:
            self._compared(condition, op)
            other = state.fork()
            other.index = op.target
            if self._suppose(other, condition, not negated, op):
                self._waiting.append(other)
            state.index += 1
            return self._suppose(state, condition, negated, op)
        state.index = op.target if decided != negated else state.index + 1
        return True

    def _suppose(self, state: State, condition: Condition, holds: bool, op: Op) -> bool:
        facts = assume(state.facts, condition, holds)
        if facts is None:
            return False
        if condition.operator == "eq" and not holds and condition.right.is_const and condition.right.value == 0:
            facts = self._with_test(facts, condition.left)
        state.facts = facts
        state.trail = Trail(state.trail, op.line, condition, holds)
        marks = state.marks
        if marks.pending or marks.queries or marks.claims:
            state.marks = marking.settle(marks, facts)
        excuse = refusal.excuse_for(marks, condition, holds) if self.member in refusal.MAY_REFUSE else ""
        if excuse and not state.marks.excuse:
            state.marks = state.marks._replace(excuse=excuse)
        return True

    def _with_test(self, facts: Facts, value: Term) -> Facts:
        """Add what follows where a value is not 0 that each of the paths which met took from a test of a mask."""
        value = low_half(value)
        if value.kind is TermKind.OP and value.parts[0].removesuffix("32") == "and" and value.parts[2].is_const:
            value = low_half(value.parts[1])  # as clang reads a bool
        return with_test(self.terms, facts, self.walk.may_be(value)) if value in self.walk.merged else facts

    def _compared(self, condition: Condition, op: Op) -> None:
        if condition not in self._undecided:
            self._undecided.add(condition)
            self.walk.comparisons.append(Comparison(condition, self.member, op.line))

    def _exit(self, state: State, op: Op) -> bool:
        if not state.frames:
            self._finish(state, op)
            return False
        frame = state.frames[-1]
        if frame.again is not None:
            self._call_again(state, frame)
        depth = len(state.frames)
        state.frames = state.frames[:-1]
        state.stack = {place: held for place, held in state.stack.items() if place[0] < depth}
        state.code, state.index = frame.code, frame.back
        state.regs[6:10] = frame.saved
        state.regs[FRAME_POINTER] = self.terms.make(TermKind.STACK, depth - 1, 0)
        if frame.result is not None:
            state.regs[0] = frame.result
        for register in range(1, 6):
            state.regs[register] = self._dead
        return True

    def _call_again(self, state: State, frame: Frame) -> None:
        """The callback of bpf_loop() returned: unless it returned 1 (stop), it may be called once more."""
        returned = range_of(state.facts, 32, low_half(state.regs[0]))
        if returned.low == returned.high == 1:
            return
        again = state.fork()
        again.index = 0
        self._start_callback(again, frame)

    def _start_callback(self, state: State, frame: Frame) -> None:
        depth = len(state.frames)
        state.stack = {place: held for place, held in state.stack.items() if place[0] < depth}
        for register in range(FRAME_POINTER):
            state.regs[register] = self._dead
        for register, value in enumerate(frame.again or (), start=1):
            if value.kind is TermKind.INDEX or (value.kind is TermKind.CALL and value.name in _OF_ONE_ROUND):
                state.remake(value, self.terms)
            state.regs[register] = value
        state.regs[FRAME_POINTER] = self.terms.make(TermKind.STACK, depth, 0)
        if self._arrive(state, _ENTRY):
            self._waiting.append(state)

    def _finish(self, state: State, op: Op) -> None:
        roots = state.regs[0].roots
        facts = _facts_about(state.facts, roots)
        key = (self.member, state.regs[0], state.marks, frozenset(facts.items()))
        if key not in self._known_events:
            self._known_events.add(key)
            self.walk.exits.append(
                Exit(self.member, _last_line(state, op, self.member), state.regs[0], facts, state.marks, state.trail)
            )

    # --- calls

    def _call(self, state: State, op: Op) -> bool:
        ref = op.raw.ref
        site = Site(state.code.name, state.index)
        state.index += 1
        name = ref.name if ref is not None else "an unknown function"
        if ref is not None and ref.kind == "function":
            if name in self._plain & self._followed:
                self._pass_over(state, name, site)
                return True
            self._followed.add(name)
            if self._step_into(state, name):
                return True
        arguments = tuple(state.regs[1 : 1 + self._arity_at(op, self._arity)])
        known = calls.canonical(name)
        state.returned = op.line
        state.regs[0] = self._result(state, known, arguments, site)
        for register in range(1, 6):
            state.regs[register] = self._dead
        raw = ref.symbol or name if ref is not None else name
        self._written_by(known, arguments)
        arguments = marking.plain_arguments(self, state, raw, known, arguments)
        self._report(state, known, raw, site, op, arguments)
        state.marks = marking.after_call(self, state, known, site, op.line, arguments)
        state.trail = Trail(state.trail, op.line, call=known)
        if known in calls.NEVER_RETURNS:
            return False
        self._run_callback(state, known, arguments)
        return True

    def _pass_over(self, state: State, name: str, site: Site) -> None:
        """Take it that a function of the object returned whatever it may return."""
        arguments = tuple(state.regs[1 : 1 + self._arity[name]])
        state.regs[0] = self._result(state, name, arguments, site)
        for register in range(1, 6):
            state.regs[register] = self._dead

    def _step_into(self, state: State, name: str) -> bool:
        """Continue in a function of the object; false if that would go too deep."""
        if name not in self.image.functions or len(state.frames) >= _DEEPEST_CALL:
            self.entry.unreadable = f"{name} is not there, or called through {_DEEPEST_CALL} others"
            return False
        try:
            code = self._code(name)
        except BadCode as error:
            self.entry.unreadable = str(error)
            return False
        live = state.code.live[state.index] if state.index < len(state.code.ops) else 0
        saved = tuple(state.regs[r] if live >> r & 1 else self._dead for r in range(6, 10))
        state.frames = (*state.frames, Frame(state.code, state.index, saved))
        state.code, state.index = code, 0
        state.regs[FRAME_POINTER] = self.terms.make(TermKind.STACK, len(state.frames), 0)
        return True

    def _run_callback(self, state: State, name: str, arguments: tuple[Term, ...]) -> None:
        """Follow the function given to bpf_loop() and its like, any number of times; remember those called later."""
        later = calls.DEFERRED_CALLBACK.get(name)
        if later is not None and later < len(arguments) and arguments[later].kind is TermKind.FUNCTION:
            self._deferred.append((f"{name.split('_')[1]} callback {arguments[later].name}", arguments[later].name))
        position = calls.CALLBACK_ARGUMENT.get(name)
        if position is None or position >= len(arguments) or arguments[position].kind is not TermKind.FUNCTION:
            return
        again = self._callback_arguments(name, arguments, Site(state.code.name, state.index - 1))
        inner = state.fork()
        if self._step_into(inner, arguments[position].name):
            frame = inner.frames[-1]._replace(again=again, result=state.regs[0])
            inner.frames = (*inner.frames[:-1], frame)
            self._start_callback(inner, frame)

    def _callback_arguments(self, name: str, arguments: tuple[Term, ...], site: Site) -> tuple[Term, ...]:
        context = arguments[2] if len(arguments) > 2 else self._dead
        if name == "bpf_loop":
            return self.terms.make(TermKind.INDEX, site, self.terms.const(0), arguments[0]), context
        if name == "bpf_for_each_map_elem":
            key, value = (
                self.terms.make(TermKind.CALL, what, site, arguments[:1]) for what in ("map key", "map value")
            )
            return arguments[0], key, value, context
        return self.terms.make(TermKind.CALL, "dynptr", site, arguments[:1]), context

    def _report(self, state: State, name: str, raw: str, site: Site, op: Op, arguments: tuple[Term, ...]) -> None:
        looped = name.startswith("scx_bpf_dsq_insert") and site in state.marks.batch
        roots: frozenset[Term] = frozenset().union(*(term.roots for term in arguments))
        facts = _facts_about(state.facts, roots)
        key = (self.member, site, arguments, looped, state.marks, frozenset(facts.items()))
        if key in self._known_events:
            return
        self._known_events.add(key)
        bound = _loop_bound(state) if looped else None
        event = Event(name, raw, self.member, site, op.line, arguments, state.regs[0], facts, state.marks, state.trail,
                      looped, bound, self._printed(state, name, arguments))  # fmt: skip
        self.walk.events.append(event)


def _deletes_records(image: BpfImage) -> bool:
    """Whether anything takes a task's record away but exit_task and, where it is seen, init_task."""
    leaving = {ops.callbacks.get(member) for ops in image.ops for member in ("init_task", "exit_task")}
    entered = [each.name for each in image.functions.values() if each.is_program and each.name not in leaving]
    return any(
        each.ref is not None and each.ref.name == "bpf_task_storage_delete"
        for name in frozenset().union(*(image.reached_from(entry) for entry in entered))
        for each in image.functions[name].instructions
    )


def _last_line(state: State, op: Op, entered: str) -> Line | None:
    """Where a path computed its result or took its last turn: the exit itself has the line of the whole function."""
    returned = state.returned if entered in _RETURNS else None
    if returned is not None and op.line is not None and returned.line != op.line.line:
        return returned
    return next((trail.line for trail in trails(state.trail) if trail.line), op.line)


def _loop_bound(state: State) -> int | None:
    """Return how often the loops that a path is in may run, None if one of them has no known bound."""
    counted = [
        value.parts[2][:2]
        for _size, value in state.stack.values()
        if value.kind is TermKind.ITERATOR and value.name == "bpf_iter_num" and len(value.parts[2]) >= 2
    ]
    counted += [(None, frame.again[0].parts[2]) for frame in state.frames
                if frame.again is not None and frame.again[0].kind is TermKind.INDEX]  # fmt: skip
    bound = 1
    for start, end in counted:
        if not end.is_const or (start is not None and not start.is_const):
            return None
        bound *= max(0, end.value - (start.value if start is not None else 0))
    if counted:
        return bound
    tops = [
        known.high + 1
        for key, known in state.facts.items()
        if isinstance(known, Range) and not isinstance(key, Condition) and key[1].kind is TermKind.UNKNOWN
    ]
    return min((top for top in tops if top < 1 << 31), default=None)


def _facts_about(facts: Facts, roots: frozenset[Term]) -> Facts:
    """Return the facts about some values, and those that always hold."""
    return Facts(
        (key, known)
        for key, known in facts.items()
        if _eternal(key) or _about(key, roots) or is_test_of(key, known, roots)
    )


def _eternal(key: Fact) -> bool:
    return not any(term.roots for term in terms_of(key)) or is_about_allowed_cpus(key)


def _about(key: Fact, roots: frozenset[Term]) -> bool:
    return any(term.roots & roots for term in terms_of(key))
