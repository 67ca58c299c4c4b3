"""A few thousand random and mutated messages over schedagentd's socket; make fuzz-socket sends 100,000."""

from __future__ import annotations

import json

import pytest

from schedagent.core.errors import UsageError
from schedagent.schedagentd.messages import CHANGES, read_request
from tests.support.as_user import let_others_in
from tests.support.daemon_processes import request_of, scripted_kernel
from tests.support.socket_fuzz import CHANGER, LOOKER, STRANGER, Mutator, fuzz, judge

pytestmark = pytest.mark.timeout(180)


def test_no_crash_no_change_by_others_and_flat_memory(tmp_path):
    let_others_in(tmp_path)
    with scripted_kernel(tmp_path) as kernel:
        told = fuzz(tmp_path, kernel, 4000)
    assert sum(counts.total() for counts in told["seen"].values()) == 4000
    assert set(told["seen"][STRANGER]) == {"Refused"}
    assert {"ok", "UsageError", "Refused"} <= set(told["seen"][LOOKER])
    assert {"ok", "UsageError", "Refused", "TokenError"} <= set(told["seen"][CHANGER])


def test_what_is_sent_is_worth_sending():
    """Some of it is right, some nearly, some not at all; and there is something of every verb."""
    mutator = Mutator(3, [request_of("p1"), request_of("p2")])
    verbs, wrong = set(), 0
    for _message in range(2000):
        try:
            verbs.add(type(read_request(mutator.line().rstrip(b"\n"))))
        except UsageError:
            wrong += 1
    assert {*CHANGES} < verbs
    assert len(verbs) == 9
    assert 600 < wrong < 1800


def test_the_judge_knows_what_must_not_be():
    done = [json.dumps({"ok": {"created_at": 1.0}}).encode()]
    assert judge(LOOKER, done).startswith("WRONG")
    assert judge(STRANGER, done).startswith("WRONG")
    assert judge(CHANGER, done) == "ok"
    assert judge(CHANGER, [b"\xff"]).startswith("WRONG")
    assert judge(LOOKER, [b'{"ok": {}, "more": 1}']).startswith("WRONG")
    assert judge(LOOKER, []) == "none"
