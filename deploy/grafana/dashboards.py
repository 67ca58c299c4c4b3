"""Writes the Grafana dashboards (classic JSON) out of one table: python deploy/grafana/dashboards.py (make docs).

In an expression % stands for the machine that is chosen at the top. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCHEMA_VERSION = 39
"""Of Grafana 10.4 and later; newer ones bring it up to date when they load it."""
WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ON_MACHINE = 'instance=~"$instance"'
WINDOW = "$__rate_interval"

Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: what it shows.
        unit: Grafana's name of the unit; "none" for plain numbers.
        queries: legend -> expression.
        kind: of panel; its name in Grafana.
        note: how to read it.
        width: of 24 columns.
        steps: from which value on it has which colour.
        words: texts for values.
    """

    title: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    note: str = ""
    width: int = 12
    stacked: bool = False
    steps: Sequence[tuple[float, str]] = ()
    words: Mapping[int, str] = field(default_factory=dict)

    @property
    def height(self) -> int:
        """In grid units of 30 pixels."""
        return 4 if self.kind == "stat" else 8


def stat(title: str, unit: str, expression: str, note: str = "", **more: Any) -> Panel:
    return Panel(title, unit, {"": expression}, "stat", note, width=4, **more)


def waited(part: float) -> str:
    """The longest of this part of the waits for a CPU."""
    return f"histogram_quantile({part}, sum by (le) (rate(schedagent_run_queue_delay_seconds_bucket{{%}}[$w])))"


SINCE = "How long ago."
YES_NO = {0: "no", 1: "yes"}
GOOD_IS_1 = ((0, "red"), (1, "green"))
BAD_FROM_1 = ((0, "green"), (1, "red"))

DELAY = Panel(
    "Waits for a CPU",
    "s",
    {
        "half of the waits": waited(0.5),
        "90 %": waited(0.9),
        "99 %": waited(0.99),
        "mean": "instance:schedagent_run_queue_delay_seconds:mean5m{%}",
    },
    note="How long threads waited for a CPU. The waits of a thread between two scrapes count at their mean.",
)
PRESSURE = Panel(
    "CPU pressure (PSI)",
    "percentunit",
    {"{{kind}}": "rate(schedagent_cpu_pressure_seconds_total{%}[$w])"},
    note="Part of the time in which some task, or all of them, waited for a CPU.",
)
TRIPS = Panel(
    "Trips of the circuit breaker",
    "none",
    {"{{cause}}": "increase(schedagent_trips_total{%}[$w]) > 0"},
    note="Why schedagentd ended policies by itself.",
    stacked=True,
)
SCOPE = Panel(
    "Run-queue delay in the scope of the deployment",
    "s",
    {"{{when}}": "schedagent_deployment_run_queue_delay_seconds{%}"},
    note="Mean wait for a CPU: before this stage began, and since. schedagentd ends the policy if it is surely worse.",
)

