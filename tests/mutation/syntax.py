"""A policy's syntax tree as the operators need it: few kinds of nodes, and where each lies in the text.

Made from `kernel_bpf.build.syntax`, which places every node of clang's tree by its first and its last token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kernel_bpf.build import syntax
from kernel_bpf.build.target import KernelTarget


class Kind(StrEnum):
    """The nodes that the operators look at, by clang's names."""

    FUNCTION = "FunctionDecl"
    CALL = "CallExpr"
    BINARY = "BinaryOperator"
    COMPOUND_ASSIGNMENT = "CompoundAssignOperator"
    COMPOUND = "CompoundStmt"
    IF = "IfStmt"
    RETURN = "ReturnStmt"
    OTHER = ""


@dataclass(frozen=True)
class Node:
    """One node: what it is, the name that it declares, calls or refers to, and where it lies in the text.

    What comes out of a macro lies where the macro is used.
    """

    kind: Kind
    name: str
    start: int
    end: int
    children: tuple[Node, ...] = field(repr=False, default=())

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order of the text."""
        yield self
        for child in self.children:
            yield from child.walk()


def parse(text: str, file_name: str, target: KernelTarget, cache_dir: Path | None = None) -> tuple[Node, ...]:
    """Return what a source declares itself, not what the headers do that it includes.

    Raises:
        CompileError: it is not C.
        SetupError: there is no usable clang.
    """
    tree = syntax.parse_source(text.encode("ascii"), file_name, target, cache_dir=cache_dir)
    return tuple(_node(node, text) for node in tree.declarations if node.begin.file == tree.source)


def _node(node: syntax.Node, text: str) -> Node:
    children = tuple(_node(child, text) for child in node.children if child.kind)
    kind = Kind(node.kind) if node.kind in Kind.__members__.values() else Kind.OTHER
    name = children[0].name if kind is Kind.CALL else node.name or _only_name(children)
    last = node.end
    return Node(kind, name, node.begin.offset, _behind(text, last.offset + last.length), children)


def _only_name(children: tuple[Node, ...]) -> str:
    """The name that casts and parentheses are wrapped around."""
    return children[0].name if len(children) == 1 else ""


def _behind(text: str, end: int) -> int:
    """The end of a token, or of the arguments if it names a macro that has some."""
    if not text[end - 1].isidentifier() or text[end : end + 1] != "(":
        return end
    depth = 0
    for offset in range(end, len(text)):
        depth += {"(": 1, ")": -1}.get(text[offset], 0)
        if depth == 0:
            return offset + 1
    return end
