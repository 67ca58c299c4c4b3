"""C source to BPF object: clang with fixed flags, in the sandbox, cached by content.

The same source, headers, target and clang give the same bytes, wherever the files lie: inside the sandbox they always
lie at the same places.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kernel_bpf import BPF
from kernel_bpf.build import sandbox
from kernel_bpf.build.externs import kfuncs, with_own_names
from kernel_bpf.build.inlined import inlined_calls
from kernel_bpf.build.source import read_source
from kernel_bpf.build.target import KernelTarget, features, find_bpftool
from schedagent.core.errors import CompileError, SetupError, UsageError
from schedagent.core.installation import this_installation
from schedagent.core.policies.artifact import InlinedCall, PolicyArtifact
from schedagent.core.policies.renamed import advice_on
from schedagent.core.process import proc
from schedagent.core.retention.folder import mark_used, trim
from schedagent.core.retention.limits import RETENTION
from schedagent.core.terminal.printable import printable

log = logging.getLogger(__name__)

BPF_INCLUDE = BPF / "include"
TESTED_CLANG = 19
OLDEST_CLANG = 16
KERNEL_FOLDER = "kernel"
"""Where clang finds vmlinux.h: a name inside the sandbox, and in clang's messages."""

LIMITS = sandbox.SandboxLimits()
_LINKED_LIMIT_BYTES = 64 << 20
"""Of what the linker writes: each part may bring a MiB of zeros for its arena, and an object that is too large to be
deployed is refused with its size."""

_FLAGS = (
    *("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-std=gnu11"),
    "-Wno-incompatible-function-pointer-types",
    *("-fno-color-diagnostics", "-fno-crash-diagnostics", "-fdebug-compilation-dir=.", "-ffile-prefix-map=/usr=usr"),
)
"""v3 because clang 19 refuses 32-bit atomics below it; -g because CO-RE and the loader live on BTF. Callbacks that the
macros of libbpf write take their context, whatever the ops struct says: upstream compiles them with this flag, too."""

_CALLBACK_FLAGS = {
    "cgroup_init": "HAVE_CGROUP_OPS",
    "cgroup_set_bandwidth": "HAVE_CGROUP_SET_BANDWIDTH",
    "cgroup_set_idle": "HAVE_CGROUP_SET_IDLE",
}
"""Callbacks that not every kernel has (CONFIG_EXT_GROUP_SCHED; since 6.17; since 6.19), and what our headers know them
by: no initializer can name a member that the target's ops struct lacks."""

_SYSTEM_INCLUDE = "/usr/include"
_SYSTEM_HEADERS = (
    *("bpf", "linux", "asm-generic", "asm", "bits", "sys/cdefs.h", "sys/types.h", "sys/select.h"),
    *("errno.h", "string.h", "strings.h", "stdint.h", "inttypes.h", "limits.h", "endian.h"),
    *("features.h", "features-time64.h", "stdc-predef.h"),
)
"""What policies written elsewhere include of /usr/include: the interfaces of libbpf and the kernel, and of libc the
headers that need no library. Some lie in the folder of the architecture, which clang does not search for BPF."""

_LIBC_STUBS = "gnu/stubs.h"
"""What features.h asks for which functions are stubs: libc has one for each word size, and none for BPF."""

