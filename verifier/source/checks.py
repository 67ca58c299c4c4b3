"""The rules on what only the source shows: tunables without a range, copied constants, tasks known by name.

    findings = check_source(text, "fifo.bpf.c", target, tunables=info.tunables)

The rest of the rules is checked on the compiled object, where nothing can be disguised. Prototypes that are not the
kernel's need no check: clang refuses them if the names are the same, else libbpf does when the object is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from kernel_bpf.build.compile import KERNEL_FOLDER, StoppedError
from kernel_bpf.build.syntax import Macro, Node, SourcePlace, Tree, parse_source
from kernel_bpf.build.target import KernelTarget, features
from schedagent.core.errors import CompileError
from schedagent.core.policies.policy import Standing, Tunable
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Finding, Severity
from verifier.source.values import Argument, Role, Values, bare, call_parts, roles

SLICE_MIN_NS, SLICE_MAX_NS = 100_000, 100_000_000
BUILTIN_DSQ = 1 << 63
_NAMES = 29
"""The rule that tasks told apart by their names may break."""

_GPL = ("GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
"""What license_is_gpl_compatible() of include/linux/license.h accepts."""

_TOO_LARGE = "its syntax tree is too large to be read: what only the source shows is not looked for, as in an object"
_UNLICENSED = 'there is no licence: char _license[] SEC("license") = "GPL";'

_DATA_SECTIONS = (
    ".data",
    ".rodata",
    ".bss",
    ".maps",
    "license",
    "version",
    ".ksyms",
    ".kconfig",
    ".struct_ops",
    ".addr_space",
)
_HIDING_ATTRIBUTES = {
    "AliasAttr": "alias",
    "IFuncAttr": "ifunc",
    "ConstructorAttr": "constructor",
    "DestructorAttr": "destructor",
    "NakedAttr": "naked",
    "WeakRefAttr": "weakref",
    "AsmLabelAttr": "asm label",
}
_ASSEMBLER_TEXT = "assembler in a function: what it does is not to be seen in C"
_ASSEMBLER = frozenset({"GCCAsmStmt", "MSAsmStmt"})
_TRUSTED_FOLDERS = ("include/", f"{KERNEL_FOLDER}/", "/usr/include/")
"""Folders in the sandbox that hold our headers, the kernel's types and what the system has; not an author's."""

_COMPARISONS = frozenset({"==", "!=", "<", ">", "<=", ">="})
_NUMBER_TOKENS = frozenset("0123456789abcdefxulABCDEFXUL()+-*/|&^~<> ")


def check_sources(
    sources: Sequence[tuple[str, bytes]],
    target: KernelTarget,
    *,
    tunables: Sequence[Tunable] = (),
    include_dirs: Sequence[Path] = (),
    cache_dir: Path | None = None,
    standing: Standing = Standing.DERIVED,
) -> tuple[Finding, ...]:
    """Check the sources of one policy, the first one's findings first; the licence may stand in any of them.

    Args:
        sources: file name and text of each.
        tunables, include_dirs, cache_dir, standing: as for `check_source`.

    Raises:
        CompileError, SetupError: as `check_source`.
    """

    def check(source: tuple[str, bytes]) -> tuple[Finding, ...]:
        name, text = source
        try:
            return check_source(
                text, name, target, tunables=tunables, include_dirs=include_dirs, cache_dir=cache_dir, standing=standing
            )
        except StoppedError:
            if standing is not Standing.FOREIGN:
                raise
            return (Finding(27, Severity.NOTE, "", name, 1, _TOO_LARGE, classed=FindingClass.HOUSE),)

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        checked = list(pool.map(check, sources))
    licensed = not all(any(map(_is_unlicensed, findings)) for findings in checked)
    unique = dict.fromkeys(each for findings in checked for each in findings if not (licensed and _is_unlicensed(each)))
    return tuple(unique)


def check_source(
    text: bytes,
    file_name: str,
    target: KernelTarget,
    *,
    tunables: Sequence[Tunable] = (),
    include_dirs: Sequence[Path] = (),
    cache_dir: Path | None = None,
    standing: Standing = Standing.DERIVED,
) -> tuple[Finding, ...]:
    """Check a policy's source, errors first, then by line.

    Args:
        tunables: those that are documented.
        include_dirs, cache_dir: as for `compile_policy`.
        standing: where the policy comes from: of ours, assembler is read by people.

    Raises:
        CompileError: it is not C, so nothing can be checked, or its #line directives lie about places.
        SetupError: there is no usable clang, or no sandbox to run it in.
    """
    tree = parse_source(text, file_name, target, include_dirs=include_dirs, cache_dir=cache_dir)
    if tree.renamed:
        raise CompileError(
            f"{tree.renamed.file}:{tree.renamed.line}: a #line directive renames this place",
            "remove it: findings must name the lines that people will look at",
        )
    assembler: Iterable[Finding] = () if standing is Standing.BUNDLED else check_assembler(tree)
    documented = {tunable.name: tunable for tunable in tunables}
    findings = check_tree(tree, features(target), documented)
    if standing is Standing.FOREIGN:
        findings = tuple(_as_input(finding) for finding in findings)
        assembler = (replace(finding, classed=FindingClass.HOUSE) for finding in assembler)
    return (*assembler, *findings)


def _as_input(finding: Finding) -> Finding:
    """Note names that a person's policy compares: what they decide is found in the object (rule 32), and told there."""
    return replace(finding, severity=Severity.NOTE, cleared_by="") if finding.rule == _NAMES else finding


