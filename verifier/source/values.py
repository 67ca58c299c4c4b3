"""What expressions of a syntax tree are worth, and which arguments are slices or DSQ ids, wrappers followed.

Only what is certain: an expression of literals, constants and tunables; a local variable that is set once. Everything
else has no value here, and the checks on the compiled object have the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum

from kernel_bpf.build.syntax import Node, Tree

U64 = (1 << 64) - 1


class Role(StrEnum):
    """What an argument of an insert means."""

    SLICE = "slice"
    DSQ = "DSQ id"


KFUNC_ROLES: Mapping[str, Mapping[int, Role]] = {
    "scx_bpf_dsq_insert": {1: Role.DSQ, 2: Role.SLICE},
    "scx_bpf_dsq_insert_vtime": {1: Role.DSQ, 2: Role.SLICE},
    "scx_bpf_dispatch": {1: Role.DSQ, 2: Role.SLICE},
    "scx_bpf_dispatch_vtime": {1: Role.DSQ, 2: Role.SLICE},
    "scx_bpf_dsq_move": {2: Role.DSQ},
    "scx_bpf_dsq_move_vtime": {2: Role.DSQ},
    "scx_bpf_dsq_move_set_slice": {1: Role.SLICE},
    "scx_bpf_dsq_move_to_local": {0: Role.DSQ},
    "scx_bpf_consume": {0: Role.DSQ},
    "scx_bpf_create_dsq": {0: Role.DSQ},
    "scx_bpf_dsq_nr_queued": {0: Role.DSQ},
    "scx_bpf_task_set_slice": {1: Role.SLICE},
}
"""kfunc, argument number from 0, role (kernel/sched/ext.c, 6.12 to 7.3)."""

Argument = tuple[str, Node, Role]
"""The function a call is in, the argument, and what it means to whom it reaches in the end."""

_TRANSPARENT = frozenset({"ParenExpr", "ImplicitCastExpr", "CStyleCastExpr", "ConstantExpr", "FullExpr"})
_MUTATING_UNARY = frozenset({"++", "--", "&"})

_BINARY: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left // right,
    "%": lambda left, right: left % right,
    "|": lambda left, right: left | right,
    "&": lambda left, right: left & right,
    "^": lambda left, right: left ^ right,
    "<<": lambda left, right: left << (right & 63),
    ">>": lambda left, right: left >> (right & 63),
}


def bare(expression: Node) -> Node:
    """Return what stands inside parentheses and casts."""
    while expression.kind in _TRANSPARENT and expression.children:
        expression = expression.children[-1]
    return expression


def kfunc_name(name: str) -> str:
    """Return a function's name without the ___suffix that libbpf drops."""
    return name if name.startswith("___") else name.partition("___")[0]


def call_parts(call: Node) -> tuple[str, list[Node]]:
    """Return the name of what a CallExpr calls (empty if it is computed), and the arguments."""
    callee, *arguments = call.children
    target = bare(callee)
    return (target.name if target.kind == "DeclRefExpr" else ""), arguments


def is_tunable(declaration: Node) -> bool:
    """Whether a declaration at file level is a number that the loader may set: a `const volatile` integer."""
    words = declaration.canonical_type.split()
    return declaration.kind == "VarDecl" and words[:2] == ["const", "volatile"] and _is_integer(words[2:])


def _is_integer(words: list[str]) -> bool:
    return bool(words) and set(words) <= {"unsigned", "signed", "char", "short", "int", "long", "_Bool", "bool"}


