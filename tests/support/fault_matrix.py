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
    "behind": "on probation; one before it was proven, and another one waits",
    "dropped": "the same, but the one that waited was dropped",
    "both ending": "as `ending`, while another one waits",
    "restored": "the one before it runs again, and is renewed by the number that it had first",
}

REAL, SCRIPTED = "real", "scripted"

FAULTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "kill -9 schedagentd": (REAL, "", (DEFAULT,) * 6 + (STAYS,) + (DEFAULT,) * 6),
    "kill -9 agent": (REAL, "its lease lapses", (DEFAULT,) * 7 + (KNOWN, KNOWN, DEFAULT, DEFAULT, KNOWN, DEFAULT)),
    "kill -9 both": (REAL, "pinned: its lease lapses", (DEFAULT,) * 13),
    "SIGTERM": (REAL, "", (DEFAULT,) * 6 + (STAYS,) + (DEFAULT,) * 6),
    "second schedagentd": (REAL, "it refuses to start", (ON,) * 7 + (KNOWN, KNOWN, ON, ON, KNOWN, ON)),
    "full disk": (
        REAL,
        "ENOSPC; stored later",
        (DEFAULT, DEFAULT) + (ON,) * 5 + (DEFAULT, DEFAULT, ON, ON, DEFAULT, ON),
    ),
    "read-only disk": (
        SCRIPTED,
        "stored later",
        (DEFAULT, DEFAULT) + (ON,) * 5 + (DEFAULT, DEFAULT, ON, ON, DEFAULT, ON),
    ),
    "clock set back a year": (SCRIPTED, "", (DEFAULT,) + (ON,) * 6 + (DEFAULT, KNOWN, ON, ON, DEFAULT, ON)),
    "clock set ahead a year": (SCRIPTED, "", (DEFAULT,) + (ON,) * 6 + (DEFAULT, KNOWN, ON, ON, DEFAULT, ON)),
    "corrupt record": (SCRIPTED, "at the next start; kept aside", (DEFAULT,) * 13),
    "token expires": (SCRIPTED, "", (DEFAULT,) * 13),
    "lease lapses": (SCRIPTED, "", (DEFAULT,) * 7 + (KNOWN, DEFAULT, DEFAULT, DEFAULT, KNOWN, DEFAULT)),
    "stall": (SCRIPTED, "", (NOTHING_YET,) + (DEFAULT,) * 6 + (KNOWN, DEFAULT, KNOWN, KNOWN, KNOWN, DEFAULT)),
    "error": (SCRIPTED, "", (NOTHING_YET,) + (DEFAULT,) * 6 + (KNOWN, DEFAULT, KNOWN, KNOWN, KNOWN, DEFAULT)),
    "sysfs unreadable": (SCRIPTED, "", (DEFAULT,) * 13),
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
