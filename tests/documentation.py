"""Writes what is generated of the pages: the tables of packages, rules and oracles, metrics and alerts, limits, figures
of cgroups, and the fault matrix.

python -m tests.documentation          (make docs)
python -m tests.documentation --check  says whether it is up to date
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from schedagent.core.retention.limits import RETENTION
from schedagent.core.rules import RULES
from schedagent.metrics.catalog import FAMILIES
from tests.corpus import load_corpus
from tests.support import cgroup_figures
from tests.support.fault_matrix import FAULTS as FAULT_CELLS
from tests.support.fault_matrix import OUTCOMES, REAL, STEPS
from tests.support.packages import packages
from tests.support.paths import ROOT
from verifier.proving.prove import ORACLES

FAULTS = ROOT / "tests" / "unit" / "schedagentd" / "test_schedagentd_faults.py"


def rules_table() -> str:
    """One line per rule: what it says, the gates and oracles that check it, the broken policies that prove they do."""
    broken = [entry for entry in load_corpus() if entry.kind == "broken"]
    rows = []
    for rule in RULES.values():
        checks = ", ".join(rule.gates) + (f" ({', '.join(rule.checks)})" if rule.checks else "")
        tests = [f"`broken-{entry.name}`" for entry in broken if entry.rule == rule.number]
        rows.append((str(rule.number), rule.text, rule.class_text, checks, ", ".join(tests) or "-"))
    tested = "Tests (test_static_gates.py, test_gates.py)"
    return table(("Rule", "What must hold", "Class, and why", "Gates (oracles)", tested), rows)


def oracles_table() -> str:
    """One line per oracle: its bound and why it is that."""
    rows = [
        (oracle.name, str(oracle.rule), f"{oracle.bound:g} {oracle.unit}", oracle.reason) for oracle in ORACLES.values()
    ]
    return table(("Oracle", "Rule", "Bound", "Why"), rows)


def faults_table() -> str:
    """One line per test of the fault matrix: its name, and its docstring, which says what holds afterwards."""
    rows = []
    for group in ast.parse(FAULTS.read_text()).body:
        if isinstance(group, ast.ClassDef) and group.name.startswith("Test"):
            for test in group.body:
                if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                    fault = test.name.removeprefix("test_").replace("_", " ")
                    rows.append((f"{ast.get_docstring(group) or ''} {fault}", ast.get_docstring(test) or ""))
    return table(("Fault", "Afterwards"), rows)


def metrics_table() -> str:
    """One line per metric of the exporter: its name, type, labels with their values, and what it says."""
    rows = []
    for part, families in FAMILIES.items():
        for one in families:
            labels = "; ".join(f"{name}: {', '.join(values)}" for name, values in one.labels.items())
            rows.append((f"`{one.name}`", one.kind.value, labels or "-", part or "-", one.text))
    return table(("Metric", "Type", "Labels", "Part", "What it says"), rows)


def alerts_table() -> str:
    """One line per alert."""
    groups = yaml.safe_load((ROOT / "deploy/prometheus/schedagent.alerts.yml").read_text())["groups"]
    rows = [
        (
            f"`{one['alert']}`",
            one["labels"]["severity"],
            one["annotations"]["description"],
            one["annotations"]["action"],
        )
        for group in groups
        for one in group["rules"]
    ]
    return table(("Alert", "Severity", "What it means", "What to do"), rows)


def fault_matrix_table() -> str:
    """One line per fault: what is in charge after it came at each step. Each cell is a test (test_fault_matrix.py)."""
    rows = []
    for fault, (how, note, outcomes) in FAULT_CELLS.items():
        told = f"{fault} ({note})" if note else fault
        rows.append((told, *outcomes, "real processes" if how == REAL else "scripted kernel and clock"))
    steps = "\n".join(f"- *{step}*: {what}" for step, what in STEPS.items())
    words = "\n".join(f"- **{word}**: {what}" for word, what in OUTCOMES.items())
    return f"{steps}\n\n{table(('Fault', *STEPS, 'Tried on'), rows)}\n\n{words}"


def packages_table() -> str:
    """One line per package: what it is for, and what it may import (tests/architecture holds it to that)."""
    rows = []
    for package in packages().values():
        allowed = ", ".join(f"`{name.removeprefix('schedagent.')}`" for name in package.may_import)
        rows.append((f"`{package.name}`", package.purpose.rstrip("."), allowed or "-"))
    return table(("Package", "Holds", "May import, besides its own"), rows)


def limits_table() -> str:
    """One line per kind of thing that grows: its limit, who enforces it, and what stays whatever its age."""
    rows = [(limit.what, limit.place, limit.text, limit.keeper, limit.stays or "-") for limit in RETENTION.values()]
    return table(("What", "Where", "Limit", "Enforced by", "What stays"), rows)


def cgroup_limits_table() -> str:
    """One line per limit of cgroups: what it should be, and how it held under each policy (make bench-limits)."""
    figures = cgroup_figures.recorded()
    return table(("Limit", "Wanted", *figures), cgroup_figures.rows(figures))


PAGES = {
    ROOT / "ARCHITECTURE.md": {"packages": packages_table},
    ROOT / "RETENTION.md": {"limits": limits_table},
    ROOT / "deploy/prometheus/METRICS.md": {"metrics": metrics_table, "alerts": alerts_table},
    ROOT / "VERIFIER.md": {"rules": rules_table, "cgroup limits": cgroup_limits_table, "oracles": oracles_table},
    ROOT / "SECURITY.md": {"fault matrix": fault_matrix_table, "faults": faults_table},
}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '¦') for cell in line)} |" for line in lines)


def generated(path: Path) -> str:
    """Return the text of a page with every generated section made anew."""
    page = path.read_text()
    for name, make in PAGES[path].items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        before, found, rest = page.partition(begin)
        _old, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{path.name} has no section between {begin.strip()} and {end}")
        page = f"{before}{begin}{make()}\n{end}{after}"
    return page


def main(words: Sequence[str]) -> int:
    stale = [path for path in PAGES if generated(path) != path.read_text()]
    if "--check" in words:
        return int(bool(stale))
    for path in stale:
        path.write_text(generated(path))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
