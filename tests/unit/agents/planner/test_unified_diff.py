"""Unified diffs: what difflib writes is applied, what does not fit is refused with hunk and line."""

import difflib
import time
from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agents.planner.unified_diff import MOST_LINES, apply_diff
from schedagent.core.errors import PolicyError

SOURCE = "\n".join(f"line {number}" for number in range(1, 21)) + "\n"


def diff_of(old, new, context=3):
    made = difflib.unified_diff(old.splitlines(), new.splitlines(), "a", "b", lineterm="", n=context)
    return "\n".join(made) + "\n"


def refused(diff, source=SOURCE):
    with pytest.raises(PolicyError) as caught:
        apply_diff(source, diff)
    return str(caught.value)


LINES = st.lists(st.sampled_from(["", "{", "}", "\tx;", "a", " b", "--", "++ c", "@ d"]), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(LINES, LINES)
def test_what_difflib_writes_leads_from_one_text_to_the_other(old, new):
    old_text, new_text = ("\n".join(lines) + "\n" for lines in (old, new))
    assume(old != new)
    assert apply_diff(old_text, diff_of(old_text, new_text)) == new_text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LINES, LINES, st.text(max_size=300))
def test_any_text_is_applied_or_refused(old, new, noise):
    diff = diff_of("\n".join(old), "\n".join(new)) + noise
    with suppress(PolicyError):
        assert isinstance(apply_diff("\n".join(new), diff), str)


def test_several_hunks():
    new = SOURCE.replace("line 2\n", "").replace("line 10\n", "line 10\nmore\n").replace("line 19", "changed")
    diff = diff_of(SOURCE, new)
    assert diff.count("@@ -") == 3
    assert apply_diff(SOURCE, diff) == new


CHANGE = " line 9\n-line 10\n+line ten\n line 11\n"


@pytest.mark.parametrize(
    "header",
    ["@@ -9,3 +9,3 @@", "@@ -2,3 +2,3 @@", "@@ -900,1 +1,77 @@ static void f(void)", "@@", "@@ ... @@", "@@ -9 +9 @@"],
)
def test_line_numbers_and_counts_may_be_wrong(header):
    wanted = SOURCE.replace("line 10", "line ten")
    assert apply_diff(SOURCE, f"{header}\n{CHANGE}") == wanted
    assert apply_diff(SOURCE, f"diff --git a/x b/x\nindex 1..2\n--- a/x\n+++ b/x\n{header}\n{CHANGE}\n\n") == wanted


def test_stripped_spaces_are_context():
    source = "a\n\n\tb\n\nc\n"
    assert apply_diff(source, "@@ -1,5 +1,5 @@\n a\n\n\tb\n\n-c\n+d\n") == "a\n\n\tb\n\nd\n"


def test_no_newline_at_the_end():
    diff = "@@ -2 +2 @@\n a\n-b\n\\ No newline at end of file\n+c\n\\ No newline at end of file\n"
    assert apply_diff("a\nb", diff) == "a\nc"


def test_a_place_is_named_by_its_number_or_must_be_the_only_one():
    source = "x\n{\n\ty;\n}\n" * 3
    change = "\n {\n-\ty;\n+\tz;\n }\n"
    assert apply_diff(source, f"@@ -6,3 +6,3 @@{change}").split("\n")[6] == "\tz;"
    said = refused(f"@@ -5,3 +5,3 @@{change}", source)
    assert "hunk 1 (line 1 of the diff) fits in 3 places of the source: at lines 2, 6, 10" in said
    assert "more lines of context" in said


@pytest.mark.parametrize(
    ("diff", "said"),
    [
        ("", "the diff has no hunk"),
        ("please change the slice to 5 ms", "the diff has no hunk"),
        ("--- a\n+++ b\n-line 1\n+line one\n", "the diff has no hunk"),
        ("@@ -1,2 +1,2 @@\n line 1\n line 2\n", "hunk 1 (line 1 of the diff) changes nothing"),
        ("@@ -1 +1 @@\n-line 1\n+line 1\n", "hunk 1 (line 1 of the diff) changes nothing"),
        ("@@ -1,2 +1,2 @@\n", "hunk 1 (line 1 of the diff) changes nothing"),
        ("@@ -3,0 +4 @@\n+line x\n", "hunk 1 (line 1 of the diff) has no line of context"),
        ("@@ -1 +1 @@\nline 1\n+x\n", "line 2 of the diff, in hunk 1, begins with none of space, - and +: 'line 1'"),
        ("@@ -1 +1 @@\n-line 1\n+x\n```\n", "line 4 of the diff, in hunk 1, begins with none of space, - and +: '```'"),
        ("@@ -1 +1 @@\n-line 1\n+x\n--- a/y\n+++ b/y\n@@ -1 +1 @@\n-y\n+z\n",
         "line 4 of the diff begins a second file: --- a/y"),
        ("@@ -5 +5 @@\n line 5\n-line  6\n+x\n",
         "hunk 1 (line 1 of the diff) does not apply: line 3 of the diff is 'line  6', but line 6 of the source is "
         "'line 6'"),
        ("@@ -5 +5 @@\n-nothing\n+x\n",
         "hunk 1 (line 1 of the diff) does not apply: line 2 of the diff is nowhere in the source: 'nothing'"),
        ("@@ -20 +20 @@\n line 20\n \n-line 21\n+x\n",
         "line 4 of the diff is 'line 21', but line 22 of the source is its end"),
        ("@@ -9 +9 @@\n-line 9\n+x\n@@ -2 +2 @@\n-line 2\n+y\n",
         "hunk 2 (line 4 of the diff) does not apply: line 5 of the diff is nowhere in the source behind line 9, where "
         "the hunk before it ends: 'line 2'"),
        ("@@ -1 +1 @@\n-line 1\n" + "+x\n" * MOST_LINES, f"the diff has {MOST_LINES + 2} lines, accepted are at most"),
    ],
)  # fmt: skip
def test_what_does_not_apply_is_refused_with_hunk_and_line(diff, said):
    assert said in refused(diff)


def test_trailing_spaces_count():
    assert "does not apply" in refused("@@ -1 +1 @@\n-line 1 \n+x\n")


def test_the_worst_diff_takes_seconds_at_most():
    started = time.process_time()
    refused("@@ -1 +1 @@\n" + " \n" * (MOST_LINES - 3) + "-x\n+y\n", "\n" * 50_000)
    assert time.process_time() - started < 8
