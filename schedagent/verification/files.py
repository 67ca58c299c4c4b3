"""`schedagent verify FILE`: one policy, source or object, through every gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.policies.library import find_policy, policy_from_file
from schedagent.core.accept import is_cgroup
from schedagent.core.errors import UsageError
from schedagent.core.policies.policy import (
    DECLARABLE,
    READABLE,
    READS_PREFIX,
    CandidatePolicy,
    PolicyInfo,
    is_acceptable,
)
from schedagent.core.policies.rodata import load_rodata
from schedagent.core.settings import Settings
from schedagent.core.token import Scope
from schedagent.core.verification import GateResult, VerificationReport
from schedagent.run.opening import open_local_verifier, open_remote_verifier, whole_library
from verifier.microvm.topology import FLAT_NAME, SHAPED, Topology
from verifier.pipeline import Verifier
from verifier.proving.prove import Depth
from verifier.service.client import RemoteVerifier
from verifier.submission import declared_tunables


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Args:
        include_dirs: extra header folders.
        assignments: "tunable=value".
        kernel: release of the only kernel to use; empty for all of the cache.
        scope: "full", "partial" or "partial:/a/cgroup".
        depth: "quick", "standard", "thorough" or "deep".
        static_only: stop before the first gate that needs a VM.
        fresh: do not use a cached report.
        html: file to write the report to.
        object_file: file to write the compiled object to, if it passed every gate.
        parts: further sources that are linked with the first.
        rodata: file with what the policy's own loader would set.
        accepts: what is accepted of the policy by name, see core.policies.policy.is_acceptable.
        topologies: shapes to prove it on besides the flat guest, or "flat" for none; empty for the verifier's choice.
    """

    include_dirs: tuple[Path, ...] = ()
    assignments: tuple[str, ...] = ()
    kernel: str = ""
    scope: str = "full"
    depth: str = "standard"
    static_only: bool = False
    fresh: bool = False
    html: Path | None = None
    object_file: Path | None = None
    accepts: tuple[str, ...] = ()
    parts: tuple[Path, ...] = ()
    rodata: Path | None = None
    topologies: tuple[str, ...] = ()


def verify_file(
    settings: Settings, file: Path, options: VerifyOptions, on_gate: Callable[[GateResult], None]
) -> VerificationReport:
    """Take a policy through every gate.

    Args:
        file: a file, or the name of a policy of the library.
        on_gate: called with each gate's result as it comes.

    Raises:
        UsageError: the file, a folder, a tunable, the scope or the depth cannot be used.
        SetupError: there is no such kernel, or a tool is missing.
    """
    check_options(options)
    info = with_files(find(settings, file).accepting(options.accepts), options.parts, options.rodata)
    if (options.include_dirs or options.parts) and info.is_object:
        option = "--include" if options.include_dirs else "--with"
        raise UsageError(f"{option} is for a source, and {file} is compiled already", "leave it out")
    for folder in options.include_dirs:
        if not folder.is_dir():
            raise UsageError(f"--include {folder} is not a directory")
    for option, path in (("--html", options.html), ("--object", options.object_file)):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no such folder")
    scope, cgroup = read_scope(options.scope)
    values = read_assignments(options.assignments)
    if info.documented:
        info.configured(values)  # a wrong one is an error before a kernel is looked for
    verifier = dataclasses.replace(
        choose_verifier(settings, options),
        include_dirs=options.include_dirs,
        scope=scope,
        cgroup=cgroup,
        on_gate=on_gate,
    )
    if values and not info.documented:
        info = dataclasses.replace(info, tunables=declared_tunables(verifier.compile(info)))
    candidate = CandidatePolicy(info.name, info.configured(values))
    verified = verifier.verify(candidate, info)
    if options.html:
        write_html(verified.report, options.html)
    if options.object_file and verified.report.passed and verified.artifact:
        write_object(verified.artifact.object_bytes, options.object_file)
    return verified.report


def with_files(info: PolicyInfo, parts: Sequence[Path], rodata: Path | None) -> PolicyInfo:
    """Return a policy with further sources, and with what its own loader would set; raise UsageError if one of the
    files cannot be used.
    """
    for part in parts:
        if part.suffix != ".c" or not part.is_file():
            raise UsageError(f"--with {part} is no C source that is there", "give the sources of one scheduler")
    values = load_rodata(rodata) if rodata else info.rodata
    return dataclasses.replace(info, parts=(*info.parts, *parts), rodata=values)