DASHBOARDS: Mapping[str, tuple[str, str, Mapping[str, Sequence[Panel]]]] = {
    "overview": (
        "schedagent / Overview",
        "What schedules tasks here, whether it does well, and whether everything that watches it is there.",
        {
            "In charge": (
                stat("A policy is in charge", "none", "schedagent_deployment_in_charge{%}", words=YES_NO),
                stat("It is proven", "none", "schedagent_deployment_proven{%}", words=YES_NO, steps=GOOD_IS_1),
                stat(
                    "Lease ends in",
                    "s",
                    "schedagent_deployment_lease_left_seconds{%}",
                    steps=((0, "red"), (60, "orange"), (120, "green")),
                ),
                stat("Trips in a day", "none", "round(instance:schedagent_trips:increase1d{%})", steps=BAD_FROM_1),
                stat("Another scheduler", "none", "schedagent_foreign_scheduler{%}", words=YES_NO, steps=BAD_FROM_1),
                stat("Ends not recorded", "none", "schedagent_record_unsaved_deployments{%}", steps=BAD_FROM_1),
                stat(
                    "The agent's last reading",
                    "s",
                    "time() - schedagent_agent_last_reading_timestamp_seconds{%}",
                    SINCE,
                ),
                stat(
                    "A request waits",
                    "s",
                    "time() - schedagent_oldest_queued_request_timestamp_seconds{%}",
                    SINCE,
                ),
                Panel(
                    "Policy and stage",
                    "none",
                    {"{{policy}} {{stage}}": "schedagent_deployment_info{%}"},
                    "state-timeline",
                    "No band: the default scheduler.",
                    words={1: "in charge"},
                ),
                Panel(
                    "What is there",
                    "none",
                    {"{{part}}": "schedagent_up{%}"},
                    "state-timeline",
                    "The parts that the exporter reads.",
                    words={0: "down", 1: "up"},
                    steps=GOOD_IS_1,
                ),
            ),
            "How it goes": (DELAY, PRESSURE, SCOPE, TRIPS),
            "Work": (
                Panel("Runs", "none", {"{{status}}": "schedagent_runs{%}"}, stacked=True),
                Panel(
                    "Recommendations",
                    "none",
                    {"{{kind}}: {{standing}}": "schedagent_recommendations{%} > 0"},
                    stacked=True,
                ),
                Panel("Requests", "none", {"{{progress}}": "schedagent_requests{%} > 0"}, stacked=True),
                Panel(
                    "Events of schedagentd",
                    "none",
                    {"{{kind}}": "increase(schedagent_deployment_events_total{%}[$w]) > 0"},
                    stacked=True,
                ),
            ),
        },
    ),
    "host": (
        "schedagent / Host",
        "Run queues and pressure of the machine, and what the kernel shows of sched_ext.",
        {
            "Run queues": (
                DELAY,
                Panel(
                    "Waits for a CPU by their length",
                    "none",
                    {"{{le}}": "sum by (le) (increase(schedagent_run_queue_delay_seconds_bucket{%}[$w]))"},
                    "heatmap",
                    "Each column is a moment, each row a range of waits in seconds.",
                ),
                PRESSURE,
                Panel("Waits a second", "ops", {"waits": "rate(schedagent_run_queue_delay_seconds_count{%}[$w])"}),
            ),
            "sched_ext": (
                Panel(
                    "State",
                    "none",
                    {"{{state}}": "schedagent_sched_ext_state{%} == 1"},
                    "state-timeline",
                    words={1: "now"},
                ),
                Panel(
                    "Events of the loaded policy",
                    "ops",
                    {"{{event}}": "rate(schedagent_sched_ext_events_total{%}[$w]) > 0"},
                    note="SCX_EV_*: select_cpu_fallback, dispatch_local_dsq_offline and insert_not_owned are errors.",
                ),
                Panel(
                    "Bypassed", "percentunit", {"bypassed": "rate(schedagent_sched_ext_bypass_seconds_total{%}[$w])"}
                ),
                Panel(
                    "Enabled, refused, hotplugged",
                    "none",
                    {
                        "policies enabled": "increase(schedagent_sched_ext_enables_total{%}[$w])",
                        "tasks refused": "increase(schedagent_sched_ext_rejected_tasks_total{%}[$w])",
                        "CPUs that came or went": "increase(schedagent_sched_ext_hotplugs_total{%}[$w])",
                    },
                ),
                stat("sched_ext is there", "none", "schedagent_sched_ext_available{%}", words=YES_NO, steps=GOOD_IS_1),
                stat("For all tasks", "none", "schedagent_sched_ext_switch_all{%}", words=YES_NO),
            ),
            "The exporter": (
                Panel("Time of a scrape", "s", {"{{part}}": "schedagent_scrape_duration_seconds{%}"}, stacked=True),
                Panel("Failed scrapes", "none", {"{{part}}": "increase(schedagent_scrape_errors_total{%}[$w])"}),
                Panel("Threads read", "none", {"threads": "schedagent_run_queue_watched_threads{%}"}),
                Panel("Part of the processes", "percentunit", {"part": "schedagent_run_queue_watched_ratio{%}"}),
            ),
        },
    ),
    "policy": (
        "schedagent / Policy",
        "Policies from the gates of the verifier through trials to deployments.",
        {
            "Deployment": (
                SCOPE,
                Panel(
                    "CPU pressure in the scope of the deployment",
                    "percentunit",
                    {"{{when}}": "schedagent_deployment_pressure_ratio{%}"},
                ),
                Panel(
                    "CPU time got of the CPU time wanted",
                    "percentunit",
                    {"{{when}}": "schedagent_deployment_cpu_share_ratio{%}"},
                ),
                Panel(
                    "The workload's own metric",
                    "none",
                    {"{{when}}": "schedagent_deployment_workload_metric{%}"},
                    note="In its own unit, if its keeper reports one.",
                ),
                Panel("Length of the pulses", "s", {"pulse": "schedagent_deployment_pulse_seconds{%}"}),
                Panel(
                    "Pairs of pulses compared",
                    "none",
                    {"pairs": "schedagent_deployment_pulse_pairs{%}"},
                    note="Of the present length: 6 at least, 20 at most.",
                ),
                Panel(
                    "How deployments ended",
                    "none",
                    {"{{stage}}: {{end}}": "increase(schedagent_deployments_ended_total{%}[$w]) > 0"},
                    stacked=True,
                ),
                TRIPS,
                Panel(
                    "Lease and token",
                    "s",
                    {
                        "lease": "schedagent_deployment_lease_left_seconds{%}",
                        "token": "schedagent_deployment_token_left_seconds{%}",
                        "stage": "schedagent_deployment_stage_age_seconds{%}",
                    },
                    note="Time left of lease and token, and time since the stage began.",
                ),
                Panel(
                    "Error events",
                    "ops",
                    {"error events": "instance:schedagent_sched_ext_error_events:rate2m{%}"},
                    note="What the kernel had to repair; far above ten a second schedagentd ends the policy.",
                ),
                stat("Survives schedagentd", "none", "schedagent_deployment_pinned{%}", words=YES_NO),
                stat("One waits or rests", "none", "schedagent_deployment_waiting{%}", words=YES_NO),
            ),
            "Verifier": (
                Panel(
                    "Gates",
                    "none",
                    {"{{gate}}: {{result}}": "schedagent_verifier_gates_total{%} > 0"},
                    "bargauge",
                    "All verifications of runs in the repository.",
                ),
                Panel(
                    "Time in gates",
                    "s",
                    {"{{gate}}": "schedagent_verifier_gate_seconds_total{%}"},
                    "bargauge",
                ),
                Panel("Verifications", "none", {"{{result}}": "schedagent_verifications_total{%}"}, "bargauge"),
                Panel("Policies made here", "none", {"{{origin}}": "schedagent_derived_policies{%}"}, "bargauge"),
            ),
            "Trials": (
                Panel(
                    "Verdicts",
                    "none",
                    {"{{policy}}: {{outcome}}": "schedagent_trial_verdicts_total{%} > 0"},
                    "bargauge",
                ),
                Panel(
                    "Best result",
                    "percentunit",
                    {"{{policy}}": "schedagent_trial_best_ratio{%}"},
                    "bargauge",
                    "Candidate / default of the best verdict: 80 % is a fifth less.",
                ),
                Panel(
                    "Verdicts by ratio",
                    "none",
                    {"≤ {{le}}": "schedagent_trial_ratio_bucket{%}"},
                    "bargauge",
                    "How many conclusive verdicts are at or below each ratio; below 1 is better.",
                ),
                Panel("Measured runs", "none", {"samples": "increase(schedagent_trial_samples_total{%}[$w])"}),
            ),
        },
    ),
    "agent-cost": (
        "schedagent / Agent cost",
        "What is asked of models, and what it costs.",
        {
            "Cost": (
                stat("Dollars in a day", "currencyUSD", "instance:schedagent_model_cost_dollars:increase1d{%}"),
                stat("Dollars in all", "currencyUSD", "sum(schedagent_model_cost_dollars_total{%})"),
                stat("Answers in all", "none", "sum(schedagent_model_calls_total{%})"),
                stat(
                    "Answers without a price",
                    "none",
                    "sum(schedagent_model_unpriced_calls_total{%})",
                    steps=((0, "green"), (1, "orange")),
                ),
                Panel("Dollars", "currencyUSD", {"{{role}}": "increase(schedagent_model_cost_dollars_total{%}[$w])"}),
                Panel(
                    "Budget of the run that has used most",
                    "percentunit",
                    {"{{limit}}": "schedagent_model_budget_used_ratio{%}"},
                    note="Of the unfinished runs. At 100 % a run continues by rules, without a model.",
                    steps=((0, "green"), (0.8, "orange"), (1, "red")),
                ),
            ),
            "Requests": (
                Panel("Answers", "none", {"{{role}}": "increase(schedagent_model_calls_total{%}[$w])"}, stacked=True),
                Panel("Failures", "none", {"failed": "increase(schedagent_model_call_failures_total{%}[$w])"}),
                Panel(
                    "Tokens",
                    "none",
                    {"{{role}} {{direction}}": "increase(schedagent_model_tokens_total{%}[$w])"},
                    width=24,
                    stacked=True,
                ),
            ),
        },
    ),
}


