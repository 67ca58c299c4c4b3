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
    NOTHING_YET: "cannot happen: (1) nothing is loaded that could fail",
}

STEPS = {
    "waiting": "accepted; its baseline is being measured",
    "loading": "given to the kernel, not confirmed yet",
    "canary": "runs in a cgroup that owns its CPUs, on probation",
    "proven": "survived its probation",
    "pulse": "in charge of the whole machine, for a window",
    "resting": "between two pulses",
    "full": "runs at stage full, on probation",
    "trial": "in charge of the whole machine, for the time of a trial",
    "pinned": "proven, and meant to survive schedagentd (`not_on_exit`)",
    "ending": "rolled back, and being taken away; one before it was proven",
    "restoring": "it tripped, and the one before it is being loaded again",
    "behind": "on probation; one before it was proven, and another one waits",
    "dropped": "the same, but the one that waited was dropped",
    "both ending": "as `ending`, while another one waits",
    "restored": "the one before it runs again, and is renewed by the number that it had first",
}

REAL, SCRIPTED = "real", "scripted"

_LATER = (DEFAULT, DEFAULT, ON, ON, DEFAULT, ON)
_RESTORED = (KNOWN, DEFAULT, KNOWN, KNOWN, KNOWN, DEFAULT)
_DIES = (DEFAULT,) * 8 + (STAYS,) + (DEFAULT,) * 6
_DISK = (DEFAULT,) * 2 + (ON,) * 2 + (DEFAULT,) * 2 + (ON,) * 3 + _LATER
_CLOCK = (DEFAULT,) + (ON,) * 3 + (DEFAULT,) * 2 + (ON,) * 3 + (DEFAULT, KNOWN, ON, ON, DEFAULT, ON)
_EJECTED = (NOTHING_YET,) + (DEFAULT,) * 4 + (NOTHING_YET,) + (DEFAULT,) * 3 + _RESTORED

FAULTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "kill -9 schedagentd": (REAL, "", _DIES),
    "kill -9 agent": (
        REAL,
        "its lease lapses; a trial ends at once",
        (DEFAULT,) * 9 + (KNOWN, KNOWN, DEFAULT, DEFAULT, KNOWN, DEFAULT),
    ),
    "kill -9 both": (REAL, "pinned: its lease lapses", (DEFAULT,) * 15),
    "SIGTERM": (REAL, "", _DIES),
    "second schedagentd": (REAL, "it refuses to start", (ON,) * 9 + (KNOWN, KNOWN, ON, ON, KNOWN, ON)),
    "full disk": (REAL, "ENOSPC; stored later", _DISK),
    "read-only disk": (SCRIPTED, "stored later", _DISK),
    "clock set back a year": (SCRIPTED, "", _CLOCK),
    "clock set ahead a year": (SCRIPTED, "", _CLOCK),
    "corrupt record": (SCRIPTED, "at the next start; kept aside", (DEFAULT,) * 15),
    "token expires": (SCRIPTED, "", (DEFAULT,) * 15),
    "lease lapses": (SCRIPTED, "", (DEFAULT,) * 9 + (KNOWN, DEFAULT, DEFAULT, DEFAULT, KNOWN, DEFAULT)),
    "stall": (SCRIPTED, "", _EJECTED),
    "error": (SCRIPTED, "", _EJECTED),
    "sysfs unreadable": (SCRIPTED, "", (DEFAULT,) * 15),
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
