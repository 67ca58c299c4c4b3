"""The script of `make demo-llm`, without machines: what it proposes is made, rejected, repaired and told as it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernel_bpf.policies.library import load_library
from schedagent.core.settings import load_settings
from tests.demo_llm import Demonstrator, environment, story
from tests.support.model_server import ModelServer
from tests.support.scripted_lab import Script
from tests.support.scripted_model import ONE_PLAN, by_policy, on
from tests.support.static_gates import Gated


@pytest.fixture
def demonstrated(tmp_path, real_target):
    (tmp_path / "state").mkdir()
    script = Gated(tmp_path, options=ONE_PLAN, bundled=load_library(), ratios={"tail_first": 0.8}, target=real_target)
    with ModelServer(Demonstrator()) as server:
        thinking = on(script, server)
        return thinking.drive(thinking.create())


def test_the_story(demonstrated):
    report = demonstrated
    assert report["model"]["notes"] == []
    assert [step["role"] for step in report["model"]["steps"]] == ["execution", "learning", "observation", "planning"]
    composed, patched, repaired = report["iterations"][0]["candidates"]
    assert (composed["policy"], composed["origin"], patched["origin"], repaired["origin"]) == (
        "tail_first",
        "compose",
        "patch",
        "patch",
    )
    [closed] = [gate for gate in patched["gates"] if gate["status"] == "failed"]
    assert closed["gate"] == "scheduling logic"
    assert repaired["repairs"] == patched["key"]
    assert all(gate["status"] == "passed" for gate in repaired["gates"])
    assert by_policy(report)["tail_first"]["verdict"]["outcome"] == "better"
    [insight] = report["insights"]
    assert [claim["arm"] for claim in insight["claims"]] == [composed["key"]], "the race leaves the others undecided"
    told = "\n".join(story(report))
    for part in (
        "observed: A parallel build",
        "rejected by gate 'scheduling logic'",
        "repaired: patch",
        "cost: 5 calls",
    ):
        assert part in told


def test_the_demo_has_a_state_and_a_configuration_of_its_own(tmp_path):
    found = load_settings(environment(tmp_path, "http://127.0.0.1:1/v1"))
    assert found.state_dir.is_relative_to(tmp_path)
    assert found.has_model
    assert [price.model for price in found.model_prices] == ["scripted"]
    assert replace(Script(tmp_path)).settings.has_model is False
