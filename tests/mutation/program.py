"""A policy as the operators see it: one text with the queue headers written into it, and its syntax tree."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.build.compile import BPF_INCLUDE
from kernel_bpf.build.target import KernelTarget
from schedagent.core.policies.policy import PolicyInfo
from tests.mutation.syntax import Kind, Node, parse

INLINED = ("queues.bpf.h", "vtime.bpf.h")
"""Headers that hold scheduling logic; the others only name kfuncs and types."""

_INCLUDE = re.compile(r'#include "([^"]+)"')


@dataclass(frozen=True)
class Place:
    """Where a line of the text comes from."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Function:
    """One function with a body.

    Args:
        name: as the source spells it, without the prefix that BPF_PROG gives.
        body: its compound statement.
        callbacks: the callbacks of the ops struct from which it is reached, without the policy's name: "enqueue".
    """

    name: str
    body: Node
    callbacks: frozenset[str]


@dataclass(frozen=True)
class Call:
    """One call that is written out in the text, not made by a macro."""

    function: Function
    node: Node
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Program:
    """A policy ready to be mutated."""

    info: PolicyInfo
    text: str
    places: tuple[Place, ...]
    functions: tuple[Function, ...]

    def code(self, node: Node) -> str:
        """The text of a node."""
        return self.text[node.start : node.end]

    def place(self, offset: int) -> Place:
        """The file and line of an offset."""
        return self.places[self.text.count("\n", 0, offset)]

    def reached_from(self, *callbacks: str) -> Iterator[Function]:
        """The functions that one of these callbacks is or calls; all that any callback reaches, if none is named."""
        for function in self.functions:
            if function.callbacks & set(callbacks) or (not callbacks and function.callbacks):
                yield function

    def calls(self, names: Iterable[str], functions: Iterable[Function] | None = None) -> Iterator[Call]:
        """The calls of these functions, named without a ___suffix."""
        wanted = set(names)
        for function in self.reached_from() if functions is None else functions:
            for node in function.body.walk():
                if node.kind is Kind.CALL and plain(node.name) in wanted and self.is_written(node):
                    yield Call(function, node, _arguments(node))

    def is_written(self, call: Node) -> bool:
        """Whether a call stands in the text as such."""
        return self.code(call).startswith(call.name)


def plain(name: str) -> str:
    """The name of a kfunc without the ___suffix that libbpf drops."""
    return name.partition("___")[0] or name


def read_program(info: PolicyInfo, target: KernelTarget, cache_dir: Path | None = None) -> Program:
    """Read and parse a policy; raise CompileError if it is not C."""
    lines = _inline(info.source, info.source.name, set())
    text = "".join(line for line, _place in lines)
    nodes = parse(text, info.source.name, target, cache_dir)
    return Program(info, text, tuple(place for _line, place in lines), _functions(nodes, text, info.name))


def _inline(path: Path, name: str, seen: set[str]) -> list[tuple[str, Place]]:
    """The lines of a file with the headers of INLINED in place of their first inclusion."""
    lines: list[tuple[str, Place]] = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        include = _INCLUDE.match(line)
        if include and include[1] in seen:
            continue
        if include and include[1] in INLINED:
            seen.add(include[1])
            lines += _inline(BPF_INCLUDE / include[1], include[1], seen)
        else:
            lines.append((line, Place(name, number)))
    return lines


def _functions(nodes: Iterable[Node], text: str, policy: str) -> tuple[Function, ...]:
    bodies: dict[str, Node] = {}
    for node in nodes:
        for body in node.children if node.kind is Kind.FUNCTION else ():
            if body.kind is Kind.COMPOUND and text[body.start] == "{":  # BPF_PROG writes others
                bodies[node.name.removeprefix("____")] = body
    mentioned = {name: _names(body) & set(bodies) for name, body in bodies.items()}
    callbacks = [name for name in bodies if name.startswith(f"{policy}_")]
    reach = {name.removeprefix(f"{policy}_"): _closure(name, mentioned) for name in callbacks}
    return tuple(
        Function(name, body, frozenset(callback for callback, reached in reach.items() if name in reached))
        for name, body in bodies.items()
    )


def _names(body: Node) -> set[str]:
    """Every name in a body: what it calls, and what it hands on as a callback."""
    return {node.name for node in body.walk()}


def _closure(root: str, mentioned: dict[str, set[str]]) -> frozenset[str]:
    reached, waiting = {root}, [root]
    while waiting:
        for name in mentioned[waiting.pop()] - reached:
            reached.add(name)
            waiting.append(name)
    return frozenset(reached)


@functools.cache
def _arguments(call: Node) -> tuple[Node, ...]:
    """The arguments: all children but the first, which names the function."""
    return call.children[1:]