def check_tree(tree: Tree, names: Iterable[str], documented: Mapping[str, Tunable]) -> tuple[Finding, ...]:
    """Return all findings on a syntax tree.

    Args:
        names: what the kernel's sched_ext has, see kernel_bpf.build.target.features.
        documented: tunables by name.
    """
    values = Values(tree)
    arguments = list(roles(tree, values))
    findings = [
        *_check_license(tree),
        *_check_slices(tree, values, arguments, documented),
        *_check_copied_constants(tree, frozenset(name for name in names if name.startswith("SCX_"))),
        *_check_written_out_dsqs(values, arguments),
        *_check_disguises(tree),
        *_check_task_names(tree),
    ]
    unique = {(finding.rule, finding.file, finding.line, finding.message): finding for finding in findings}
    return tuple(
        sorted(unique.values(), key=lambda finding: (finding.severity, finding.file, finding.line, finding.rule))
    )


def _error(rule: int, place: SourcePlace, message: str, where: str = "") -> Finding:
    return Finding(rule, Severity.ERROR, where, place.file, place.line, message)


# -- rule 27: what the kernel would refuse, or what hides from readers


def _check_license(tree: Tree) -> Iterator[Finding]:
    for node in tree.declarations:
        if _section(node) == "license":
            texts = [part.raw.get("value", "").strip('"') for part in node.walk() if part.kind == "StringLiteral"]
            if texts and texts[0] not in _GPL:
                yield _error(27, node.place, f"the licence is {texts[0]!r}, and sched_ext is for GPL programs only")
            return
    yield _error(27, SourcePlace(tree.source, 1, 1, 0, 0), _UNLICENSED)


def _is_unlicensed(finding: Finding) -> bool:
    return finding.message == _UNLICENSED


def _section(node: Node) -> str:
    sections = [child.raw.get("section_name", "") for child in node.children if child.kind == "SectionAttr"]
    return str(sections[-1]) if sections else ""


def _check_disguises(tree: Tree) -> Iterator[Finding]:
    for declaration in tree.declarations:
        if _is_system(declaration.place):
            continue
        yield from _check_section(declaration)
        for node in declaration.walk():
            if node.kind in _HIDING_ATTRIBUTES:
                attribute = _HIDING_ATTRIBUTES[node.kind]
                message = f"attribute {attribute} has no use in a policy, and hides what is called"
                yield _error(27, declaration.place, message, declaration.name)
            elif node.kind == "FileScopeAsmDecl":
                yield _error(27, node.place, "assembler outside of functions: its effect is not to be seen in C")


def check_assembler(tree: Tree) -> Iterator[Finding]:
    """Find assembler in functions, but for what macros of libbpf, the kernel and our own headers consist of.

    The place where the keyword was written decides, so no macro of the source's brings it in; what a macro pastes
    together was written nowhere. Places are true: a source with a #line directive is not read.
    """
    for node in tree.walk():
        if node.kind in _ASSEMBLER and not node.spelled.file.startswith(_TRUSTED_FOLDERS):
            yield _error(27, node.begin, _ASSEMBLER_TEXT)


def _check_section(node: Node) -> Iterator[Finding]:
    section = _section(node)
    if not section:
        return
    in_data = section.startswith(_DATA_SECTIONS)
    if node.kind == "FunctionDecl" and (in_data or section.startswith(".")) and section != ".ksyms":
        yield _error(27, node.place, f"a function in section {section!r}, which is not for programs", node.name)
    if node.kind == "VarDecl" and not in_data:
        yield _error(27, node.place, f"a variable in section {section!r}, which is not for data", node.name)
    if node.kind == "VarDecl" and section == ".maps" and not node.type.startswith("struct "):
        yield _error(27, node.place, f"section '.maps' holds maps, and this is of type {node.type}", node.name)


def _is_system(place: SourcePlace) -> bool:
    """Whether a place lies in a header of the system or of the kernel."""
    return place.file.startswith(("/", f"{KERNEL_FOLDER}/"))


# -- rule 24: slices made of tunables


def _check_slices(
    tree: Tree, values: Values, arguments: Sequence[Argument], documented: Mapping[str, Tunable]
) -> Iterator[Finding]:
    """Find slices that are a tunable, or arithmetic with one, and whose documented range does not keep the bounds."""
    slices = [(where, argument) for where, argument, role in arguments if role is Role.SLICE]
    for where, expression in [*slices, *_written_slices(tree)]:
        tunables, name = values.tunables_in(expression), where.removeprefix("____")
        for tunable in tunables:
            if tunable.name not in documented:
                message = f"tunable {tunable.name} is used as a slice unclamped, and its range is documented nowhere"
                yield _error(24, tunable.place, message, name)
        if len(tunables) == 1 and tunables[0].name in documented:  # of more, the compiled object's values are checked
            yield from _check_range(values, expression, tunables[0], documented[tunables[0].name], name)


