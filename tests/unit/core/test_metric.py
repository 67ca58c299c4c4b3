"""Reading numbers out of what real tools, locales and hostile programs print."""

from __future__ import annotations

import re

import pytest

from schedagent.core.errors import MetricError
from schedagent.core.readings import metric
from schedagent.core.readings.metric import FAILURE_OUTPUT_LINES, Units, clean, figure, find, last_lines, problem_of

EXPRESSION = r"p99: ([\d.]+)"


def read(text, expression=EXPRESSION):
    return find(expression, clean(text), "--metric")


def refused(text, expression=EXPRESSION):
    with pytest.raises(MetricError) as caught:
        read(text, expression)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


# --- which match counts ----------------------------------------------------------------------------------------------


def test_the_match_nearest_the_end_counts_and_the_others_are_mentioned():
    reading = read("p99: 1\nnoise\np99: 2\np99: 2.5 ms")
    assert (reading.value, reading.matches) == (0.0025, 3)
    assert reading.shown == "read 2.5 ms from: `p99: 2.5 ms` (matched 3 times; the last one counts)"


def test_one_match_is_shown_with_the_text_around_it():
    assert read("the end\np99 latency: 1.21ms\n", r"latency: ([\d.]+)").shown == (
        "read 1.21 ms from: `p99 latency: 1.21ms`"
    )


def test_a_long_line_is_cut_to_what_is_around_the_number():
    shown = read("x" * 500 + " p99: 7.5 " + "y" * 500).shown
    assert "p99: 7.5" in shown
    assert len(shown) < 130


def test_without_a_group_the_whole_match_is_the_number():
    assert read("took\n7\n", r"\d+$").value == 7


def test_lines_have_beginnings_and_ends():
    assert read("subtotal 1\ntotal 2\r\nend", r"^total (\d+)$").value == 2


@pytest.mark.parametrize(
    ("choice", "value"), [("max", 16), ("min", 1), ("sum", 21), ("mean", 7), ("gmean", 4), ("other", 4)]
)
def test_the_name_of_the_group_says_which_match_counts(choice, value):
    assert read("t 1\nt 16\nt 4\n", rf"t (?P<{choice}>\d+)").value == pytest.approx(value)


def test_the_match_that_counts_is_the_one_that_is_shown():
    assert read("t 1\nt 16\nt 4\n", r"t (?P<max>\d+)").shown == (
        "read 16 from: `t 16` (matched 3 times; the largest counts)"
    )


def test_no_match_is_no_number():
    assert read("the end") is None


def test_the_end_of_the_output():
    assert last_lines("") == "    (it printed nothing)"
    assert last_lines("one\ntwo") == "    one\n    two"
    shown = last_lines("\n".join(map(str, range(1000)))).splitlines()
    assert len(shown) == FAILURE_OUTPUT_LINES
    assert shown[-1] == "    999"


def test_the_expression_that_matched_nothing_is_shown_as_it_can_be_given_again():
    error = metric.unmatched("--metric", r"it's (\d+)", "the end")
    assert r"--metric 'it'\''s (\d+)' matched nothing in the workload's output" in error.message
    assert error.message.endswith("\n    the end")
    assert "stdout and stderr" in error.hint


# --- what is a number ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("7.5", 7.5),
        ("5.", 5),
        ("1,234.5", 1234.5),
        ("1,234,567", 1234567),
        ("1_000", 1000),
        ("1'234'567.5", 1234567.5),
        ("1\u202f234", 1234),
        ("1\u00a0234,5", 1234.5),
        ("1e-3", 0.001),
        ("1.5E3", 1500),
        ("12,5", 12.5),
        ("0,998", 0.998),
        ("1.234.567,8", 1234567.8),
        ("1,234", 1234),
        ("5,100,7", 5),  # a list
        ("\u0663\u066b\u0665", 3.5),  # Arabic digits and decimal separator
        ("\u0661\u066c\u0662\u0663\u0664", 1234),  # ... and thousands separator
        ("\uff11\uff12", 12),  # full width
    ],
)
def test_numbers_as_people_and_locales_print_them(text, value):
    assert read(f"p99: {text}\n").value == value


@pytest.mark.parametrize(
    ("printed", "value"), [("1 234", 1234), ("1 234.5", 1234.5), ("1 234 567", 1234567), (" 7 ", 7), ("+3", 3)]
)
def test_spaces_count_where_the_expression_takes_them_in(printed, value):
    assert read(f"is {printed}", r"is ([\d .+]+)").value == value


