"""Figures in a model's words: found in digits and words, kept only if they were measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.claims import (
    Figures,
    figures_in,
    figures_of,
    figures_of_profile,
    measured_only,
)
from schedagent.core.trials.trial import Outcome
from tests.support.model_session import PROFILE, verdict

KNOWN = Figures(frozenset({3.2, 2.0}), frozenset({19.6}), frozenset({0.804}), frozenset({8.0}))


@pytest.mark.parametrize(
    "text",
    [
        *("measured 45 % faster in 12 pairs", "forty-five percent faster", "Forty five per cent", "twice as fast"),
        *("half the time", "halved", "three times as fast", "a dozen pairs", "½ of it", "2½", "٤٥", "４５", "4\u200b5"),
        *("45٪", "四十五", "сорок пять", "fоrty", "XLV percent", "XLV", "by45 %", "by45", "a third less", "two thirds"),
        *("3/4", "1⁄2", "ten-fold", "tenfold", "several-fold", "many times", "an order of magnitude", "a hundred"),
        *("one hundred and five", "thousands of them", "one point five", "1.45x", "1.45×", "45%", "doubles it", "2 %"),
        *("a quarter", "20 pairs", "19 percent", "0.81 times", "4.5e1", "1e999", "two pairs", "3.21 s", "one percent"),
        "f\u0336orty",
    ],
)
def test_invented_figures(text):
    assert measured_only(f"It is good. So {text} it is. It is fine.", KNOWN) == "It is good. It is fine."


@pytest.mark.parametrize(
    "text",
    [
        *(
            "It takes 3.20 s on 2 CPUs.",
            "It takes 3 s.",
            "About 20 %, or 19.6 percent.",
            "Two CPUs.",
            "A second queue.",
        ),
        *("0.80 times as long, in 8 pairs.", "p99 of gcc12 in v1.2.3 on x86_64, kernel 6.12.5.", "I/O and us/ms."),
        *("One queue, and the third CPU in the first second.", "Wake-up times vary by a large percentage."),
        "A naïve one, some μs.",
    ],
)
def test_what_was_measured_and_what_is_no_figure_stays(text):
    assert measured_only(text, KNOWN) == text


def test_a_figure_of_one_kind_proves_none_of_another():
    assert measured_only("8 % faster.", KNOWN) == measured_only("3.2 times.", KNOWN) == ""
    assert measured_only("0.8 pairs.", KNOWN) == ""


def test_figures_of_a_verdict_are_its_ratio_and_what_follows_from_it():
    known = figures_of(verdict(Outcome.BETTER, 0.8, 8, "a gain of at least 18%, probably 20%, in 8 pairs"))
    kept = "A gain of 20 %, at least 18 %: 0.80 times, or 1.25x, in 8 pairs."
    assert measured_only(kept, known) == kept
    assert measured_only("21 % it is.", known) == ""


def test_a_failure_s_reason_measures_nothing():
    """It holds what others wrote: clang's lines, the kernel's, a policy's."""
    failure = replace(verdict(Outcome.FAILED, 1.0, 8), reason='gate failed: "45 % better in 12 pairs"')
    assert measured_only("It is 45 % better.", figures_of(failure)) == ""


def test_a_program_s_name_measures_nothing():
    longest = replace(PROFILE.commands[0], label="45 % faster in 12 pairs")
    profile = replace(PROFILE, commands=(longest,), evidence=("the longest, 45 % faster in 12 pairs, is 7.0 times it",))
    known = figures_of_profile(profile)
    assert measured_only("45 % faster.", known) == ""
    assert measured_only("7.0 times it.", known) == "7.0 times it."


@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    figures_in(text)
    assert len(measured_only(text, KNOWN)) <= len(text)


@given(st.integers(0, 10**9), st.sampled_from(["%", " percent", " times", "x", " pairs", "", " s"]))
def test_no_number_passes_that_was_not_measured(value, unit):
    if value not in (2, 3, 8, 20, 1):
        assert measured_only(f"So {value}{unit}.", KNOWN) == ""