def check_options(options: VerifyOptions) -> None:
    """Raise UsageError for what nobody can accept, and for an option that would have no effect: --static stops before
    the gates it is about.
    """
    for word in options.accepts:
        if not is_acceptable(word):
            known = ", ".join((*DECLARABLE, *(f"{READS_PREFIX}{name}" for name in READABLE)))
            raise UsageError(f"--accept {word!r} is nothing that can be accepted", f"use one of: {known}")
    if not options.static_only:
        return
    for given, option, reason in (
        (options.object_file, "--object", "is written only after all gates"),
        (options.scope != VerifyOptions.scope, "--scope", "is of the token, which is issued only after all gates"),
        (options.depth != VerifyOptions.depth, "--depth", "is of the proving ground, which does not run"),
        (options.topologies, "--topology", "is of the proving ground, which does not run"),
    ):
        if given:
            raise UsageError(f"{option} {reason}", f"leave out --static, or {option}")


def find(settings: Settings, file: Path) -> PolicyInfo:
    """Return a policy by its file; what is no file but could be a name is looked up in the library."""
    name = str(file)
    if name == "-":
        raise UsageError("a policy is verified from a file, whose name it has, not from stdin", "give NAME.bpf.c")
    if not file.exists() and name.isidentifier():
        return find_policy(name, whole_library(settings))
    return policy_from_file(file)


def choose_verifier(settings: Settings, options: VerifyOptions) -> Verifier | RemoteVerifier:
    """Return the service that the settings name, or that is installed; not if only static gates run, which need no key.

    Raises:
        UsageError: the depth is not known, or is for the service to choose.
    """
    depth, topologies = read_depth(options.depth), read_topologies(options.topologies)
    only = dataclasses.replace(settings, kernel_release=options.kernel) if options.kernel else settings
    service = None if options.static_only else settings.verifier_service
    if service:
        if depth is not Depth.STANDARD or options.fresh or options.topologies:
            raise UsageError(
                "the verifier service decides on depth, topologies and cached reports itself",
                "leave out --depth, --topology and --fresh",
            )
        return open_remote_verifier(service, settings, options.kernel)
    verifier = open_local_verifier(
        only, all_kernels=not (options.kernel or options.static_only), sign=not options.static_only
    )
    report_cache = None if options.fresh else verifier.report_cache
    return dataclasses.replace(
        verifier, depth=depth, static_only=options.static_only, report_cache=report_cache, topologies=topologies
    )


def read_assignments(assignments: Sequence[str]) -> dict[str, int]:
    """Read "tunable=value" words; raise UsageError on one that is malformed, or sets a tunable again."""
    values: dict[str, int] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name in values:
            raise UsageError(f"--set {name} is given twice", "give each tunable one value")
        try:
            values[name] = int(text, 0)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"--set {assignment!r} is not tunable=number", "for example --set slice_us=5000")
    return values


def read_depth(text: str) -> Depth:
    """Read --depth; raise UsageError unless it is one."""
    try:
        return Depth[text.upper()]
    except KeyError:
        known = ", ".join(depth.name.lower() for depth in Depth)
        raise UsageError(f"--depth {text!r} is not known", f"use one of: {known}") from None


def read_topologies(words: Sequence[str]) -> tuple[Topology, ...] | None:
    """Read the words of --topology; None if there are none.

    Raises:
        UsageError: one of them is no topology, or they contradict each other.
    """
    if FLAT_NAME in words and set(words) != {FLAT_NAME}:
        raise UsageError(
            f"--topology {FLAT_NAME} means no other guest than the flat one",
            f"leave it out: with --topology {SHAPED} a policy is proved on the flat guest, too",
        )
    try:
        named = dict.fromkeys(Topology.parse(word) for word in words if word != FLAT_NAME)
    except ValueError as error:
        raise UsageError(f"--topology: {error}", f"or {FLAT_NAME}, for no other guest than the flat one") from None
    return tuple(named) if words else None


def read_scope(text: str) -> tuple[Scope, str]:
    """Read --scope; raise UsageError unless it is full, partial or partial:/a/cgroup."""
    scope, colon, cgroup = text.partition(":")
    if scope not in ("full", "partial") or (colon and (scope == "full" or not is_cgroup(cgroup))):
        raise UsageError(f"--scope {text!r} is not a scope", "use full, partial or partial:/a/cgroup")
    return Scope(scope), cgroup


def write_object(content: bytes, path: Path) -> None:
    """Write the object that the token is for; raise UsageError if the file cannot be written."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"--object {path} cannot be written: {error.strerror}") from None


def write_html(report: VerificationReport, path: Path) -> None:
    """Write the report as HTML; raise UsageError if the file cannot be written."""
    from schedagent.verification.html import to_html

    try:
        path.write_text(to_html(report), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {path} cannot be written: {error.strerror}") from None
