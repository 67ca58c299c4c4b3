"""A fault as edits of a policy's text, and the few ways in which operators write one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.mutation.program import Program
from tests.mutation.syntax import Node


@dataclass(frozen=True)
class Edit:
    """Replace text[start:end]."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Fault:
    """One fault: edits that belong together, and what they do, in words."""

    edits: tuple[Edit, ...]
    what: str


Operator = Callable[[Program], Iterator[Fault]]


def replaced(node: Node, text: str, what: str) -> Fault:
    """Another text in place of a node."""
    return Fault((Edit(node.start, node.end, text),), what)


def at_top(program: Program, callback: str, code: str, what: str) -> Iterator[Fault]:
    """Statements at the top of a callback, if the policy has it."""
    for function in program.functions:
        if function.name == f"{program.info.name}_{callback}":
            yield Fault((Edit(function.body.start + 1, function.body.start + 1, code),), what)


def edit_match(program: Program, pattern: str, text: str, what: str) -> Iterator[Fault]:
    """Replace the first match of a pattern, if there is one."""
    match = re.search(pattern, program.text)
    if match:
        yield Fault((Edit(match.start(), match.end(), text),), what)
