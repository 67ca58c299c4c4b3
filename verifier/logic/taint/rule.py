"""Rule 32: what a policy goes by, it declares.

findings(image, standing, {"comm"})     # one for each input that is not declared and each thing that it decides
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from schedagent.core.policies.policy import READABLE, READS_PREFIX, Standing
from schedagent.core.verification import Finding, Severity, Step
from verifier.logic.taint.flow import Reach
from verifier.logic.taint.settle import UNDECIDED, reaches_of
from verifier.logic.taint.values import WITHOUT_BRANCH
from verifier.logic.walk.events import place_of
from verifier.object.image import BpfImage, Line

RULE = 32
_MOST_STEPS = 4


def findings(
    image: BpfImage, standing: Standing, reads: Collection[str], kept: frozenset[str] = frozenset()
) -> tuple[Finding, ...]:
    """Return what the policy goes by and does not declare.

    Args:
        standing: an error for a derived policy, a note on a foreign one, nothing for a bundled one.
        reads: what it declares, of core.policies.policy.READABLE.
        kept: functions that are taken as a whole (taint.limits.kept_functions).
    """
    if standing is Standing.BUNDLED:
        return ()
    severity = Severity.ERROR if standing is Standing.DERIVED else Severity.NOTE
    return tuple(_finding(reach, severity) for reach in reaches_of(image, kept) if reach.input not in reads)


def inputs_of(image: BpfImage, kept: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Return what a policy goes by, in the order of READABLE; what nobody can declare comes last."""
    met = {reach.input for reach in reaches_of(image, kept)}
    return (*(name for name in READABLE if name in met), *sorted(met - {*READABLE}))


def _finding(reach: Reach, severity: Severity) -> Finding:
    if reach.input == UNDECIDED:
        message = f"what it goes by is not decided: {reach.decision}"
    elif reach.input == WITHOUT_BRANCH:
        message = f"{reach.input} decides {reach.decision} without a branch, which no proof sees taken: branch on it"
    elif reach.input in READABLE:
        message = f"{reach.input} decides {reach.decision}, and the policy does not declare to go by it"
    else:
        message = f"{reach.input} that no policy may go by decides {reach.decision}"
    file, row, wrapper = place_of(reach.line)
    path = (*_steps(reach), *wrapper)
    return Finding(RULE, severity, reach.function, file, row, message, path, word=f"{READS_PREFIX}{reach.input}")


def _steps(reach: Reach) -> Iterator[Step]:
    if reach.source_line is not None:
        yield _step(reach.source_line, f"{reach.input} is looked at")
    for line, text in reach.steps[:_MOST_STEPS]:
        if line is not None:
            yield _step(line, text)


def _step(line: Line, text: str) -> Step:
    file, row, _wrapper = place_of(line)
    return Step(file, row, text)
