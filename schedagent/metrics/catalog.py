"""Every metric of the exporter, by part. deploy/prometheus/METRICS.md is generated from it (make docs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from kernel_bpf.policies.library import POLICIES as POLICY_FOLDER
from repo_store.records import RunStatus
from repo_store.totals import FAILED, INCOMPLETE, PASSED
from schedagent import __version__
from schedagent.core.deployment import End, Stage
from schedagent.core.policies.proposal import Origin
from schedagent.core.recommendation import Progress, RecommendationKind, Standing
from schedagent.core.rules import GATES
from schedagent.core.settings import AGENTS
from schedagent.core.trials.trial import Outcome
from schedagent.core.verification import GateStatus
from schedagent.metrics.family import OTHER, Family, MetricKind

PREFIX = "schedagent_"


def word(text: str) -> str:
    """A label's value for a name of ours: "not applicable" is not_applicable."""
    return text.replace(" ", "_").replace("-", "_")


def _words(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(word, names))


def member(enum_member: Enum) -> str:
    """A label's value for a member of an enumeration: that of End.RUN_QUEUE_DELAY is run_queue_delay."""
    return enum_member.name.lower()


def counter(name: str, text: str, sparse: bool = False, **labels: Sequence[str]) -> Family:
    return Family(f"{PREFIX}{name}_total", MetricKind.COUNTER, text, labels, sparse)


def gauge(name: str, text: str, sparse: bool = False, **labels: Sequence[str]) -> Family:
    return Family(f"{PREFIX}{name}", MetricKind.GAUGE, text, labels, sparse)


def histogram(name: str, text: str) -> Family:
    return Family(f"{PREFIX}{name}", MetricKind.HISTOGRAM, text)


STAGES = tuple(Stage)
POLICIES = (*sorted(path.stem for path in POLICY_FOLDER.glob("*.toml")), OTHER)
"""The bundled policies; policies derived on a machine are "other", there may be any number of them."""
GATE_NAMES = _words(GATES)
EVENT_KINDS = (
    *("accepted", "loading", "pulses", "longer_pulses", "trial", "running", "proven", "pinned", "not_pinned"),
    *("ended", "tripped", "restoring", "not_restored", "adopted", "left", "not_removed", "started", "record_lost"),
    *("renewed", "another_scheduler", OTHER),
)
"""The kinds of events that schedagentd reports."""
SCX_STATES = ("disabled", "enabling", "enabled", "disabling", OTHER)
SCX_EVENTS = (
    *("SELECT_CPU_FALLBACK", "DISPATCH_LOCAL_DSQ_OFFLINE", "DISPATCH_KEEP_LAST", "ENQ_SKIP_EXITING"),
    *("ENQ_SKIP_MIGRATION_DISABLED", "REFILL_SLICE_DFL", "BYPASS_DISPATCH", "BYPASS_ACTIVATE", "INSERT_NOT_OWNED"),
    *("REENQ_IMMED", "REENQ_REPEAT", "SLICE_CLAMPED", "SLICE_DENIED", "SUB_BYPASS_DISPATCH", "SUB_CIDPERF_DENIED"),
    *("SUB_FORCED_ADMIT", "SUB_KICK_DENIED", "SUB_PREEMPT_DENIED", "SUB_REENQ_DENIED", "SUB_RESCUE"),
)
"""Counters of sched_ext in 6.15 to 7.3, without SCX_EV_ (kernel/sched/ext_internal.h: struct scx_event_stats)."""
SCX_EVENT_LABELS = (*(name.lower() for name in SCX_EVENTS), OTHER)
WHEN = ("baseline", "now")
LIMITS = ("calls", "tokens", "dollars")

# The exporter itself

PARTS = ("schedagentd", "kernel", "host", "repository", "models")
UP = gauge("up", "Whether this part could be read in this scrape.", part=PARTS)
SCRAPE_DURATION = gauge("scrape_duration_seconds", "How long reading this part took.", part=PARTS)
SCRAPE_ERRORS = counter("scrape_errors", "Scrapes in which this part could not be read.", part=PARTS)
BUILD_INFO = gauge("build_info", "1, with the version of schedagent that runs the exporter.", version=(__version__,))

