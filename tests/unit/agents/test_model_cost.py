"""What a policy costs from the profile to the verified candidate: calls and tokens as they were recorded.

The endpoint reports no tokens here, so all of each request is counted: prompts, data, tools and answer schemas.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.llm.exchange import estimated_tokens
from agents.llm.transcript import read_transcript, transcript_path
from kernel_bpf.policies.library import load_library
from tests.support.model_server import ModelServer
from tests.support.model_session import proposed
from tests.support.scripted_lab import Script
from tests.support.scripted_model import ONE_PLAN, SPEC, Mind, by_policy, decided, on, plan

LIBRARY = load_library()
SOURCE = LIBRARY["longest_first"].source.read_text()
RANGE = "/* Time a task runs before the order is looked at. 500 to 100000. */"
MINE = SOURCE.replace("longest_first", "mine").replace(
    "/* Time a task of default weight runs before the order is looked at. */", RANGE
)
REPAIR = f"""--- a/mine.bpf.c
+++ b/mine.bpf.c
@@ -29,2 +29,2 @@
 {RANGE}
-const volatile u64 slice_us = 10000;
+const volatile u64 slice_us = 5000;
"""


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "state").mkdir()
    return Script(tmp_path, options=replace(ONE_PLAN, candidates=1), bundled=LIBRARY)


def spent_until_verified(script: Script, report) -> tuple[int, int]:
    """Calls and tokens before Learning is asked: it follows the trials."""
    _header, exchanges = read_transcript(transcript_path(script.settings.state_dir, report["run"]))
    records = [exchange.record for exchange in exchanges if exchange.request.role != "learning"]
    assert all(record.estimated for record in records)
    return len(records), sum(record.tokens for record in records)


def looks(name, part="source"):
    return {"tool_calls": [{"name": "show_policy", "arguments": {"policy": name, "part": part}}]}


def test_a_composed_policy(script):
    mind = Mind([looks("longest_first", "summary"), plan(proposed("tail_first", "compose", spec=SPEC))], usage=None)
    with ModelServer(mind) as server:
        thinking = on(script, server)
        report = thinking.drive(thinking.create())
    assert by_policy(report)["tail_first"]["gates"][-1]["status"] == "passed"
    calls, tokens = spent_until_verified(thinking, report)
    assert calls == 3, "observation, one look, the plan: four may be needed"
    assert tokens <= 12_000


def test_a_generated_policy_with_one_repair(script):
    assert estimated_tokens(MINE) > 900, "a policy of the usual size"
    generated = proposed("mine", "generate", source=MINE)
    mind = Mind([looks("longest_first"), plan(generated)], [decided("repair", diff=REPAIR)], usage=None)
    with ModelServer(mind) as server:
        thinking = on(replace(script, faults={"mine": "scheduling logic"}), server)
        report = thinking.drive(thinking.create())
    found = by_policy(report)
    assert found["mine"]["verdict"]["outcome"] == "failed"
    [repair] = [one for one in found.values() if one["repairs"] == found["mine"]["key"]]
    assert repair["gates"][-1]["status"] == "passed"
    calls, tokens = spent_until_verified(thinking, report)
    assert calls == 4, "observation, one look, the plan, the repair: eight may be needed"
    assert tokens <= 30_000