class Values:
    """What is known of a tree's variables; asks for values of expressions."""

    def __init__(self, tree: Tree) -> None:
        declared = (node for node in tree.declarations if node.place.file == tree.source)
        self.tunables = {node.id: node for node in declared if is_tunable(node)}
        self._initial: dict[str, Node] = {}
        self._changed: set[str] = set()
        for node in tree.walk():
            self._note(node)

    def _note(self, node: Node) -> None:
        if node.kind == "VarDecl" and "init" in node.raw:
            parts = [child for child in node.children if not child.kind.endswith("Attr")]
            self._initial[node.id] = parts[0]
        elif _writes(node):
            self._changed.add(bare(node.children[0]).refers_to.id)

    def value(self, expression: Node, tunables: int | None = None) -> int | None:
        """Return the value of an expression as a u64, None if it is not certain.

        Args:
            tunables: the value that every tunable is taken to have; None leaves expressions of tunables uncertain.
        """
        node = self.origin(expression)
        worth: int | None = None
        if node.kind in {"IntegerLiteral", "CharacterLiteral"}:
            worth = int(node.raw["value"])
        elif node.kind == "DeclRefExpr":
            worth = tunables if node.refers_to.id in self.tunables else None
        elif node.kind == "UnaryOperator" and node.raw.get("opcode") in {"-", "~", "+"}:
            inner = self.value(node.children[0], tunables)
            signs = {"-": -1, "+": 1}
            worth = (
                None if inner is None else ~inner if node.raw["opcode"] == "~" else signs[node.raw["opcode"]] * inner
            )
        elif node.kind == "BinaryOperator" and node.raw.get("opcode") in _BINARY:
            left, right = (self.value(child, tunables) for child in node.children)
            if left is not None and right is not None and not (right == 0 and node.raw["opcode"] in {"/", "%"}):
                worth = _BINARY[node.raw["opcode"]](left, right)
        return None if worth is None else worth & U64

    def origin(self, expression: Node) -> Node:
        """Return the expression that a variable set once was set to, else the expression without casts."""
        node = bare(expression)
        for _ in range(16):  # int a = b, b = a is possible
            initial = self._initial.get(node.refers_to.id) if node.kind == "DeclRefExpr" else None
            if initial is None or node.refers_to.id in self._changed | self.tunables.keys():
                break
            node = bare(initial)
        return node

    def tunables_in(self, expression: Node) -> list[Node]:
        """Return the declarations of the tunables that an expression of arithmetic is made of."""
        node = self.origin(expression)
        if node.kind == "DeclRefExpr" and node.refers_to.id in self.tunables:
            return [self.tunables[node.refers_to.id]]
        if node.kind == "BinaryOperator":
            return [tunable for child in node.children for tunable in self.tunables_in(child)]
        return []


def _writes(node: Node) -> bool:
    if not node.children:
        return False
    if node.kind == "UnaryOperator":
        return node.raw.get("opcode") in _MUTATING_UNARY
    return node.kind == "CompoundAssignOperator" or (node.kind == "BinaryOperator" and node.raw.get("opcode") == "=")


def roles(tree: Tree, values: Values) -> Iterator[Argument]:
    """Yield every argument of a call that is a slice or a DSQ id in the end.

    A function that hands a parameter on, as it is, gives that parameter the role.
    """
    functions = [node for node in tree.declarations if node.kind == "FunctionDecl" and _body(node)]
    calls = [(function, *call_parts(call)) for function in functions for call in function.walk() if _is_call(call)]
    known: dict[str, dict[int, Role]] = {}
    grown = True
    while grown:
        grown = False
        for function, callee, arguments in calls:
            for number, role in _roles_of(callee, known).items():
                place = _parameter(function, arguments[number], values) if number < len(arguments) else None
                if place is not None and place not in known.setdefault(function.name, {}):
                    known[function.name][place] = role
                    grown = True
    for function, callee, arguments in calls:
        for number, role in _roles_of(callee, known).items():
            if number < len(arguments):
                yield function.name, arguments[number], role


def _is_call(node: Node) -> bool:
    return node.kind == "CallExpr" and bool(node.children)


def _body(function: Node) -> bool:
    return any(child.kind == "CompoundStmt" for child in function.children)


def _roles_of(callee: str, known: Mapping[str, Mapping[int, Role]]) -> Mapping[int, Role]:
    return known.get(callee) or KFUNC_ROLES.get(kfunc_name(callee), {})


def _parameter(function: Node, argument: Node, values: Values) -> int | None:
    """Return the number of the function's parameter that an argument is, None if it is none."""
    node = values.origin(argument)
    parameters = [child.id for child in function.children if child.kind == "ParmVarDecl"]
    wanted = node.refers_to.id
    return parameters.index(wanted) if node.kind == "DeclRefExpr" and wanted in parameters else None
