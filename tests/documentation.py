"""Writes the parts of VERIFIER.md that are generated: the tables of rules, oracles and kernels' words.

python -m tests.documentation          (make docs)
python -m tests.documentation --check  says whether it is up to date
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from schedagent.core.rules import RULES
from tests.corpus import load_corpus
from verifier.proving.prove import ORACLES

PAGE = Path(__file__).resolve().parents[1] / "VERIFIER.md"


def rules_table() -> str:
    """One line per rule: what it says, the gates and oracles that check it, the broken policies that prove they do."""
    broken = [entry for entry in load_corpus() if entry.kind == "broken"]
    rows = []
    for rule in RULES.values():
        checks = ", ".join(rule.gates) + (f" ({', '.join(rule.checks)})" if rule.checks else "")
        tests = [f"`broken-{entry.name}`" for entry in broken if entry.rule == rule.number]
        rows.append((str(rule.number), rule.text, checks, ", ".join(tests) or "-"))
    return table(("Rule", "What must hold", "Gates (oracles)", "Tests (test_static_gates.py, test_gates.py)"), rows)


def oracles_table() -> str:
    """One line per oracle: its bound and why it is that."""
    rows = [
        (oracle.name, str(oracle.rule), f"{oracle.bound:g} {oracle.unit}", oracle.reason) for oracle in ORACLES.values()
    ]
    return table(("Oracle", "Rule", "Bound", "Why"), rows)


SECTIONS = {"rules": rules_table, "oracles": oracles_table}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '¦') for cell in line)} |" for line in lines)


def generated(page: str) -> str:
    """Return the page with every generated section made anew."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        before, found, rest = page.partition(begin)
        _old, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{PAGE.name} has no section between {begin.strip()} and {end}")
        page = f"{before}{begin}{make()}\n{end}{after}"
    return page


def main(words: Sequence[str]) -> int:
    page = PAGE.read_text()
    fresh = generated(page)
    if "--check" in words:
        return int(fresh != page)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