_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
ENTRY = re.compile("[0-9a-f]{32}")
"""Names of compiled policies in their folder of the cache."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*\.c", re.ASCII)
_UNQUOTED_SPACE = re.compile(r"(?<!\\)\s+")
_UNQUOTE = re.compile(r"(?:\\|\$)([ #$])")
_SHOWN_LINES = 60
_SHOWN_BYTES = 16384


def compile_policy(
    source: Path,
    name: str,
    target: KernelTarget,
    *,
    include_dirs: Sequence[Path] = (),
    parts: Sequence[Path] = (),
    cache_dir: Path | None = None,
) -> PolicyArtifact:
    """Compile one policy for one kernel.

    The source is the only file of its folder that clang can see: what it includes must be in one of `include_dirs`,
    ours, the kernel's, or the system's BPF headers.

    Args:
        name: policy name, for the artifact.
        include_dirs: searched before our headers, so that an author's common.bpf.h is the author's own.
        parts: further sources, each compiled by itself; libbpf's linker makes one object of all.
        cache_dir: compiled objects are kept in its subfolder objects; None keeps none.

    Raises:
        UsageError: a source, or a folder of headers, cannot be used.
        CompileError: it is no C text, clang or the linker refused it, with their own lines, or it took more than its
            share.
        SetupError: there is no usable clang, or no sandbox to run it in.
    """
    texts = [read_source(path) for path in (source, *parts)]
    settings = [prepare(path.name, target, include_dirs) for path in (source, *parts)]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda text, setting: _compiled(text, setting, cache_dir), texts, settings))
    digests = [hashlib.sha256(text).hexdigest() for text in texts]
    whole = _linked(objects) if parts else objects[0]
    digest = hashlib.sha256(" ".join(digests).encode()).hexdigest() if parts else digests[0]
    return PolicyArtifact(name, whole.content, digest, target.btf_build_id, whole.messages, whole.inlined)


def _compiled(text: bytes, setting: Setting, cache_dir: Path | None) -> Compiled:
    """Return the object of one source, from the cache if it is there."""
    entry = _entry(cache_dir, text, setting) if cache_dir else None
    compiled = _recall(entry) if entry else None
    if compiled is None:
        compiled, read_files = _run_clang(text, setting)
        if entry:
            _remember(entry, compiled, [setting.outside(file) for file in read_files if file != setting.source])
    return compiled


class StoppedError(CompileError):
    """Clang reached a limit of its sandbox."""


class Compiled(NamedTuple):
    """An object, what clang printed, and where it inlined calls."""

    content: bytes
    messages: str
    inlined: tuple[InlinedCall, ...]


@functools.cache
def find_clang() -> tuple[Path, str]:
    """Return clang and its version line: the tested release if it is installed, else the newest that can do it.

    Raises:
        SetupError: there is none from OLDEST_CLANG on.
    """
    newer = range(TESTED_CLANG + 20, OLDEST_CLANG - 1, -1)
    for candidate in (f"clang-{TESTED_CLANG}", *(f"clang-{number}" for number in newer), "clang"):
        path = shutil.which(candidate)
        if path is None:
            continue
        version = proc.run([path, "--version"], timeout_s=30).stdout.decode(errors="replace").partition("\n")[0]
        number = re.search(r"version (\d+)", version)
        if number and int(number.group(1)) >= OLDEST_CLANG:
            return Path(path), version
    raise SetupError(f"no clang from {OLDEST_CLANG} on is installed", this_installation().how_to_set_up())


@dataclass(frozen=True)
class Setting:
    """How clang is called for one source, and what it sees.

    Args:
        clang: the program.
        flags: everything but the source and the output, with the paths of the inside.
        source: file name of the source, which lies in the folder clang starts in.
        folders: path inside -> folder of headers.
    """

    clang: Path
    flags: tuple[str, ...]
    source: str
    folders: Mapping[str, Path]

    def outside(self, file: str) -> Path:
        """Return the path on this machine of a file that clang read."""
        place = PurePosixPath(sandbox.WORKPLACE, file)
        for folder, shown in self.folders.items():
            if place.is_relative_to(folder):
                return shown / place.relative_to(folder)
        return Path(place)

    def run(
        self,
        text: bytes,
        arguments: Sequence[str],
        *,
        reads: Mapping[str, Path] | None = None,
        writes: Mapping[str, Path] | None = None,
        limits: sandbox.SandboxLimits | None = None,
    ) -> sandbox.Ran:
        """Run clang on a source.

        Args:
            arguments: in addition to the flags.
            reads, writes: further files, by their names in the folder clang starts in.

        Raises:
            CompileError: clang was stopped, or crashed.
        """
        with tempfile.TemporaryDirectory(prefix="schedagent-source-") as folder:
            copy = Path(folder, "source")
            copy.write_bytes(text)
            ran = sandbox.run(
                self.clang,
                [*self.flags, *arguments, "--", self.source],
                reads={**self.folders, **_placed({**(reads or {}), self.source: copy})},
                writes=_placed(writes or {}),
                limits=limits or LIMITS,
            )
        if ran.stopped:
            raise StoppedError(f"clang was stopped on {self.source}: {ran.stopped}")
        if ran.crashed:
            raise CompileError(f"clang crashed on {self.source}", "simplify the source: less nesting")
        return ran


def _placed(files: Mapping[str, Path]) -> dict[str, Path]:
    return {f"{sandbox.WORKPLACE}/{name}": path for name, path in files.items()}


def prepare(source_name: str, target: KernelTarget, include_dirs: Sequence[Path]) -> Setting:
    """Return how to call clang.

    Raises:
        UsageError: a folder of headers is none, or is the whole machine.
        SetupError: there is no clang.
    """
    for folder in include_dirs:
        if not folder.is_dir():
            raise UsageError(f"folder of headers {folder} is not there")
        if folder.resolve() == Path("/"):
            raise UsageError("headers from / would show every file to a source", "give the folder they are in")
    clang = find_clang()[0].resolve()
    machine = platform.machine()
    resources = _resource_folder(clang)
    searched = {f"include{number}": path for number, path in enumerate(include_dirs, 1)} | {"include": BPF_INCLUDE}
    flags = [*_FLAGS, f"-resource-dir={resources}", f"-D__TARGET_ARCH_{_ARCHITECTURES.get(machine, machine)}"]
    flags += [f"-I{name}" for name in searched]
    flags += _callback_flags(target)
    flags += ["-isystem", KERNEL_FOLDER]  # warnings in a generated header are nobody's
    folders = {f"{sandbox.WORKPLACE}/{name}": path.resolve() for name, path in searched.items()}
    folders[f"{sandbox.WORKPLACE}/kernel"] = target.header_dir
    name = source_name if _PLAIN_NAME.fullmatch(source_name) else "policy.bpf.c"
    folders[f"{resources}/include"] = resources / "include"
    return Setting(clang, tuple(flags), name, folders | _system_headers())


def _callback_flags(target: KernelTarget) -> list[str]:
    """What our headers know of the target's callbacks: of types that are no kernel's, nothing."""
    try:
        known = features(target)
    except SetupError:
        return []
    return [f"-D{name}" for member, name in _CALLBACK_FLAGS.items() if f"sched_ext_ops.{member}" in known]


@functools.cache
def _resource_folder(clang: Path) -> Path:
    """Return the folder of clang's own headers, which it could not find in the sandbox by itself."""
    printed = proc.run([clang, "--print-resource-dir"], timeout_s=30).stdout.decode(errors="replace")
    return Path(printed.strip())