def test_a_space_that_may_group_digits_or_part_columns_is_refused():
    message = refused("p99: 1 234 us")
    assert message == (
        "--metric cannot tell whether the spaces group the digits of one number or part several, in: `p99: 1 234 us`"
    )


@pytest.mark.parametrize("line", ["p99: 5 100 7", "p99: 0 123", "p99: 12.5 100", "p99: 5  100", "p99: 1234 100"])
def test_columns_that_cannot_be_one_number_are_left_alone(line):
    assert read(line).value == float(line.split()[1]) or line.startswith("p99: 0")


def test_an_expression_that_continues_after_its_group_says_where_the_number_ends():
    assert read("total,5,100", r"^total,(\d+),").value == 5
    assert read("p99: 1 234", r"p99: (\d+) ").value == 1


@pytest.mark.parametrize("printed", ["1,234.5", "1_000", "1e-3", "1\u202f234"])
def test_an_expression_that_skips_the_rest_of_a_number_is_refused(printed):
    assert f"found '1', the beginning of {printed!r}, in: `p99: {printed} ms`" in refused(
        f"p99: {printed} ms", r"p99: (\d+).*ms"
    )


def test_a_label_after_a_number_is_no_unit():
    line = "T: 0 (11739) P: 0 I:1000 C:    500 Min:     27 Act:   81 Avg:   94 Max:    5325"
    assert read(line, r"C: *(\d+)").value == 500
    assert read(line, r"T: (\d+)").zero


def test_a_list_is_no_number_with_groups():
    assert read("total,5,100", r"^total,(\d+)").value == 5


@pytest.mark.parametrize(
    "printed", ["nan", "-nan", "inf", "-inf", "-3", "\u22123", "fast", "", "1.21 foo", "0x1f", "--"]
)
def test_what_is_no_number_from_0_up(printed):
    assert "which is not a number from 0 up, in: `is" in refused(f"is {printed}", "is (.*)")


def test_a_minus_before_the_group_is_seen_and_a_hyphen_is_none():
    assert "not a number" in refused("p99 -5", r"p99 .?(\d+)$")
    assert read("p99-5", r"p99.(\d+)").value == 5


def test_a_group_that_took_no_part():
    assert "matched None" in refused("is", r"is( \d+)?")


def test_a_time_of_the_clock_is_refused():
    assert "a time of the clock" in refused("p99: 1:23.4")


def test_what_no_float_can_hold_is_refused():
    assert "not a number" in refused("p99: 1e999")
    assert "not a number" in refused("p99: 1e99999999999")


@pytest.mark.parametrize(
    ("printed", "value"), [("0", 0.5), ("0.0", 0.05), ("0.00ms", 5e-6), ("0m0.000s", 5e-4), ("0%", 0.5), ("0,0", 0.05)]
)
def test_half_of_the_last_printed_digit_stands_for_a_zero(printed, value):
    reading = read(f"p99: {printed}")
    assert reading.value == pytest.approx(value)
    assert reading.zero
    assert "half of its last digit, stands for it" in reading.shown


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "value", "kind"),
    [
        ("1.21ms", 0.00121, "s"),
        ("980.00us", 0.00098, "s"),
        ("980 \u00b5s", 0.00098, "s"),
        ("980\u03bcs", 0.00098, "s"),
        ("12 nsec", 12e-9, "s"),
        ("2 milliseconds", 0.002, "s"),
        ("0.0073 secs", 0.0073, "s"),
        ("1.10m", 66, "s"),
        ("2 min", 120, "s"),
        ("1m2.5s", 62.5, "s"),
        ("1h1m1s", 3661, "s"),
        ("0m1.234s", 1.234, "s"),
        ("1234 ns/op", 1.234e-6, "s"),
        ("1.5e3ms", 1.5, "s"),
        ("16.7k", 16700, ""),
        ("1.2M", 1.2e6, ""),
        ("3 G", 3e9, ""),
        ("2Ki", 2048, ""),
        ("5 kops", 5000, ""),
        ("5Mrps", 5e6, ""),
        ("980 requests", 980, ""),
        ("65.1MiB/s", 65.1 * 2**20, "B"),
        ("3 KB", 3000, "B"),
        ("1.5 Mbits/sec", 1.5e6, "bit"),
        ("5%", 5, "%"),
        ("2 minimal", 2, ""),
        ("2.5x", 2.5, "x"),
        ("7 (ms)", 7, ""),
    ],
)
def test_units_are_brought_to_one(printed, value, kind):
    reading = read(f"p99: {printed} and more")
    assert (reading.value, reading.kind) == (pytest.approx(value), kind)


