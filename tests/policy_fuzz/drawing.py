"""The endless sequence of drawn policies that a seed stands for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_bpf.policies.library import policy_from_file
from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.policies.proposal import Origin
from tests.policy_fuzz.draft import Draft
from tests.policy_fuzz.faults import Fault, plant
from tests.policy_fuzz.grammar import draw_policy


@dataclass(frozen=True)
class Drawn:
    """One policy.

    Args:
        innocent: without the fault.
        draft: as it is judged.
        fault: what was planted; None for nothing.
    """

    innocent: Draft
    draft: Draft
    fault: Fault | None

    def write(self, folder: Path) -> PolicyInfo:
        """Write the source and return it as what a model made that does not care for weights."""
        source = folder / f"{self.draft.name}.bpf.c"
        source.write_text(self.draft.text())
        return replace(policy_from_file(source), origin=Origin.GENERATE, declares=("weights",))


def drawn(seed: int) -> Iterator[Drawn]:
    """Policies without end, every second one with a fault; the same ones for the same seed."""
    number = 0
    while True:
        # a generator for each, so that a change of one block does not change all that come after it
        draw = random.Random(f"{seed}/{number}")
        innocent = draw_policy(f"drawn_{seed}_{number}", draw)
        draft, fault = plant(innocent, draw) if number % 2 else (innocent, None)
        yield Drawn(innocent, draft, fault)
        number += 1
