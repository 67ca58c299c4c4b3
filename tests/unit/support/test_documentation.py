"""Documents that can rot: the generated tables are those of the code and of the tests."""

from __future__ import annotations

import re

import pytest

from schedagent.core.rules import GATES, RULES
from tests import documentation
from tests.support.fault_matrix import FAULTS, STEPS
from tests.support.paths import ROOT


@pytest.mark.parametrize("page", documentation.PAGES, ids=lambda page: page.name)
def test_the_tables_are_up_to_date(page):
    assert documentation.generated(page) == page.read_text(), "run: make docs"


def test_every_fault_says_what_holds_afterwards():
    rows = [line.strip("| ").split(" | ") for line in documentation.faults_table().splitlines()[2:]]
    assert len(rows) >= 5
    assert all(len(row) == 2 and row[1] for row in rows)


def test_every_fault_is_told_for_every_step():
    lines = [line for line in documentation.fault_matrix_table().splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(FAULTS) == 15
    assert all(line.count(" | ") == len(STEPS) + 1 for line in lines)


def test_every_rule_is_in_the_table_with_a_gate_and_a_test():
    lines = documentation.rules_table().splitlines()[2:]
    assert len(lines) == len(RULES) == 33
    for number, line in zip(RULES, lines, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == str(number)
        assert cells[2] == RULES[number].class_text.replace("|", "¦")
        assert any(gate in cells[3] for gate in GATES)
        assert cells[4].startswith("`broken-"), f"no test shows that rule {number} is checked"


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def test_the_architecture_is_read_in_ten_minutes():
    assert len(ARCHITECTURE.split()) <= 2000


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "DECISIONS.md", "HACKING.md", "SECURITY.md", "VERIFIER.md"])
def test_every_file_that_a_document_names_exists(page):
    """Paths in backquotes; a bare file name may lie anywhere below a folder of ours."""
    names = set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|c|h|lock))`", (ROOT / page).read_text()))
    assert page != "ARCHITECTURE.md" or len(names) >= 30
    assert [name for name in sorted(names) if not there(name)] == []


def there(name: str) -> bool:
    """Whether a name is that of a file: from the root, or the end of a path of ours."""
    return (ROOT / name).exists() or any(path.match(name) for path in ROOT.rglob(name.rpartition("/")[2]))


def test_every_attack_names_tests_that_exist():
    section = (ROOT / "SECURITY.md").read_text().partition("## Attacks, and what stops them")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    existing = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = [set(re.findall(r"`(test_\w+\.py)`", row.rsplit("|", 2)[1])) for row in rows if "| Test |" not in row]
    assert len(named) >= 25
    assert all(named)
    assert set.union(*named) <= existing
