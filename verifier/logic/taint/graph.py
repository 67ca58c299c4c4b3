"""The control flow of one function in blocks: what leads where, and which branches decide whether a block runs.

Control dependence after Ferrante, Ottenstein and Warren, "The program dependence graph and its use in optimization",
ACM TOPLAS 9(3), 1987: a block depends on a branch that it does not postdominate from, but that it is reached through.
"""

from __future__ import annotations

from dataclasses import dataclass

from verifier.logic.walk.code import Code

_EXIT = -1


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other.

    Args:
        start, end: indexes into the function's operations, the end excluded.
        following: numbers of the blocks that may come next.
        controllers: blocks whose last operation decides whether this one runs.
    """

    number: int
    start: int
    end: int
    following: tuple[int, ...]
    controllers: tuple[int, ...] = ()

    @property
    def repeats(self) -> bool:
        """Whether its last operation decides if it runs again: it leaves a loop, or ends it early."""
        return self.number in self.controllers


def blocks_of(code: Code) -> tuple[Block, ...]:
    """Return the blocks of a function in an order in which each comes after one that leads to it."""
    starts = _starts(code)
    end_of = dict(zip(starts, [*starts[1:], len(code.ops)], strict=True))
    reached = _order({start: code.next_of(end_of[start] - 1) for start in starts})
    number_of = {start: number for number, start in enumerate(reached)}
    following = [
        tuple(dict.fromkeys(number_of[after] for after in code.next_of(end_of[start] - 1))) for start in reached
    ]
    controllers = _controllers(following)
    return tuple(
        Block(number, start, end_of[start], following[number], tuple(sorted(controllers[number])))
        for number, start in enumerate(reached)
    )


def _starts(code: Code) -> list[int]:
    starts = {0}
    for index, op in enumerate(code.ops):
        if op.kind in ("jump", "branch", "may_goto", "exit"):
            starts.update(code.next_of(index))
            if index + 1 < len(code.ops):
                starts.add(index + 1)
    return sorted(starts)


def _order(following: dict[int, tuple[int, ...]]) -> list[int]:
    """Reverse postorder from the entry; what nothing leads to is left out."""
    seen, order = {0}, []
    stack = [(0, iter(following[0]))]
    while stack:
        node, rest = stack[-1]
        after = next(rest, None)
        if after is None:
            order.append(node)
            stack.pop()
        elif after not in seen:
            seen.add(after)
            stack.append((after, iter(following[after])))
    return order[::-1]


def _controllers(following: list[tuple[int, ...]]) -> list[set[int]]:
    """For each block, the branches that decide whether it runs."""
    after = _postdominators(following)
    controllers: list[set[int]] = [set() for _block in following]
    for branch, targets in enumerate(following):
        if len(targets) < 2:
            continue
        for target in targets:
            node = target
            while node not in (after[branch], _EXIT):
                controllers[node].add(branch)
                node = after[node]
    return controllers


def _postdominators(following: list[tuple[int, ...]]) -> list[int]:
    """For each block, the next one that every way from it goes through; _EXIT if there is none.

    Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm", on the reversed graph. From a loop without an end
    nothing leads to the exit; the kernel's verifier refuses such a program, and here it simply has no postdominator.
    """
    backward: list[list[int]] = [[] for _block in following]
    for node, targets in enumerate(following):
        for target in targets:
            backward[target].append(node)
    ends = [node for node, targets in enumerate(following) if not targets]
    order, seen = [], set(ends)
    stack = [(node, iter(backward[node])) for node in ends]
    for entry in stack.copy():
        chain = [entry]
        while chain:
            node, rest = chain[-1]
            before = next(rest, None)
            if before is None:
                order.append(node)
                chain.pop()
            elif before not in seen:
                seen.add(before)
                chain.append((before, iter(backward[before])))
    order.reverse()
    rank = {node: place for place, node in enumerate(order)}
    rank[_EXIT] = -1
    after: dict[int, int] = dict.fromkeys(ends, _EXIT)
    changed = True
    while changed:
        changed = False
        for node in order:
            if not following[node]:
                continue
            known = [target for target in following[node] if target in after]
            if not known:
                continue
            nearest = known[0]
            for other in known[1:]:
                nearest = _common(nearest, other, after, rank)
            if after.get(node) != nearest:
                after[node], changed = nearest, True
    return [after.get(node, _EXIT) for node in range(len(following))]


def _common(first: int, second: int, after: dict[int, int], rank: dict[int, int]) -> int:
    while first != second:
        if rank[first] > rank[second]:
            first = after[first]
        else:
            second = after[second]
    return first
