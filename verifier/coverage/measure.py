"""One policy's coverage from its object to the judgement: the copy for the proving ground, and what its marks mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schedagent.core.policies.policy import PolicyInfo, Standing
from verifier.coverage.copy import COVERAGE_SECTION, with_probes
from verifier.coverage.judge import Judgement, Ran, judge
from verifier.coverage.probes import Probes, Unmeasurable, place_probes
from verifier.coverage.trusted import is_composed, leaves_headers_alone
from verifier.lab.vm import ProbedCopy
from verifier.microvm import jobs
from verifier.object.image import BpfImage

_HOTPLUG = frozenset({"cpu_online", "cpu_offline"})


@dataclass(frozen=True)
class Measured:
    """A policy that is to be measured.

    Args:
        info: the policy.
        image: its object.
        probes: of the copy; None if none could be made, and `why` says why.
        copy: the copy.
        kept: functions of our headers that are taken as a whole.
    """

    info: PolicyInfo
    image: BpfImage
    probes: Probes | None
    copy: ProbedCopy | None
    why: str = ""
    kept: frozenset[str] = frozenset()

    def judge(self, answer: jobs.ProveAnswer, standing: Standing, include_dirs: Sequence[Path]) -> Judgement:
        """Judge what the proving ground answered.

        Args:
            include_dirs: folders of headers that the source was compiled with, besides ours.
        """
        ran = Ran(
            passed=frozenset(answer.passed),
            kept=frozenset(answer.kept),
            entered=None if answer.entered is None else dict(answer.entered),
            why=self.why or answer.unmeasured or answer.queues_unmeasured,
        )
        return judge(
            self.image,
            self.probes,
            ran,
            standing,
            own_headers=leaves_headers_alone(self.info, include_dirs),
            known=is_composed(self.info),
            kept=self.kept,
        )


def measured(object_bytes: bytes, image: BpfImage, info: PolicyInfo, kept: frozenset[str] = frozenset()) -> Measured:
    """Prepare a policy; one whose copy cannot be made says why.

    Args:
        image: what read_object returns of the bytes.
        kept: functions of our headers that are taken as a whole (logic.taint.limits).
    """
    callbacks = {member for ops in image.ops for member in ops.callbacks}
    try:
        probes = place_probes(image)
        content = with_probes(object_bytes, probes)
    except Unmeasurable as error:
        return Measured(info, image, None, None, error.message, kept)
    inputs = () if is_composed(info) else info.inputs  # what is only shown is not worth the seconds of more tasks
    copy = ProbedCopy(content, COVERAGE_SECTION, inputs, bool(callbacks & _HOTPLUG))
    return Measured(info, image, probes, copy, kept=kept)