def dashboard(name: str) -> Json:
    """Return one dashboard as Grafana imports it."""
    title, about, rows = DASHBOARDS[name]
    return {
        "uid": f"schedagent-{name}",
        "title": title,
        "description": about,
        "tags": ["schedagent"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_SOURCE_VARIABLE, _INSTANCE_VARIABLE]},
        "annotations": {"list": []},
        "links": [_LINKS],
        "panels": list(_laid_out(rows)),
    }


_SOURCE_VARIABLE = {
    "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0,
}  # fmt: skip
_INSTANCE_VARIABLE = {
    "name": "instance",
    "label": "Machine",
    "type": "query",
    "datasource": SOURCE,
    "query": "label_values(schedagent_up, instance)",
    "refresh": 2,
    "sort": 1,
    "multi": False,
    "includeAll": False,
    "hide": 0,
}
_LINKS = {
    "title": "schedagent", "type": "dashboards", "tags": ["schedagent"], "asDropdown": False, "includeVars": True,
    "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": "",
}  # fmt: skip


def _laid_out(rows: Mapping[str, Sequence[Panel]]) -> Iterator[Json]:
    """Panels from left to right and from top to bottom, each row under its title."""
    number, y = 0, 0
    for title, panels in rows.items():
        number += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        x, y, lowest = 0, y + 1, 0
        for panel in panels:
            number += 1
            if x + panel.width > WIDTH or (x and panel.height != lowest):
                x, y, lowest = 0, y + lowest, 0
            yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x, lowest = x + panel.width, max(lowest, panel.height)
        y += lowest


