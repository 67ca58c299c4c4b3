"""How much work a function may do: its instructions, times the rounds of its loops, times those of the loops around.

A loop is a strongly connected part of the control flow. It is bounded by an instruction that every round passes and
that runs at most so often: the call that asks an open-coded iterator for its next element, a may_goto, or the head of
a loop that counts. Without that instruction the part falls apart into smaller loops, which are bounded likewise, so
that rounds multiply along the nesting. Nothing here follows paths: there is no budget to exhaust.

Sources: kernel/bpf/verifier.c (loops without an iterator are simulated round by round, at most 1 million instructions),
kernel/bpf/bpf_iter.c and helpers.c (bpf_iter_num_new() and bpf_loop() refuse more than BPF_MAX_LOOPS rounds).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from verifier.logic.walk import calls, counting
from verifier.logic.walk.code import Code
from verifier.logic.walk.events import Ranges, Site
from verifier.object.image import Line

KERNEL_ROUNDS = 1 << 23
"""BPF_MAX_LOOPS: what the kernel allows bpf_loop(), bpf_iter_num_new() and may_goto."""

SIMULATED = 1 << 20
"""BPF_COMPLEXITY_LIMIT_INSNS: how many instructions of a loop without an iterator the kernel's verifier simulates."""

QUEUED_TASKS = 1024
"""Rounds of an iterator over a DSQ, which visits each task that was queued before at most once."""

UNBOUNDED = 1 << 100
_WORTH_COUNTING = 1 << 18
"""A loop that may do more work than this is looked at again for counters that not every round adds to."""

_CLEAR_OF_REGISTERS = frozenset({"store", "atomic", "jump", "may_goto"})


class Nest(NamedTuple):
    """A loop, or a call in one, as a finding shows it."""

    rounds: int
    line: Line | None


class Work(NamedTuple):
    """Instructions that run at most, what a call costs counted as so many; and the loops that make it so much."""

    instructions: int
    nest: tuple[Nest, ...] = ()

    def times(self, rounds: int, line: Line | None) -> Work:
        if rounds <= 1:
            return self
        return Work(min(UNBOUNDED, self.instructions * rounds), (Nest(rounds, line), *self.nest))


NOTHING = Work(0)


