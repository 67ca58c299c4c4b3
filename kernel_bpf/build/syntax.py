"""The syntax tree of a policy as clang sees it: after the preprocessor, with types, and with the place of every node.

    tree = parse_source(text, "fifo.bpf.c", target, cache_dir=cache)
    for node in tree.walk():
        if node.kind == "GCCAsmStmt": ...

clang writes the tree as JSON, in the sandbox it also compiles in; here it is only data. The kernel's types are left out
of it by a precompiled header of vmlinux.h, which is made once per kernel and clang. (It is of no use for objects: clang
19 writes no BTF for an extern kfunc declared in a precompiled header, and bpftool refuses such an object.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kernel_bpf.build import sandbox
from kernel_bpf.build.compile import KERNEL_FOLDER, LIMITS, Setting, find_clang, prepare, shown
from kernel_bpf.build.source import check_source_text
from kernel_bpf.build.target import KernelTarget
from schedagent.core.errors import CompileError, SetupError
from schedagent.core.retention.folder import mark_used, trim
from schedagent.core.retention.limits import RETENTION

log = logging.getLogger(__name__)

TREE_LIMIT_BYTES = 48 << 20
"""A policy of 400 lines makes 2 MiB of JSON; 48 MiB are some 0.5 GiB of Python objects."""

_DUMP = ("-w", "-fsyntax-only", "-Xclang", "-ast-dump=json")
_CHECK = ("-w", "-fsyntax-only")
_PREPROCESS = ("-w", "-E", "-dD")
_PRECOMPILED = "vmlinux.pch"
_VARIANTS = ((), ("-DBPF_NO_KFUNC_PROTOTYPES=",))
"""How vmlinux.h is precompiled: as it is, and without its prototypes of kfuncs (the macro is bpftool's)."""

_BUFFERS = frozenset({"<built-in>", "<command line>", "<scratch space>"})
"""What clang calls text that lies in no file."""

_HEADER = "vmlinux.h"
ENTRY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.pch")
"""Names of precompiled headers in their folder of the cache."""
_WORTH_PRECOMPILING_BYTES = 1 << 20


@dataclass(frozen=True)
class SourcePlace:
    """A place in a file, by its name inside the sandbox; for what a macro wrote, the place where it is used.

    Args:
        file: "fifo.bpf.c", "include/common.bpf.h", "include1/..." for the first further folder, "/usr/include/...".
        line, column: from 1.
        offset, length: of the token, in bytes.
    """

    file: str
    line: int
    column: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Node:
    """A declaration, statement, expression or attribute, as clang's JSONNodeDumper writes it."""

    raw: Mapping[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        """clang's name of its class: FunctionDecl, CallExpr; empty for a part that is not there (an omitted `else`)."""
        return str(self.raw.get("kind", ""))

    @property
    def name(self) -> str:
        """The name declared; of a member expression, the member's; of a reference, the name of what it refers to."""
        return str(self.raw.get("name") or self.raw.get("referencedDecl", {}).get("name", ""))

    @property
    def id(self) -> str:
        """clang's number of the node; `refers_to` names declarations by it."""
        return str(self.raw.get("id", ""))

    @property
    def refers_to(self) -> Node:
        """The declaration that an expression names, without its parts; an empty node if it names none."""
        return Node(self.raw.get("referencedDecl", {}))

    @property
    def type(self) -> str:
        """Its C type as written; empty for statements."""
        return str(self.raw.get("type", {}).get("qualType", ""))

    @property
    def canonical_type(self) -> str:
        """Its C type without typedefs."""
        return str(self.raw.get("type", {}).get("desugaredQualType", self.type))

    @property
    def children(self) -> list[Node]:
        """Its parts, in the order of the source."""
        return [Node(part) for part in self.raw.get("inner", ())]

    @property
    def place(self) -> SourcePlace:
        """Where it stands; of a declaration, where its name does."""
        return _place(self.raw.get("loc") or self.raw.get("range", {}).get("begin", {}), "expansionLoc")

    @property
    def begin(self) -> SourcePlace:
        """Where its first token stands."""
        return _place(self.raw.get("range", {}).get("begin", {}), "expansionLoc")

    @property
    def end(self) -> SourcePlace:
        """Where its last token stands; the text ends at offset + length."""
        return _place(self.raw.get("range", {}).get("end", {}), "expansionLoc")

    @property
    def spelled(self) -> SourcePlace:
        """Where its first token was written: in the body of the macro, if a macro wrote it."""
        return _place(self.raw.get("range", {}).get("begin", {}), "spellingLoc")

    def walk(self) -> Iterator[Node]:
        """Yield the node and everything in it, outer before inner, in the order of the source."""
        waiting = [self.raw]
        while waiting:
            raw = waiting.pop()
            yield Node(raw)
            waiting.extend(reversed(raw.get("inner", ())))


@dataclass(frozen=True)
class Macro:
    """A macro without parameters, where it is defined, and the tokens it stands for."""

    name: str
    body: str
    file: str
    line: int


@dataclass(frozen=True)
class Tree:
    """A policy's syntax tree.

    Args:
        source: the source's name in places.
        declarations: at file level, those of its headers too; of the kernel's, only those that the source repeats.
        macros: those defined by the source and its headers.
        renamed: a place where a #line directive makes other names for places than the true ones, if there is one.
    """

    source: str
    declarations: tuple[Node, ...] = field(repr=False)
    macros: tuple[Macro, ...] = field(repr=False)
    renamed: SourcePlace | None = None

    def walk(self) -> Iterator[Node]:
        """Yield every node."""
        for declaration in self.declarations:
            yield from declaration.walk()


def parse_source(
    text: bytes,
    file_name: str,
    target: KernelTarget,
    *,
    include_dirs: Sequence[Path] = (),
    cache_dir: Path | None = None,
) -> Tree:
    """Parse a policy for one kernel, as `compile_policy` would.

    Args:
        cache_dir: precompiled headers are kept in its subfolder pch; None keeps none.

    Raises:
        CompileError: it is not C, or too large or too deeply nested to be looked at.
        SetupError: there is no usable clang, or no sandbox to run it in.
    """
    check_source_text(text)
    setting = prepare(file_name, target, include_dirs)
    with ThreadPoolExecutor(1) as other:
        preprocessed = other.submit(_preprocess, text, setting)
        content = _dump(text, setting, target, cache_dir)
        macros = tuple(_macros(preprocessed.result()))
    renamed = _fill_in(content)
    return Tree(setting.source, tuple(Node(raw) for raw in content.get("inner", ())), macros, renamed)


def _dump(text: bytes, setting: Setting, target: KernelTarget, cache_dir: Path | None) -> dict[str, Any]:
    """Return the tree as JSON, with the kernel's types left out if that can be.

    The precompiled header comes first, whatever the source includes. One that declares kfuncs itself clashes with its
    prototypes, one that declares kernel types with all of it: the first way that clang accepts is taken.
    """
    limits = replace(LIMITS, output_bytes=TREE_LIMIT_BYTES)
    with tempfile.TemporaryDirectory(prefix="schedagent-pch-") as folder:
        for variant in _VARIANTS:
            ours = replace(setting, flags=(*setting.flags, *variant))
            precompiled = _precompile(ours, target, cache_dir / "pch" if cache_dir else Path(folder))
            if precompiled is None:
                break
            arguments = ["-include-pch", _PRECOMPILED, *_DUMP]
            ran = ours.run(text, arguments, reads={_PRECOMPILED: precompiled}, limits=limits)
            if ran.status == 0:
                return _tree(ran.stdout, setting)
    ran = setting.run(text, _CHECK, limits=limits)  # a wrong source must not be answered with the kernel's whole tree
    if ran.status == 0:
        ran = setting.run(text, _DUMP, limits=limits)
    if ran.status != 0:
        raise CompileError(f"{setting.source} does not compile:\n{shown(ran.stderr)}")
    return _tree(ran.stdout, setting)


def _tree(dumped: bytes, setting: Setting) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(dumped)
    except RecursionError:
        raise CompileError(f"{setting.source} is nested too deeply to be checked", "split its expressions") from None
    return tree


def _precompile(setting: Setting, target: KernelTarget, folder: Path) -> Path | None:
    """Return the precompiled vmlinux.h, making it if need be; None if it is not worth it, or cannot be made.

    Only the kernel's own header goes into it, in a run of its own: no candidate can have a part in it.
    """
    header = target.header_dir / _HEADER
    status = header.stat()
    if status.st_size < _WORTH_PRECOMPILING_BYTES:
        return None
    own_flags = [flag for flag in setting.flags if not flag.startswith("-I")]
    parts = [find_clang()[1], own_flags, target.btf_build_id, status.st_size, status.st_mtime_ns]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    kept = _sound(folder, key)
    if kept:
        return kept
    limits = replace(LIMITS, output_bytes=256 << 20)
    arguments = [*own_flags, "-w", "-x", "c-header", "-o", "-", "--", f"{KERNEL_FOLDER}/{_HEADER}"]
    ran = sandbox.run(setting.clang, arguments, reads=setting.folders, limits=limits)
    if ran.status != 0:
        raise SetupError(f"the types of kernel {target.release} cannot be parsed: {shown(ran.stderr)}")
    place = folder / f"{key}-{hashlib.sha256(ran.stdout).hexdigest()[:32]}.pch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as beside:
            partial = Path(beside, place.name)
            partial.write_bytes(ran.stdout)
            partial.rename(place)
        trim(folder, ENTRY, RETENTION["headers"])
    except OSError as error:
        log.warning("cannot keep the precompiled kernel types: %s", error)
        return None
    return place


def _sound(folder: Path, key: str) -> Path | None:
    """Return the precompiled header with this key whose digest is that in its name; remove one that is damaged."""
    for place in folder.glob(f"{key}-*.pch"):
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if place.stem == f"{key}-{digest[:32]}":
            mark_used(place)
            return place
        log.warning("the precompiled kernel types in %s are damaged: making them again", place)
        place.unlink(missing_ok=True)
    return None


def _fill_in(tree: dict[str, Any]) -> SourcePlace | None:
    """Write file and line into every location; return one that a #line directive renamed.

    clang leaves both out where they are those of the location it printed before. Not recursive: sources may be deep.
    """
    file, line, renamed = "", 0, None
    waiting: list[Any] = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and "offset" in value:
            file, line = value.setdefault("file", file), value.setdefault("line", line)
            if renamed is None and _is_renamed(value):
                renamed = _place(value, "")
        else:
            parts = list(value.values()) if isinstance(value, dict) else value
            waiting.extend(part for part in reversed(parts) if isinstance(part, dict | list))
    return renamed


def _is_renamed(location: Mapping[str, Any]) -> bool:
    """Whether a #line directive renamed a place; of clang's own buffers, as of the macros it predefines, clang does."""
    return ("presumedFile" in location or "presumedLine" in location) and location["file"] not in _BUFFERS


def _place(location: Mapping[str, Any], which: str) -> SourcePlace:
    bare = location.get(which, location)
    return SourcePlace(
        str(bare.get("file", "")),
        int(bare.get("line", 0)),
        int(bare.get("col", 0)),
        int(bare.get("offset", 0)),
        int(bare.get("tokLen", 0)),
    )


def _preprocess(text: bytes, setting: Setting) -> str:
    """Return the source after the preprocessor, with its macro definitions; an empty header stands for the kernel's."""
    with tempfile.TemporaryDirectory(prefix="schedagent-empty-") as folder:
        Path(folder, _HEADER).write_text("#define __VMLINUX_H__\n")
        bare = replace(setting, folders={**setting.folders, f"{sandbox.WORKPLACE}/{KERNEL_FOLDER}": Path(folder)})
        ran = bare.run(text, _PREPROCESS)
    return ran.stdout.decode(errors="replace")


def _macros(preprocessed: str) -> Iterator[Macro]:
    """Yield the macros without parameters that a preprocessed text defines.

    Lines that say where the next one comes from read: # LINE "FILE" FLAGS.
    """
    file, line = "", 0
    for text in preprocessed.split("\n"):
        if text.startswith("# ") and text.count('"') >= 2:
            number, file, _flags = text[2:].split('"', 2)
            line = int(number)
            continue
        if text.startswith("#define ") and not file.startswith("<"):
            name, _space, body = text.removeprefix("#define ").partition(" ")
            if "(" not in name:
                yield Macro(name, body, file.removeprefix("./"), line)
        line += 1
