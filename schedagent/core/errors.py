"""Every error schedagent raises on purpose.

SchedagentError                 message + hint: what failed with values, and what to do next
├── UsageError                  the user's input cannot be used           (exit status 2)
│   ├── TunableError            a tunable that does not exist or is out of range
│   ├── SpecError               a policy spec with mistakes, each named by its field
│   ├── StillNeeded             what is to be deleted is needed by something else
│   ├── MetricError             the metric expression found no number in the workload's output
│   └── ReplayDiverged          a recorded transcript does not contain what is asked now
├── SetupError                  a tool, kernel or folder is missing or unusable
│   └── DaemonAbsent            schedagentd is not running
├── PolicyError                 this policy cannot be used
│   ├── CompileError            clang refused the source
│   ├── NameTaken               another policy has this name
│   └── KernelRejected          the kernel refused to load or to attach it
├── BpfError                    a libbpf call failed (errno and libbpf's own log)
├── WorkloadFailed              the workload failed under the default scheduler
├── MetricUnavailable           a running workload's metric could not be measured
├── VmLost                      the micro-VM died, hung or panicked: neither a pass nor a failure
│   └── HostBusy                this host was too busy for its figures to mean anything
├── RepositoryError             the policy repository cannot be read or written
├── RecordError                 schedagentd's record of deployments cannot be read or written
├── Refused                     schedagentd refuses what it was asked, and says why
├── ModelError                  the model gave no usable answer: continue without it
│   ├── EndpointError           its endpoint is down, refuses, or answers nonsense
│   └── BudgetSpent             calls, tokens or money of the run are used up
└── TokenError                  a deployment token is malformed, forged, expired or for something else
"""

from __future__ import annotations


class SchedagentError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what failed, with the values involved.
        hint: what the user can do next; empty if there is nothing useful to say.
    """

    resumable = True
    """Whether a run that it ended can continue once the cause is gone; if not, it would fail in the same way again."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(SchedagentError):
    """The user's input cannot be used."""

    resumable = False


class TunableError(UsageError):
    """A tunable that does not exist, has the wrong type, or is out of range."""


class SpecError(UsageError):
    """A policy spec that cannot be composed; one line per mistake, by the name of its field."""


class StillNeeded(UsageError):
    """What is to be deleted is needed by something else; the message names what."""


class MetricError(UsageError):
    """The metric expression found no number in the workload's output."""


class ReplayDiverged(UsageError):
    """A recorded transcript does not contain what is asked now; the message says where the two part."""


class SetupError(SchedagentError):
    """A tool, a kernel image or a folder is missing or unusable."""


class DaemonAbsent(SetupError):
    """schedagentd is not running."""


class PolicyError(SchedagentError):
    """This policy cannot be used."""


class CompileError(PolicyError):
    """clang refused the source; the message carries clang's own lines (file:line:column: error: ...)."""


class NameTaken(PolicyError):
    """Another policy, of other content, has this name."""


class KernelRejected(PolicyError):
    """The kernel refused to load or to attach the policy; the message carries the verifier's log."""


class BpfError(SchedagentError):
    """A libbpf call failed.

    Args:
        message: the call and what it was applied to.
        errno: positive errno value, 0 if the call gave none.
        log: libbpf's own messages printed during the call.
    """

    def __init__(self, message: str, errno: int = 0, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint)
        self.errno = errno
        self.log = log


class WorkloadFailed(SchedagentError):
    """The workload failed under the default scheduler, so nothing can be compared."""

    resumable = False


class MetricUnavailable(SchedagentError):
    """A running workload's own metric could not be measured: its command failed, its server did not answer, or what
    came back is no number."""


class VmLost(SchedagentError):
    """The micro-VM died, hung or panicked. Never to be read as a pass or as a failure of a policy."""


class HostBusy(VmLost):
    """The micro-VM answered, but this host was too busy for the answer to be a verdict."""


class RepositoryError(SchedagentError):
    """The policy repository cannot be read or written."""


class RecordError(SchedagentError):
    """schedagentd's record of deployments cannot be read or written."""


class Refused(SchedagentError):
    """schedagentd refuses what it was asked: the machine, its state or the asker does not allow it."""


class TokenError(SchedagentError):
    """A deployment token is malformed, forged, expired or made for something else."""


class ModelError(SchedagentError):
    """The model gave no usable answer. Callers continue with the offline planner, or with what they have."""


class EndpointError(ModelError):
    """The model's endpoint cannot be reached, refuses, or answers nonsense, after all retries.

    Args:
        status: HTTP status; None if there was no answer at all.
    """

    def __init__(self, message: str, hint: str = "", status: int | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


class BudgetSpent(ModelError):
    """The run's budget for the model (calls, tokens or money) is used up: stop with what there is."""