def _check_range(values: Values, expression: Node, tunable: Node, known: Tunable, where: str) -> Iterator[Finding]:
    for bound, value in (("minimum", known.minimum), ("maximum", known.maximum)):
        slice_ns = values.value(expression, tunables=value)
        if slice_ns is not None and not SLICE_MIN_NS <= slice_ns <= SLICE_MAX_NS:
            message = f"with {tunable.name} at its {bound} of {value} the slice is {slice_ns} ns"
            yield _error(24, tunable.place, f"{message}, accepted: {SLICE_MIN_NS} to {SLICE_MAX_NS}", where)


def _written_slices(tree: Tree) -> Iterator[tuple[str, Node]]:
    """Yield what is assigned to p->scx.slice, with the function it is in."""
    for function in tree.declarations:
        for node in function.walk():
            if node.kind == "BinaryOperator" and node.raw.get("opcode") == "=":
                left, right = node.children
                if bare(left).kind == "MemberExpr" and _member(bare(left)) == "scx.slice":
                    yield function.name, right


def _member(expression: Node) -> str:
    """Return "outer.inner" of a member expression."""
    inner = bare(expression.children[0])
    return f"{inner.name}.{expression.name}" if inner.kind == "MemberExpr" else expression.name


# -- rule 2: constants of the kernel that were copied


def _check_copied_constants(tree: Tree, names: frozenset[str]) -> Iterator[Finding]:
    for macro in tree.macros:
        if macro.name in names and not macro.file.startswith("/") and _is_number(macro):
            message = f"{macro.name} is a copy: {macro.body}, whatever the kernel defines"
            yield Finding(2, Severity.ERROR, "", macro.file, macro.line, f"{message}; {_use(macro.name)}")
    yield from _check_copied_enumerators(tree, names)


def _check_written_out_dsqs(values: Values, arguments: Sequence[Argument]) -> Iterator[Finding]:
    for where, argument, role in arguments:
        number = values.value(argument)
        if role is Role.DSQ and number is not None and number & BUILTIN_DSQ and not _is_system(argument.begin):
            message = f"DSQ id {number:#x} has bit 63 set, which marks built-in ones; {_use('those')}"
            yield _error(2, argument.begin, message, where.removeprefix("____"))


def _check_copied_enumerators(tree: Tree, names: frozenset[str]) -> Iterator[Finding]:
    """Find uses of enumerators that the source declares itself, unless libbpf relocates them on request."""
    own = {
        node.id: enum
        for enum in tree.declarations
        if enum.kind == "EnumDecl" and not _is_system(enum.place) and "___" not in enum.name
        for node in enum.children
        if node.kind == "EnumConstantDecl" and node.name in names
    }
    if not own:
        return
    relocated = {
        part.id
        for node in tree.walk()
        if node.kind == "CallExpr" and node.children and call_parts(node)[0] == "__builtin_preserve_enum_value"
        for part in node.walk()
    }
    for node in tree.walk():
        if node.kind == "DeclRefExpr" and node.refers_to.id in own and node.id not in relocated:
            enum = own[node.refers_to.id]
            message = f"{node.name} is the source's own copy (line {enum.place.line}); {_use(node.name)}"
            yield _error(2, node.begin, message)


def _is_number(macro: Macro) -> bool:
    return bool(macro.body) and set(macro.body) <= _NUMBER_TOKENS


def _use(name: str) -> str:
    return f"use bpf_core_enum_value() for {name}"


# -- style: tasks recognised by their name


def _check_task_names(tree: Tree) -> Iterator[Finding]:
    """Find comparisons of task_struct.comm, and of what it was copied to."""
    for function in tree.declarations:
        if function.kind != "FunctionDecl" or _is_system(function.place):
            continue
        copies: set[str] = set()
        for node in function.walk():
            if node.kind == "CallExpr" and node.children:
                callee, arguments = call_parts(node)
                if any(_names_task(argument, set()) for argument in arguments):
                    copies |= {part.refers_to.id for argument in arguments for part in _references(argument)}
                compared = "cmp" in callee and any(_names_task(argument, copies) for argument in arguments)
            else:
                compared = node.raw.get("opcode") in _COMPARISONS and _names_task(node, copies)
            if compared:
                message = "tasks are told apart by their name; take their class from a map that the loader fills"
                where = function.name.removeprefix("____")
                place = node.begin
                yield Finding(_NAMES, Severity.WARNING, where, place.file, place.line, message, cleared_by="starvation")
                break


def _names_task(node: Node, copies: set[str]) -> bool:
    """Whether an expression holds a task's name, or a variable that it was copied to."""
    return any(
        (part.kind == "MemberExpr" and part.name == "comm")
        or (part.kind == "DeclRefExpr" and part.refers_to.id in copies)
        for part in node.walk()
    )


def _references(node: Node) -> Iterator[Node]:
    """Yield the references to arrays of characters in an expression: what a name may be copied to."""
    return (part for part in node.walk() if part.kind == "DeclRefExpr" and part.type.startswith("char["))