def test_a_unit_elsewhere_is_found_by_the_expression():
    text = "  clat (usec): min=42, max=5385, avg=78.72\n"
    expression = r"clat \((?P<unit>\w+)\): .*avg=([\d.]+)"
    assert read(text, expression).value == pytest.approx(78.72e-6)
    assert read(text.replace("78.72", "1.2k"), expression).value == pytest.approx(1200e-6)
    assert problem_of(expression) == ("", "")


def test_values_are_compared_in_one_unit():
    assert read("p99: 1.21ms").value > read("p99: 980.00us").value


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [(0.00121, "s", "1.21 ms"), (62.5, "s", "62.5 s"), (5e-6, "s", "5 us"), (3e-9, "s", "3 ns"), (1500, "", "1500")],
)
def test_figures(value, kind, shown):
    assert figure(value, kind) == shown


def test_a_unit_of_another_kind_than_before_is_refused_in_one_line_that_names_both():
    units = Units()
    units.check("p99", read("p99: 1.21ms"))
    units.check("p99", read("p99: 980us"))
    units.check("other", read("p99: 980"))
    with pytest.raises(MetricError) as caught:
        units.check("p99", read("p99: 980"))
    assert caught.value.message == (
        "p99 was seconds in one place (`p99: 1.21ms`) and a count in another (`p99: 980`), so they cannot be compared"
    )


def test_a_word_that_is_no_known_unit_may_not_change_either():
    units = Units()
    units.check("p99", read("p99: 980fps"))
    with pytest.raises(MetricError, match=r"in 'fps' in one place .* in 'kfps' in another"):
        units.check("p99", read("p99: 1.2kfps"))


def test_a_comma_that_changes_its_meaning_is_refused():
    units = Units()
    for text in ("p99: 1,234", "p99: 999", "p99: 1,001.5"):
        units.check("p99", read(text))
    with pytest.raises(MetricError, match=r"before thousands .*`p99: 1,234`.* before decimals .*`p99: 0,998`"):
        units.check("p99", read("p99: 0,998"))


def test_matches_of_which_one_is_chosen_have_one_unit():
    assert "was seconds in one place" in refused("t 1ms\nt 5\n", r"t (?P<max>\d+)")


# --- hostile output --------------------------------------------------------------------------------------------------


def test_colours_do_not_hide_a_number():
    assert read("\x1b[32mp99: \x1b[1;31m7.5\x1b[0m ms").value == 0.0075
    assert read("\x1b]0;title\x07p99: \x1b(B7.5").value == 7.5
    assert read("\x9b32mp99: 7\x1b[K").value == 7


def test_an_escape_that_does_not_end_takes_no_more_than_its_line():
    assert read("\x1b]0;no end\np99: 7").value == 7


def test_progress_that_overwrites_itself():
    assert read("p99: 1\rp99: 2\rp99: 3\r\nend", r"^p99: (\d+)$").value == 3


def test_nul_bytes_and_bytes_that_are_no_text():
    text = b"\0\xff\xfep99: 7.5\0\0ms\n".decode(errors="replace")
    assert read(text).value == 7.5


@pytest.mark.timeout(60)
@pytest.mark.parametrize("expression", [r"(a+)+$", r"(a*)*\d$"])
def test_an_expression_that_used_to_hang_finds_nothing(expression):
    assert read("a" * 200 + "b", expression) is None


@pytest.mark.timeout(60)
@pytest.mark.parametrize("expression", [r"(a|a)+$", r"(a|aa)+$"])
def test_an_expression_that_backtracks_is_stopped(expression, monkeypatch):
    monkeypatch.setattr(metric, "LIMIT_S", 0.05)
    assert refused("a" * 200 + "b", expression) == (
        f"--metric: the expression '{expression}' took more than 0.05 s on the output of one run"
    )


def test_a_megabyte_of_matches():
    reading = read("1 " * 500_000, r"(\d)")
    assert (reading.value, reading.matches) == (1, 500_000)


# --- expressions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "needed", "problem"),
    [
        ("p99: (", False, "is not a regular expression: missing )"),
        ("(p99|p50): (.*)", False, "has 2 groups"),
        (r"\d+$", False, ""),
        (r"\d+$", True, "has no group that finds a number"),
        (r"\((?P<unit>\w+)\)", True, "has no group that finds a number"),
        (r"(?P<max>\d+)", True, ""),
    ],
)
def test_problems_of_an_expression(expression, needed, problem):
    what, hint = problem_of(expression, group_needed=needed)
    assert re.match(re.escape(problem), what) if problem else not what
    assert bool(hint) == bool(problem)
