"""The exit statuses, as a whole and of each command; the manual pages have them, too."""

from __future__ import annotations

from collections.abc import Mapping

from schedagent.cli.common import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NO, EXIT_USAGE, EXIT_WAITING

EXIT_STATUSES: Mapping[int, str] = {
    0: "something better was found (or the command did its work)",
    EXIT_FAILED: "it failed",
    EXIT_USAGE: "bad usage",
    EXIT_NO: "the answer is no: nothing better than the default scheduler, or the policy was rejected",
    EXIT_WAITING: "the run waits for an approval",
    EXIT_INTERRUPTED: "stopped by Ctrl-C",
}
"""What each means, whatever the command."""

_ALWAYS = {
    0: "it did its work",
    EXIT_FAILED: "it failed; the message says why",
    EXIT_USAGE: "bad usage",
    EXIT_INTERRUPTED: EXIT_STATUSES[EXIT_INTERRUPTED],
}
_OF_A_RUN = {
    0: "the run is finished, and a policy is better than the default scheduler",
    EXIT_FAILED: "it failed; what was measured is kept, and schedagent resume continues the run",
    EXIT_NO: "the run is finished, and nothing is better than the default scheduler",
    EXIT_WAITING: EXIT_STATUSES[EXIT_WAITING],
}
_OWN: Mapping[str, Mapping[int, str]] = {
    "optimize": _OF_A_RUN,
    "compare": _OF_A_RUN,
    "experiment": _OF_A_RUN,
    "resume": _OF_A_RUN,
    "approve": _OF_A_RUN,
    "reject": _OF_A_RUN,
    "apply": _OF_A_RUN | {0: "the run found something better, or the policy is deployed"},
    "runs delete": {0: "they are deleted", EXIT_NO: "you answered no; nothing was deleted"},
    "runs replay": {0: "it went as recorded", EXIT_NO: "it ended otherwise than recorded; the differences are listed"},
    "policies search": {0: "a policy fits the words", EXIT_NO: "no policy fits the words"},
    "verify": {
        0: "the policy passed every gate that ran",
        EXIT_FAILED: "it could not be verified; nothing is known about the policy",
        EXIT_NO: "a gate rejected the policy",
    },
    "deploy": {
        0: "the policy is deployed; with --keep, it ended as somebody wished",
        EXIT_NO: "with --keep: the circuit breaker ended it",
    },
    "doctor": {0: "schedagent can run here", EXIT_FAILED: "something is missing that it cannot do without"},
}


def statuses_of(command: str) -> Mapping[int, str]:
    """Return what each exit status of a command means.

    Args:
        command: its words below schedagent, such as "runs replay"; empty for the program as a whole.
    """
    if not command:
        return EXIT_STATUSES
    return dict(sorted((_ALWAYS | dict(_OWN.get(command, {}))).items()))