# schedagentd

ENDED = counter(
    "deployments_ended",
    "Deployments that ended, by the stage they had and why.",
    stage=STAGES,
    end=tuple(map(member, End)),
)
TRIPS = counter(
    "trips",
    "Deployments that the circuit breaker ended, by cause.",
    cause=tuple(member(end) for end in End if end.is_trip),
)
EVENTS = counter("deployment_events", "Events of schedagentd, by kind.", kind=EVENT_KINDS)
IN_CHARGE = gauge("deployment_in_charge", "1 while a policy that schedagentd deployed is in charge, 0 while none is.")
WAITING = gauge("deployment_waiting", "1 while a deployment waits for its baseline or rests between pulses, else 0.")
PULSE = gauge("deployment_pulse_seconds", "How long the pulses of a roll-out are at present.", sparse=True)
PAIRS = gauge("deployment_pulse_pairs", "Pairs of windows of that length that were compared.", sparse=True)
INFO = gauge("deployment_info", "1, with what is in charge.", sparse=True, policy=POLICIES, stage=STAGES)
PROVEN = gauge("deployment_proven", "1 if what is in charge survived the probation of its stage.", sparse=True)
PINNED = gauge("deployment_pinned", "1 if what is in charge would survive the end of schedagentd.", sparse=True)
STAGE_AGE = gauge("deployment_stage_age_seconds", "How long what is in charge has been at its stage.", sparse=True)
LEASE_LEFT = gauge("deployment_lease_left_seconds", "Until the lease lapses unless it is renewed.", sparse=True)
TOKEN_LEFT = gauge("deployment_token_left_seconds", "Until the token expires, which no lease outlives.", sparse=True)
SCOPE_DELAY = gauge(
    "deployment_run_queue_delay_seconds",
    "Mean wait for a CPU of the tasks in its scope: before its stage began, and since.",
    sparse=True,
    when=WHEN,
)
SCOPE_PRESSURE = gauge(
    "deployment_pressure_ratio",
    "Part of the time in which some task of its scope waited for a CPU: before its stage began, and since.",
    sparse=True,
    when=WHEN,
)
SCOPE_SHARE = gauge(
    "deployment_cpu_share_ratio",
    "How much of the CPU time that the tasks of its scope wanted they got: before its stage began, and since.",
    sparse=True,
    when=WHEN,
)
SCOPE_METRIC = gauge(
    "deployment_workload_metric",
    "The workload's own metric, in its own unit, if its keeper reports one: before its stage began, and since.",
    sparse=True,
    when=WHEN,
)
UNSAVED = gauge("record_unsaved_deployments", "Ends of deployments that could not be written to the record yet.")
FOREIGN = gauge("foreign_scheduler", "1 while a sched_ext policy is loaded that schedagentd did not load, else 0.")

# The kernel

SCX_AVAILABLE = gauge("sched_ext_available", "Whether this kernel has sched_ext, and shows it in sysfs.")
SCX_STATE = gauge("sched_ext_state", "1 for the state that sched_ext is in, else 0.", state=SCX_STATES)
SCX_SWITCH_ALL = gauge("sched_ext_switch_all", "1 if every normal task is in its charge, 0 if only those of SCHED_EXT.")
SCX_ENABLES = counter("sched_ext_enables", "Policies that were enabled since boot, ours and others.")
SCX_REJECTED = counter("sched_ext_rejected_tasks", "Tasks that were refused the policy SCHED_EXT.")
SCX_HOTPLUGS = counter("sched_ext_hotplugs", "CPUs that came or went since boot.")
SCX_EVENT = counter(
    "sched_ext_events",
    "Events of the loaded policy, by the kernel's names (SCX_EV_*); they restart with each policy.",
    event=SCX_EVENT_LABELS,
)
SCX_BYPASS = counter("sched_ext_bypass_seconds", "Time in which the kernel bypassed the loaded policy.")

# The host

PSI = counter(
    "cpu_pressure_seconds",
    "Time in which some task, or all of them, waited for a CPU (PSI).",
    True,
    kind=("some", "full"),
)
DELAY = histogram(
    "run_queue_delay_seconds",
    "Waits for a CPU; those of a thread between two scrapes all count at their mean.",
)
THREADS = gauge("run_queue_watched_threads", "Threads whose waits are in the histogram of this scrape.")
SAMPLED = gauge("run_queue_watched_ratio", "Part of the processes whose threads are read; 1 unless there are many.")