@dataclass(frozen=True)
class Loops:
    """Bounds the work of one function.

    Args:
        code: the function.
        call: the work that the call at an index does, besides being an instruction.
        rounds: how many rounds bpf_iter_num_new() at an index allows, at most.
        heads: what registers and stack slots hold where a loop is entered (see `counting`).
    """

    code: Code
    call: Callable[[int], Work]
    rounds: Callable[[int], int]
    heads: Mapping[Site, Ranges]

    def work(self) -> Work:
        """Return the work of the dearest way through the function."""
        return self._dearest(frozenset(range(len(self.code.ops))))

    def _dearest(self, part: frozenset[int]) -> Work:
        """The dearest walk within a part of the function."""
        best: dict[int, Work] = {}
        dearest = NOTHING
        for component in _components(self.code, part):
            inner = self._loop(component) if self._is_loop(component) else self._single(component[0])
            behind = NOTHING
            for index in component:
                for after in self.code.next_of(index):
                    if after in best and best[after].instructions > behind.instructions:
                        behind = best[after]
            larger = inner if inner.instructions >= behind.instructions else behind
            total = Work(min(UNBOUNDED, inner.instructions + behind.instructions), larger.nest)
            best.update(dict.fromkeys(component, total))
            if total.instructions > dearest.instructions:
                dearest = total
        return dearest

    def _is_loop(self, component: list[int]) -> bool:
        return len(component) > 1 or component[0] in self.code.next_of(component[0])

    def _single(self, index: int) -> Work:
        if self.code.ops[index].kind != "call":
            return Work(1)
        called = self.call(index)
        return Work(min(UNBOUNDED, 1 + called.instructions), called.nest)

    def _loop(self, component: list[int]) -> Work:
        """The work of one stay in a loop."""
        part = frozenset(component)
        pace, often = min(self._pacers(part), key=lambda pacer: pacer[1], default=(part, UNBOUNDED))
        best = self._paced(part, pace, often)
        if best.instructions > _WORTH_COUNTING:
            for index, rounds in counting.increments(self.code, part, self.heads):
                paced = self._paced(part, frozenset([index]), rounds)
                best = paced if paced.instructions < best.instructions else best
        return best

    def _paced(self, part: frozenset[int], pace: frozenset[int], often: int) -> Work:
        """The work of a loop in which some instructions run so often, all of them together."""
        if often >= SIMULATED and not self._is_iterated(part):  # the kernel bounds what we cannot
            dearest = max((self._single(index) for index in part), key=lambda work: work.instructions)
            return dearest.times(SIMULATED, self._line_of(part))
        if often >= UNBOUNDED:
            return Work(UNBOUNDED, (Nest(UNBOUNDED, self._line_of(part)),))
        rest = self._dearest(part - pace)
        single = max((self._single(index) for index in pace), key=lambda work: work.instructions)
        larger = rest if rest.instructions >= single.instructions else single
        once = Work(min(UNBOUNDED, rest.instructions + single.instructions), larger.nest)
        return once.times(often + 1, self.code.ops[min(pace)].line)

    def _line_of(self, part: frozenset[int]) -> Line | None:
        return next((self.code.ops[index].line for index in sorted(part) if self.code.ops[index].line), None)

    def _is_iterated(self, part: frozenset[int]) -> bool:
        """Whether the kernel's verifier need not follow all rounds of a loop."""
        return any(
            self.code.ops[index].kind == "may_goto" or self._called(index).startswith("bpf_iter_") for index in part
        )

    def _called(self, index: int) -> str:
        ref = self.code.ops[index].raw.ref
        return calls.canonical(ref.name) if ref is not None and self.code.ops[index].kind == "call" else ""

    def _pacers(self, part: frozenset[int]) -> Iterator[tuple[frozenset[int], int]]:
        """Yield instructions of a loop, and how often they may run during one stay in it, all of them together."""
        places: dict[int | None, set[int]] = {}
        for index in part:
            if self.code.ops[index].kind == "may_goto":
                yield frozenset([index]), KERNEL_ROUNDS
            elif self._called(index).endswith("_next") and self._called(index).startswith("bpf_iter_"):
                places.setdefault(self._iterator(index), set()).add(index)
        for calls_of_it in places.values():
            yield frozenset(calls_of_it), max(self._elements(index, part) for index in calls_of_it)
        head, rounds = counting.rounds(self.code, part, self.heads)
        if head >= 0:
            yield frozenset([head]), rounds

    def _elements(self, index: int, part: frozenset[int]) -> int:
        """How often a loop asks an iterator that was made outside of it for an element, the refusal included."""
        kind, place = self._called(index).removesuffix("_next"), self._iterator(index)
        made = self._made_before(part, f"{kind}_new", place)
        if place is None or not made or part & made or not self._ends_with_null(index, part):
            return UNBOUNDED
        if kind == "bpf_iter_scx_dsq":
            return QUEUED_TASKS + 1
        return max(map(self.rounds, made)) + 1 if kind == "bpf_iter_num" else UNBOUNDED

    def _made_before(self, part: frozenset[int], maker: str, place: int | None) -> set[int]:
        """The calls that may have made the iterator in a stack slot when a loop is reached; those in the loop, too."""
        made: set[int] = set()
        seen, waiting = set(part), list(part)
        while waiting:
            for before in self.code.entered_from(waiting.pop()):
                if self._called(before) == maker and self._iterator(before) == place:
                    made.add(before)
                elif before not in seen:
                    seen.add(before)
                    waiting.append(before)
        return made

    def _iterator(self, index: int) -> int | None:
        return self.code.iterator_at(index)

    def _ends_with_null(self, index: int, part: frozenset[int]) -> bool:
        """Whether the loop is left when the call returns NULL: the next branch asks for that."""
        holders, index = {0}, index + 1
        while index in part or index < len(self.code.ops):
            op = self.code.ops[index]
            if op.kind == "branch":
                if op.dst not in holders or op.from_register or op.raw.imm or op.name not in ("eq", "ne"):
                    return False
                return (op.target if op.name == "eq" else index + 1) not in part
            if op.kind == "jump":
                index = op.target
                continue
            if op.kind == "alu" and op.name == "mov" and op.from_register and op.bits == 64 and op.src in holders:
                holders.add(op.dst)
            elif op.kind in ("alu", "load", "imm64"):
                holders.discard(op.dst)
            elif op.kind not in _CLEAR_OF_REGISTERS:
                return False
            index += 1
        return False


def _components(code: Code, part: Collection[int]) -> Iterator[list[int]]:
    """Yield the strongly connected components of a part, each after those that it leads to (Tarjan's algorithm)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    open_nodes: list[int] = []
    is_open: set[int] = set()
    for start in sorted(part):
        if start in number:
            continue
        stack = [(start, iter(code.next_of(start)))]
        number[start] = low[start] = len(number)
        open_nodes.append(start)
        is_open.add(start)
        while stack:
            index, following = stack[-1]
            after = next(following, None)
            if after is None:
                stack.pop()
                if stack:
                    low[stack[-1][0]] = min(low[stack[-1][0]], low[index])
                if low[index] == number[index]:
                    component: list[int] = []
                    while not component or component[-1] != index:
                        component.append(open_nodes.pop())
                        is_open.discard(component[-1])
                    yield component
            elif after not in part:
                continue
            elif after not in number:
                number[after] = low[after] = len(number)
                open_nodes.append(after)
                is_open.add(after)
                stack.append((after, iter(code.next_of(after))))
            elif after in is_open:
                low[index] = min(low[index], number[after])