def _system_headers() -> dict[str, Path]:
    """What is there of _SYSTEM_HEADERS, and our gnu/stubs.h: path inside -> file or folder."""
    roots = (Path(_SYSTEM_INCLUDE), Path(_SYSTEM_INCLUDE, f"{platform.machine()}-linux-gnu"))
    headers = {
        f"{_SYSTEM_INCLUDE}/{name}": _where_it_lies(path)
        for name in _SYSTEM_HEADERS
        for path in (root / name for root in roots)
        if path.exists()
    }
    return {**headers, f"{_SYSTEM_INCLUDE}/{_LIBC_STUBS}": BPF / "libc" / _LIBC_STUBS}


def _where_it_lies(headers: Path) -> Path:
    """Return the folder whose files a folder of headers only links to, as Debian's linux-libc-dev has it for asm."""
    first = next((entry for entry in sorted(headers.glob("*.h"))), headers)
    return first.resolve().parent if first.is_symlink() else headers


def _run_clang(text: bytes, setting: Setting) -> tuple[Compiled, list[str]]:
    """Return what came of it, and every file that clang read, by its path inside."""
    with tempfile.TemporaryDirectory(prefix="schedagent-clang-") as folder:
        output, dependencies = Path(folder, "policy.o"), Path(folder, "policy.d")
        dependencies.touch()
        arguments = ["-c", "-o", "-", "-MD", "-MT", "policy.o", "-MF", dependencies.name]
        ran = setting.run(text, arguments, writes={dependencies.name: dependencies})
        messages = shown(ran.stderr)
        if ran.status != 0:
            raise CompileError(
                f"{setting.source} does not compile:\n{messages or f'status {ran.status}'}", _hint(messages)
            )
        output.write_bytes(ran.stdout)
        compiled = Compiled(_without_dwarf(output), messages, inlined_calls(ran.stdout))
        return compiled, _read_dependencies(dependencies.read_text(errors="replace"))


def _hint(messages: str) -> str:
    """Say what to do about what clang does not know."""
    if "file not found" in messages:
        return "give the folder of the header, be it that of the source, with --include DIR"
    return advice_on(messages)