# The repository

RUNS = gauge("runs", "Optimisation runs in the repository, by status.", status=tuple(RunStatus))
DERIVED = (Origin.COMPOSE, Origin.PATCH, Origin.GENERATE, Origin.BROUGHT)
DERIVED_POLICIES = gauge("derived_policies", "Policies in the repository that runs derived, by origin.", origin=DERIVED)
VERIFICATIONS = counter("verifications", "Candidates of runs that were verified.", result=(PASSED, FAILED, INCOMPLETE))
GATE_RESULTS = counter(
    "verifier_gates", "Gates of the verifier, by how they ended.", gate=GATE_NAMES, result=_words(tuple(GateStatus))
)
GATE_SECONDS = counter("verifier_gate_seconds", "Time spent in gates of the verifier.", gate=GATE_NAMES)
SAMPLES = counter("trial_samples", "Runs of workloads that were measured.")
VERDICTS = counter("trial_verdicts", "Verdicts of trials.", policy=POLICIES, outcome=_words(tuple(Outcome)))
RATIO = histogram("trial_ratio", "Candidate / default of each conclusive verdict; below 1 is better.")
BEST = gauge("trial_best_ratio", "The lowest candidate / default that was judged better.", sparse=True, policy=POLICIES)

# The agent service, whose tables are in the repository

RECOMMENDATIONS = gauge(
    "recommendations",
    "Recommendations of the agent service, by kind and how they stand.",
    kind=tuple(RecommendationKind),
    standing=tuple(Standing),
)
REQUESTS = gauge(
    "requests", "Requests to carry out a recommendation, by how far they have come.", progress=tuple(Progress)
)
QUEUED_SINCE = gauge(
    "oldest_queued_request_timestamp_seconds", "When the oldest request was made that has not begun.", sparse=True
)
LAST_READING = gauge("agent_last_reading_timestamp_seconds", "When the agent service last took a reading.", sparse=True)

# Models

CALLS = counter("model_calls", "Requests that models answered.", role=AGENTS)
CALL_FAILURES = counter("model_call_failures", "Requests to models that failed.")
TOKENS = counter("model_tokens", "Tokens sent to models, and answered.", role=AGENTS, direction=("input", "output"))
COST = counter("model_cost_dollars", "What models cost by the price table of the settings.", role=AGENTS)
UNPRICED = counter("model_unpriced_calls", "Answers of models whose price is not known.", role=AGENTS)
BUDGET = gauge(
    "model_budget_used_ratio",
    "Part of its budget that the run has used which used most of it, of those that run or wait.",
    limit=LIMITS,
)

FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "": (UP, SCRAPE_DURATION, SCRAPE_ERRORS, BUILD_INFO),
    "schedagentd": (
        *(ENDED, TRIPS, EVENTS, IN_CHARGE, WAITING, PULSE, PAIRS, INFO, PROVEN, PINNED, STAGE_AGE),
        *(LEASE_LEFT, TOKEN_LEFT, SCOPE_DELAY, SCOPE_PRESSURE, SCOPE_SHARE, SCOPE_METRIC, UNSAVED, FOREIGN),
    ),
    "kernel": (
        *(SCX_AVAILABLE, SCX_STATE, SCX_SWITCH_ALL, SCX_ENABLES, SCX_REJECTED, SCX_HOTPLUGS, SCX_EVENT, SCX_BYPASS),
    ),
    "host": (PSI, DELAY, THREADS, SAMPLED),
    "repository": (
        *(RUNS, DERIVED_POLICIES, VERIFICATIONS, GATE_RESULTS, GATE_SECONDS, SAMPLES, VERDICTS, RATIO, BEST),
        *(RECOMMENDATIONS, REQUESTS, QUEUED_SINCE, LAST_READING),
    ),
    "models": (CALLS, CALL_FAILURES, TOKENS, COST, UNPRICED, BUDGET),
}
"""Part -> its metrics; the exporter's own under the empty name."""
