"""C source to BPF object: clang with fixed flags, limited in time and memory, cached by content.

The same source, headers, target and clang give the same bytes, wherever the files lie: no path gets into the object.
May import: kernel_bpf.target and schedagent.core.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
import re
import shlex
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kernel_bpf.target import KernelTarget, find_bpftool
from schedagent.core import proc
from schedagent.core.artifact import PolicyArtifact
from schedagent.core.errors import CompileError, SetupError, UsageError

log = logging.getLogger(__name__)

BPF_INCLUDE = Path(__file__).resolve().parent / "bpf" / "include"
TESTED_CLANG = 19
OLDEST_CLANG = 16

_FLAGS = (
    *("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-std=gnu11"),
    *("-fno-color-diagnostics", "-fno-crash-diagnostics", "-fdebug-compilation-dir=."),
)
"""v3 because clang 19 refuses 32-bit atomics below it; -g because CO-RE and the loader live on BTF."""

_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
_CPU_LIMIT_S = 60
_WALL_LIMIT_S = 300.0
_MEMORY_LIMIT_BYTES = 2 << 30
_LIMIT_SIGNALS = (signal.SIGXCPU, signal.SIGKILL)
_SHOWN_LINES = 60


def compile_policy(
    source: Path,
    name: str,
    target: KernelTarget,
    *,
    include_dirs: Sequence[Path] = (),
    cache_dir: Path | None = None,
) -> PolicyArtifact:
    """Compile one policy for one kernel.

    Args:
        name: policy name, for the artifact.
        include_dirs: searched after the policy headers and before the kernel's vmlinux.h.
        cache_dir: compiled objects are kept in its subfolder objects; None keeps none.

    Raises:
        UsageError: the source cannot be read.
        CompileError: clang refused it, with clang's own lines, or used more than its share of time or memory.
        SetupError: there is no usable clang.
    """
    try:
        text = source.read_bytes()
    except OSError as error:
        raise UsageError(f"policy source {source} cannot be read: {error.strerror}") from None
    command = _command(source, target, include_dirs)
    entry = _entry(cache_dir, text, source, command) if cache_dir else None
    compiled = _recall(entry) if entry else None
    if compiled is None:
        object_bytes, said, read_files = _run_clang(source, command)
        compiled = object_bytes, said
        if entry:
            _remember(entry, object_bytes, said, [path for path in read_files if path != source])
    return PolicyArtifact(name, compiled[0], hashlib.sha256(text).hexdigest(), target.btf_build_id, compiled[1])


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
    raise SetupError(f"no clang from {OLDEST_CLANG} on is installed", "run: make setup")


def _command(source: Path, target: KernelTarget, include_dirs: Sequence[Path]) -> list[str]:
    """The whole command line but for its output files."""
    clang, _version = find_clang()
    machine = platform.machine()
    command = ["prlimit", f"--as={_MEMORY_LIMIT_BYTES}", f"--cpu={_CPU_LIMIT_S}", str(clang), *_FLAGS]
    command.append(f"-D__TARGET_ARCH_{_ARCHITECTURES.get(machine, machine)}")
    command += [f"-I{folder}" for folder in (BPF_INCLUDE, *include_dirs)]
    command += ["-isystem", str(target.header_dir)]  # warnings in a generated header are nobody's
    names = {
        Path("/usr"): "usr",
        target.header_dir: "kernel",
        BPF_INCLUDE: "include",
        **dict.fromkeys(include_dirs, "include"),
        source.parent: ".",
    }
    command += [f"-ffile-prefix-map={folder}={name}" for folder, name in names.items()]
    return [*command, "-c", str(source)]


def _run_clang(source: Path, command: Sequence[str]) -> tuple[bytes, str, list[Path]]:
    """Return the object, what clang said, and every file it read."""
    with tempfile.TemporaryDirectory(prefix="schedagent-clang-") as folder:
        output, dependencies = Path(folder, "policy.o"), Path(folder, "policy.d")
        ran = proc.run([*command, "-o", output, "-MD", "-MF", dependencies], timeout_s=_WALL_LIMIT_S)
        said = ran.stderr.decode(errors="replace").strip()
        if -ran.returncode in _LIMIT_SIGNALS:
            raise CompileError(f"clang was stopped on {source}: more than {_CPU_LIMIT_S} s of CPU time")
        if ran.returncode != 0 and "LLVM ERROR: out of memory" in said:
            raise CompileError(f"clang was stopped on {source}: more than {_MEMORY_LIMIT_BYTES >> 20} MiB of memory")
        if ran.returncode != 0:
            lines = said.splitlines()
            shown = "\n".join(lines[:_SHOWN_LINES])
            more = f"\n... and {len(lines) - _SHOWN_LINES} more lines" if len(lines) > _SHOWN_LINES else ""
            raise CompileError(f"{source} does not compile:\n{shown or f'exit status {ran.returncode}'}{more}")
        return _without_dwarf(output), said, _read_dependencies(dependencies.read_text())


def _without_dwarf(compiled: Path) -> bytes:
    """Return the object as libbpf's linker writes it: the same programs and BTF, but a tenth of the size."""
    linked = compiled.with_name("linked.o")
    ran = proc.run([find_bpftool(), "gen", "object", linked, compiled], timeout_s=_WALL_LIMIT_S)
    if ran.returncode != 0:
        raise CompileError(f"bpftool cannot link the object: {ran.stderr.decode(errors='replace').strip()}")
    return linked.read_bytes()


def _read_dependencies(rule: str) -> list[Path]:
    """The prerequisites of the make rule that clang -MD writes."""
    _output, *files = shlex.split(rule.replace("\\\n", " ").replace("$$", "$"))
    return [Path(file) for file in files]


def _entry(cache_dir: Path, text: bytes, source: Path, command: Sequence[str]) -> Path:
    """The cache file for this source, this place (quoted includes look beside it), this command and this clang."""
    parts = [hashlib.sha256(text).hexdigest(), str(source.resolve()), list(command), find_clang()[1]]
    return cache_dir / "objects" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _recall(entry: Path) -> tuple[bytes, str] | None:
    """Return object and log from a cache file, None if it is missing or damaged, or any header changed since."""
    try:
        header, _newline, object_bytes = entry.read_bytes().partition(b"\n")
        known = json.loads(header)
        if hashlib.sha256(object_bytes).hexdigest() != known["object"]:
            log.warning("the compiled policy in %s is damaged: compiling anew", entry)
            return None
        if any(_digest(Path(path)) != digest for path, digest in known["headers"].items()):
            return None
        return object_bytes, str(known["log"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remember(entry: Path, object_bytes: bytes, said: str, headers: Sequence[Path]) -> None:
    """Write a cache file beside its place and rename it; a full or read-only disk costs only the next run's time."""
    known = {
        "object": hashlib.sha256(object_bytes).hexdigest(),
        "headers": {str(path): _digest(path) for path in headers},
        "log": said,
    }
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=entry.parent) as folder:
            partial = Path(folder, entry.name)
            partial.write_bytes(json.dumps(known).encode() + b"\n" + object_bytes)
            partial.rename(entry)
    except OSError as error:
        log.warning("cannot keep the compiled policy: %s", error)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
