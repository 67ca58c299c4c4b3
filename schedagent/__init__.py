"""schedagent: finds, proves and runs a better CPU scheduling policy for the work a Linux machine really does.

    import schedagent

    report = schedagent.optimize("make -j", directory="~/src/project", prepare="make clean")
    if report.best and report.best.verdict:
        print(report.best.candidate.policy, report.best.verdict.ratio)
    for run in schedagent.runs():
        print(run.id, run.status.value, run.workload.command)
    spec = {"name": "mine", "goal": "Each in its turn.", "classes": [{"name": "all", "order": "fifo"}]}
    print(schedagent.compose(spec).source)

The functions are those of schedagent.api. Importing schedagent imports none of it: a name is looked up when it is
first used, so that the daemon, the guest's agent and `--help` carry nothing that they do not need.

May import: agents, verifier, repo_store, kernel_bpf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel_bpf.policies.compose import Composed
    from kernel_bpf.policies.programs import ListedProgram
    from repo_store.records import PolicyMatch, RunRecord
    from schedagent.api import (
        compare,
        compose,
        decide,
        delete_runs,
        experiment_on,
        naming,
        optimize,
        policies,
        policy,
        preview,
        programs,
        replay,
        resume,
        run_report,
        runs,
        search_policies,
        transcript,
        verify,
    )
    from schedagent.core.errors import SchedagentError, UsageError
    from schedagent.core.policies.policy import PolicyInfo
    from schedagent.core.settings import Settings, load_settings
    from schedagent.core.trials.workload import WorkloadCommand
    from schedagent.core.verification import VerificationReport
    from schedagent.report.report import Report
    from schedagent.run.options import RunOptions
    from schedagent.run.preview import Preview
    from schedagent.verification.files import VerifyOptions
else:

    def __getattr__(name: str) -> object:
        """Import a name of the interface at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


__version__ = "0.1.0"

__all__ = [
    "Composed",
    "ListedProgram",
    "PolicyInfo",
    "PolicyMatch",
    "Preview",
    "Report",
    "RunOptions",
    "RunRecord",
    "SchedagentError",
    "Settings",
    "UsageError",
    "VerificationReport",
    "VerifyOptions",
    "WorkloadCommand",
    "compare",
    "compose",
    "decide",
    "delete_runs",
    "experiment_on",
    "load_settings",
    "naming",
    "optimize",
    "policies",
    "policy",
    "preview",
    "programs",
    "replay",
    "resume",
    "run_report",
    "runs",
    "search_policies",
    "transcript",
    "verify",
]

_HOMES = dict.fromkeys(__all__, "schedagent.api") | {
    "Composed": "kernel_bpf.policies.compose",
    "ListedProgram": "kernel_bpf.policies.programs",
    "PolicyInfo": "schedagent.core.policies.policy",
    "PolicyMatch": "repo_store.records",
    "Preview": "schedagent.run.preview",
    "Report": "schedagent.report.report",
    "RunOptions": "schedagent.run.options",
    "RunRecord": "repo_store.records",
    "SchedagentError": "schedagent.core.errors",
    "Settings": "schedagent.core.settings",
    "UsageError": "schedagent.core.errors",
    "VerificationReport": "schedagent.core.verification",
    "VerifyOptions": "schedagent.verification.files",
    "WorkloadCommand": "schedagent.core.trials.workload",
    "load_settings": "schedagent.core.settings",
}
"""Where each name comes from; the functions, from schedagent.api."""


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
