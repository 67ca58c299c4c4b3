"""Documents that can rot: the generated tables of VERIFIER.md are those of the code."""

from __future__ import annotations

from schedagent.core.rules import GATES, RULES
from tests import documentation


def test_the_tables_are_up_to_date():
    page = documentation.PAGE.read_text()
    assert documentation.generated(page) == page, "run: make docs"


def test_every_rule_is_in_the_table_with_a_gate_and_a_test():
    lines = documentation.rules_table().splitlines()[2:]
    assert len(lines) == len(RULES) == 30
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == str(number)
        assert any(gate in cells[2] for gate in GATES)
        assert cells[3].startswith("`broken-"), f"no test shows that rule {number} is checked"
