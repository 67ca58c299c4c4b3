"""The fault matrix of schedagentd: which fault, at which step of a deployment, leaves what in charge.

tests/unit/schedagentd/test_fault_matrix.py makes a test of each cell, tests/documentation.py the table in SECURITY.md.
"""

from __future__ import annotations

DEFAULT = "default"
KNOWN = "last known good"
ON = "goes on"
STAYS = "stays"
NOTHING_YET = "- (1)"

OUTCOMES = {
    DEFAULT: "the default scheduler, within 2 s",
    KNOWN: "the policy that had proved itself before is loaded again, within 2 s",
    ON: "the fault harms nothing that runs: it stays (or waits on), watched, and a stall after the fault still ends it "
    "within 2 s",
    STAYS: "what is proven and pinned stays in charge, and the next schedagentd takes it over",
    NOTHING_YET: "cannot happen: (1) nothing is loaded yet that could fail",
}

STEPS = {
    "waiting": "accepted; its baseline is being measured",
    "loading": "given to the kernel, not confirmed yet",
    "canary": "runs, on probation",
    "proven": "survived its probation",
    "promoting": "the baseline of its next stage is being measured",
    "full": "runs at stage full",
    "pinned": "proven, and meant to survive schedagentd (`not_on_exit`)",
    "ending": "rolled back, and being taken away; one before it was proven",
    "restoring": "it tripped, and the one before it is being loaded again",
}

REAL, SCRIPTED = "real", "scripted"

FAULTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "kill -9 schedagentd": (REAL, "", (DEFAULT,) * 6 + (STAYS, DEFAULT, DEFAULT)),
    "kill -9 agent": (REAL, "its lease lapses", (DEFAULT,) * 7 + (KNOWN, KNOWN)),
    "kill -9 both": (REAL, "pinned: its lease lapses", (DEFAULT,) * 9),
    "SIGTERM": (REAL, "", (DEFAULT,) * 6 + (STAYS, DEFAULT, DEFAULT)),
    "second schedagentd": (REAL, "it refuses to start", (ON,) * 7 + (KNOWN, KNOWN)),
    "full disk": (REAL, "ENOSPC; stored later", (DEFAULT, DEFAULT, ON, ON, ON, ON, ON, DEFAULT, DEFAULT)),
    "read-only disk": (SCRIPTED, "stored later", (DEFAULT, DEFAULT, ON, ON, ON, ON, ON, DEFAULT, DEFAULT)),
    "clock set back a year": (SCRIPTED, "", (DEFAULT, ON, ON, ON, ON, ON, ON, DEFAULT, KNOWN)),
    "clock set ahead a year": (SCRIPTED, "", (DEFAULT, ON, ON, ON, ON, ON, ON, DEFAULT, KNOWN)),
    "corrupt record": (SCRIPTED, "at the next start; kept aside", (DEFAULT,) * 9),
    "token expires": (SCRIPTED, "", (DEFAULT,) * 9),
    "lease lapses": (SCRIPTED, "", (DEFAULT,) * 7 + (KNOWN, DEFAULT)),
    "stall": (SCRIPTED, "", (NOTHING_YET,) + (DEFAULT,) * 6 + (KNOWN, DEFAULT)),
    "error": (SCRIPTED, "", (NOTHING_YET,) + (DEFAULT,) * 6 + (KNOWN, DEFAULT)),
    "sysfs unreadable": (SCRIPTED, "", (DEFAULT,) * 9),
}
"""Of each fault: with real processes or over a scripted clock and kernel, what people should know, outcome by step."""


def cells(kind: str) -> list[tuple[str, str, str]]:
    """Return fault, step and outcome of every cell of a kind that can happen."""
    return [
        (fault, step, outcome)
        for fault, (how, _note, outcomes) in FAULTS.items()
        for step, outcome in zip(STEPS, outcomes, strict=True)
        if how == kind and outcome != NOTHING_YET
    ]
