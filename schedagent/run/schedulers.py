"""What --scheduler names: a policy of the library, a source of the user's, or a program with a loader of its own."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agents.execution import Verifier
from kernel_bpf.build.source import read_source
from kernel_bpf.policies.library import policy_from_file
from kernel_bpf.policies.manifest import write_manifest
from kernel_bpf.policies.programs import InstalledPrograms, known_programs, read_program
from schedagent.core.errors import PolicyError, UsageError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.policies.rodata import load_rodata
from schedagent.core.verification import Verified

MOST_SCHEDULERS = 16
"""Each takes a run of the workload in every block of the race."""

_EXAMPLES = "accepted: a policy of the library, a source NAME.bpf.c, a program of PATH with its arguments in quotes"
_REASON = "it was named"


def read_schedulers(
    words: Sequence[str], library: Mapping[str, PolicyInfo], installed: InstalledPrograms
) -> tuple[Proposal, ...]:
    """Return what the values of --scheduler name, in their order.

    Raises:
        UsageError: one names nothing, or nothing that can be tried; one is named twice; or there are too many.
    """
    named = tuple(read_scheduler(word, library, installed) for word in words)
    for number, proposal in enumerate(named):
        if proposal in named[:number]:
            raise UsageError(f"--scheduler {words[number]!r} is given twice", "a scheduler is one arm")
    if len(named) > MOST_SCHEDULERS:
        raise UsageError(f"--scheduler is given {len(named)} times", f"accepted: at most {MOST_SCHEDULERS}")
    return named


def read_scheduler(word: str, library: Mapping[str, PolicyInfo], installed: InstalledPrograms) -> Proposal:
    """Return what one value of --scheduler names; see read_schedulers."""
    try:
        first, *arguments = shlex.split(word)
    except ValueError:
        raise UsageError(f"--scheduler {word!r} names nothing", _EXAMPLES) from None
    if not word.isprintable():
        raise UsageError(f"--scheduler {word!r} holds what cannot be printed", _EXAMPLES)
    if not arguments and first in library:
        return Proposal(Origin.CONFIGURE, first, reason=_REASON)
    if first.endswith((".c", ".o")):
        return _brought(word, _place(first), arguments)
    if "/" in first:
        return _started(_place(first), arguments)
    path = installed.find(first)
    if path is None:
        raise _unknown(first, library)
    return _started(path, arguments)


def _place(text: str) -> Path:
    """Return a path as a shell would take it; a ~name that is no user's stands for itself."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _started(path: Path, arguments: Sequence[str]) -> Proposal:
    program = read_program(path, tuple(arguments))
    return Proposal(Origin.PROGRAM, program.name, reason=_REASON, program=program)


def _brought(word: str, source: Path, arguments: Sequence[str]) -> Proposal:
    """Return a source as the run keeps it: by its text, so that what is measured is what was given."""
    match list(arguments):
        case []:
            rodata = None
        case ["--rodata", file]:
            rodata = load_rodata(Path(file).expanduser())
        case _:
            raise UsageError(f"--scheduler {word!r}: a source takes no arguments but --rodata FILE.toml", _EXAMPLES)
    if source.suffix == ".o":
        raise UsageError(f"--scheduler {word!r} is a compiled object", "give its source, NAME.bpf.c")
    try:
        info = policy_from_file(source)
        info = replace(info, rodata=rodata) if rodata is not None else info
        text = read_source(source).decode()
    except PolicyError as error:
        raise UsageError(f"--scheduler {word!r}: {error.message}", error.hint) from None
    except OSError as error:
        raise UsageError(f"--scheduler {word!r} cannot be read: {error.strerror}") from None
    path = str(source.absolute())
    return Proposal(Origin.BROUGHT, info.name, source=text, manifest=write_manifest(info), path=path, reason=_REASON)


def _unknown(name: str, library: Mapping[str, PolicyInfo]) -> UsageError:
    if name == "default":
        return UsageError("--scheduler default: the default scheduler is always among them", "leave it out")
    if name in library:
        return UsageError(f"--scheduler: {name} is a policy of the library, which takes no arguments", _EXAMPLES)
    if name in known_programs():
        return UsageError(f"--scheduler: {name} is not installed", "install it, or give the path of its program")
    close = difflib.get_close_matches(name, [*library, *known_programs()], n=1)
    message = f"--scheduler {name!r} is neither a policy of the library nor a program of PATH"
    return UsageError(message, f"did you mean {close[0]}?" if close else _EXAMPLES)


def read_include(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the folders that --include names, absolute; raise UsageError for what is none."""
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--include {folder} is not a directory")
    return tuple(str(folder.absolute()) for folder in folders)


@dataclass(frozen=True)
class SourceVerifier:
    """A verifier that shows folders of headers to the sources that somebody brought, and to nothing else.

    Args:
        verifier: for all others: with other folders a bundled policy would not be known as such.
        with_headers: the same, with those folders.
    """

    verifier: Verifier
    with_headers: Verifier

    def verify_all(self, submissions: Sequence[tuple[CandidatePolicy, PolicyInfo]]) -> Iterator[Verified]:
        """Take several through the gates, each by its own verifier, in their order."""
        brought = self.with_headers.verify_all([each for each in submissions if self._is_brought(each[1])])
        others = self.verifier.verify_all([each for each in submissions if not self._is_brought(each[1])])
        for _candidate, info in submissions:
            yield next(brought if self._is_brought(info) else others)

    def verify(self, candidate: CandidatePolicy, info: PolicyInfo) -> Verified:
        """Take one through the gates."""
        return next(self.verify_all([(candidate, info)]))

    def compile(self, info: PolicyInfo) -> PolicyArtifact:
        """Compile a policy."""
        return (self.with_headers if self._is_brought(info) else self.verifier).compile(info)

    @staticmethod
    def _is_brought(info: PolicyInfo) -> bool:
        return info.origin is Origin.BROUGHT