def shown(printed: bytes) -> str:
    """Return what clang printed, fit for a terminal: no control characters, and only as much as anybody reads."""
    lines = printable(printed[:_SHOWN_BYTES].decode(errors="replace")).strip().splitlines()
    shown_lines = [line for line in lines if not line.startswith("In file included from ")]  # up to 200 for one error
    more = ["... and more"] if len(shown_lines) > _SHOWN_LINES or len(printed) > _SHOWN_BYTES else []
    return "\n".join([*shown_lines[:_SHOWN_LINES], *more])


def _linked(objects: Sequence[Compiled]) -> Compiled:
    """Return several objects as one; of a function whose name two of them have, nobody knows where it was inlined."""
    with tempfile.TemporaryDirectory(prefix="schedagent-link-") as folder:
        files = [Path(folder, f"part{number}.o") for number in range(len(objects))]
        taken: set[bytes] = set()
        for number, (file, part) in enumerate(zip(files, objects, strict=True)):
            file.write_bytes(with_own_names(part.content, taken, f"part{number}"))
            taken |= kfuncs(part.content)
        content = _without_dwarf(*files)
    owners = Counter(name for part in objects for name in {call.function for call in part.inlined})
    inlined = tuple(call for part in objects for call in part.inlined if owners[call.function] == 1)
    return Compiled(content, "\n".join(part.messages for part in objects if part.messages), inlined)


def _without_dwarf(*compiled: Path) -> bytes:
    """Return objects as libbpf's linker makes one of them: the same programs and BTF, but a tenth of the size."""
    linked = compiled[0].with_name("linked.o")
    linked.touch()
    inside = {path: f"{sandbox.WORKPLACE}/{path.name}" for path in (*compiled, linked)}
    ran = sandbox.run(
        Path(find_bpftool()),
        ["gen", "object", inside[linked], *(inside[path] for path in compiled)],
        reads={inside[path]: path for path in compiled},
        writes={inside[linked]: linked},
        limits=replace(LIMITS, output_bytes=_LINKED_LIMIT_BYTES),
    )
    if ran.status != 0:
        raise CompileError(f"bpftool cannot link the object: {shown(ran.stderr) or ran.stopped or ran.status}")
    return linked.read_bytes()


def _read_dependencies(rule: str) -> list[str]:
    """The prerequisites of the make rule that clang -MD writes."""
    joined = rule.partition(":")[2].replace("\\\n", " ")
    return [_UNQUOTE.sub(r"\1", file) for file in _UNQUOTED_SPACE.split(joined) if file]


def _entry(cache_dir: Path, text: bytes, setting: Setting) -> Path:
    """The cache file for this source, these flags and folders, and this clang."""
    folders = {name: str(path) for name, path in setting.folders.items()}
    parts = [hashlib.sha256(text).hexdigest(), setting.source, setting.flags, folders, find_clang()[1]]
    return cache_dir / "objects" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _recall(entry: Path) -> Compiled | None:
    """Return what a cache file holds, None if it is missing or damaged, or any header changed since."""
    try:
        header, _newline, object_bytes = entry.read_bytes().partition(b"\n")
        known = json.loads(header)
        if hashlib.sha256(object_bytes).hexdigest() != known["object"]:
            log.warning("the compiled policy in %s is damaged: compiling again", entry)
            return None
        if any(_digest(Path(path)) != digest for path, digest in known["headers"].items()):
            return None
        inlined = tuple(InlinedCall(*call) for call in known["inlined"])
        mark_used(entry)
        return Compiled(object_bytes, str(known["log"]), inlined)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remember(entry: Path, compiled: Compiled, headers: Sequence[Path]) -> None:
    """Write a cache file beside its place and rename it; a full or read-only disk costs only the next run's time."""
    try:
        known = {
            "object": hashlib.sha256(compiled.content).hexdigest(),
            "headers": {str(path): _digest(path) for path in headers},
            "log": compiled.messages,
            "inlined": [astuple(call) for call in compiled.inlined],
        }
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=entry.parent) as folder:
            partial = Path(folder, entry.name)
            partial.write_bytes(json.dumps(known).encode() + b"\n" + compiled.content)
            partial.rename(entry)
        trim(entry.parent, ENTRY, RETENTION["objects"])
    except OSError as error:
        log.warning("cannot keep the compiled policy: %s", error)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
