"""The README: short, true in its figures and links, and each of its commands run by a test."""

from __future__ import annotations

import re

import pytest

from schedagent.core.rules import GATES
from schedagent.core.trials.judge import TrialRules
from schedagent.core.trials.trial import Outcome
from tests.support.paths import ROOT
from tests.support.readme import TEXT, commands

MOST_WORDS = 900
FIRST_SCREEN = 24

RUN_BY = {
    "make demo": "tests/e2e/test_wheel.py",
    "make test": ".ci/run",
    "pip install .": "tests/e2e/test_wheel.py",
    "schedagent setup": "tests/e2e/test_wheel.py",
    "schedagent doctor": "tests/e2e/test_wheel.py",
    'schedagent optimize "make -j" --dir ~/src/project --prepare "make clean"': "tests/e2e/test_wheel.py",
    'schedagent compare "make -j2" --scheduler longest_first': "tests/e2e/test_compare.py",
    "schedagent runs show RUN": "tests/e2e/test_wheel.py",
    "schedagent verify longest_first": "tests/e2e/test_wheel.py",
    "sudo schedagent deploy RUN": "tests/e2e/test_wheel.py",
}
"""Command -> what runs it."""

NUMBERS = {6: "six", 7: "Seven"}


def test_it_is_short():
    assert len(TEXT.split()) <= MOST_WORDS


def test_the_two_commands_of_a_fresh_machine_are_on_the_first_screen():
    screen = "\n".join(TEXT.splitlines()[:FIRST_SCREEN])
    assert "make demo" in screen
    assert "make test" in screen


def test_a_test_runs_each_command():
    assert set(commands()) == set(RUN_BY)
    for command, where in RUN_BY.items():
        text = (ROOT / where).read_text(encoding="utf-8")
        assert all(word in text for word in command.removesuffix(" RUN").split()), (command, where)


def test_its_figures_are_the_programs():
    rules = TrialRules()
    assert f"takes {NUMBERS[rules.minimum_pairs]} pairs or more" in TEXT
    assert f"**{NUMBERS[len(GATES)]} gates before a trial.**" in TEXT
    assert f"an effect above {100 * rules.minimum_effect:.0f} %" in TEXT
    assert f"the interval is within {200 * rules.minimum_effect:.0f} %" in TEXT
    assert f"a gain of {100 * rules.minimum_effect:.0f} % is excluded" in TEXT
    assert re.search(rf"with {100 * rules.confidence:.0f} %\s+confidence", TEXT)


def test_it_explains_each_verdict():
    assert re.findall(r"^\| (\w[\w -]+) \| .* \|$", TEXT, re.MULTILINE)[1:] == [outcome.value for outcome in Outcome]


@pytest.mark.parametrize("path", re.findall(r"\]\(([^):]+)\)", TEXT))
def test_what_it_links_to_exists(path):
    assert (ROOT / path).exists()


def test_its_picture_loads_nothing_from_elsewhere_and_shows_when_it_was_made():
    picture = (ROOT / "deploy" / "picture.svg").read_text(encoding="utf-8")
    assert re.findall(r"https?://[^\"' <]+", picture) == ["http://www.w3.org/2000/svg"]
    assert re.search(r"schedagent&#160;[0-9.]+.*a&#160;real&#160;run&#160;of&#160;2[0-9-]{9}", picture)
