"""`schedagent verify FILE`: one source through every gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from kernel_bpf.library import policy_from_file
from schedagent.core.errors import UsageError
from schedagent.core.policy import CandidatePolicy, PolicyInfo
from schedagent.core.settings import Settings
from schedagent.core.verification import GateResult, VerificationReport
from schedagent.wiring import open_lab, open_verifier


def verify_file(
    settings: Settings,
    file: Path,
    include_dirs: Sequence[Path],
    assignments: Sequence[str],
    on_gate: Callable[[GateResult], None],
) -> VerificationReport:
    """Take a policy source through every gate.

    Args:
        include_dirs: extra header folders.
        assignments: "tunable=value".
        on_gate: called with each gate's result as it comes.

    Raises:
        UsageError: the file, a folder or a tunable cannot be used.
    """
    info = policy_from_file(file)
    for folder in include_dirs:
        if not folder.is_dir():
            raise UsageError(f"--include {folder} is not a directory")
    candidate = CandidatePolicy(info.name, info.configured(read_assignments(info, assignments)))
    lab = open_lab(settings)
    verifier = dataclasses.replace(open_verifier(settings, lab, tuple(include_dirs)), on_gate=on_gate)
    return verifier.verify(candidate, info).report


def read_assignments(info: PolicyInfo, assignments: Sequence[str]) -> dict[str, int]:
    """Read "tunable=value" words; raise UsageError on one that is malformed, unknown or out of range."""
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            value = int(text, 0)
        except ValueError:
            value = None
        if not equals or value is None:
            raise UsageError(f"--set {assignment!r} is not tunable=number", "for example --set slice_us=5000")
        values[name] = info.tunable(name).check(value)
    return values