def _panel(number: int, panel: Panel, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            _target(refid, panel, *query) for refid, query in zip("ABCDEF", panel.queries.items(), strict=False)
        ],
    }


def _target(refid: str, panel: Panel, legend: str, expression: str) -> Json:
    bars = panel.kind in ("bargauge", "stat")
    return {
        "refId": refid,
        "datasource": SOURCE,
        "expr": expression.replace("%", ON_MACHINE).replace("$w", WINDOW),
        "legendFormat": legend or panel.title,
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        "instant": bars,
        "range": not bars,
    }


def _defaults(panel: Panel) -> Json:
    steps = [{"color": colour, "value": value or None} for value, colour in panel.steps or ((0, "green"),)]
    defaults: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.words:
        words = {str(value): {"text": text, "index": index} for index, (value, text) in enumerate(panel.words.items())}
        defaults["mappings"] = [{"type": "value", "options": words}]
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults |= {"min": 0, "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "stacking": stacking}}
    elif panel.kind == "state-timeline":
        defaults["custom"] = {"lineWidth": 0, "fillOpacity": 70}
    elif panel.kind == "heatmap":
        defaults["custom"] = {"scaleDistribution": {"type": "linear"}}
    if panel.kind != "timeseries" and (panel.steps or panel.kind == "stat"):
        defaults["color"] = {"mode": "thresholds"}
    return defaults


_CALCULATED = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
_OPTIONS: Mapping[str, Json] = {
    "timeseries": {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _CALCULATED, "colorMode": "value", "graphMode": "none", "justifyMode": "auto",
        "orientation": "auto", "textMode": "value", "wideLayout": True, "showPercentChange": False,
        "percentChangeColorMode": "standard",
    },
    "bargauge": {
        "reduceOptions": _CALCULATED, "displayMode": "basic", "orientation": "horizontal", "valueMode": "color",
        "namePlacement": "auto", "showUnfilled": True, "sizing": "auto", "minVizWidth": 8, "minVizHeight": 16,
        "maxVizHeight": 300,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
    },
    "state-timeline": {
        "showValue": "auto", "rowHeight": 0.9, "mergeValues": True, "alignValue": "left",
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    },
    "heatmap": {
        "calculate": False,
        "color": {
            "mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "scale": "exponential", "exponent": 0.5,
            "steps": 64, "reverse": False,
        },
        "cellGap": 1, "showValue": "never", "filterValues": {"le": 1e-9}, "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "rowsFrame": {"layout": "auto"}, "yAxis": {"unit": "s", "axisPlacement": "left", "reverse": False},
        "legend": {"show": True}, "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
    },
}  # fmt: skip


def main() -> None:
    for name in DASHBOARDS:
        text = json.dumps(dashboard(name), indent=2, ensure_ascii=False)
        (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
