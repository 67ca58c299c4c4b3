"""The atomic tools that only read, on a repository that a whole (scripted) run has filled."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest

from agents.llm.calling import LONGEST_RESULT, call_tool
from agents.llm.exchange import ToolCall
from agents.tools.catalog import ROLES, Services, all_tools, tools_for
from kernel_bpf.observe.system import read_system
from kernel_bpf.policies.library import load_library
from kernel_bpf.policies.programs import known_programs
from repo_store.records import RunFailure, RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.trials.lesson import Insight, Meaning
from tests.support.scripted_lab import HARDWARE, LIBRARY, WORKLOAD, Script

WHOLE_LIBRARY = {**LIBRARY, **load_library()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A finished run: longest_first is better, plain fails at a gate."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "state").mkdir()
    script = Script(folder, faults={"plain": "scheduling logic"})
    run_id = script.create()
    script.drive(run_id)
    return folder / "state" / "repository.sqlite", run_id


@pytest.fixture
def records(filled, tmp_path):
    with PolicyRepository(shutil.copy(filled[0], tmp_path)) as repository:
        repository.sync_policies([*WHOLE_LIBRARY.values(), *known_programs().values()])
        yield repository


@pytest.fixture
def services(records):
    return Services(records, WHOLE_LIBRARY)


def ask(services: Services, name: str, **arguments) -> str:
    return call_tool(all_tools(services), ToolCall("1", name, json.dumps(arguments)))


def first_candidate(records, run_id):
    return records.plan(run_id, 0).candidates[0]


class TestWorkload:
    def test_summary_is_short_and_names_kind_and_commands(self, services, filled):
        told = ask(services, "workload_profile")
        assert told.startswith(f"run {filled[1]}: './batch.sh' in /tmp, goal makespan (wall time)")
        assert "kind: batch-long-tail" in told
        assert "- spin: 10 tasks, 3.20 s CPU in all" in told
        assert len(told) < 2500  # some 600 tokens

    def test_words_stand_behind_the_numbers(self, services, records, filled):
        assert "in words" not in ask(services, "workload_profile")
        records.save_meaning(filled[1], Meaning("A batch with one long task.", "Start the long one first."))
        told = ask(services, "workload_profile").splitlines()
        assert told[-2:] == [
            "in words of the Observation agent: A batch with one long task.",
            "what a scheduler should do for it: Start the long one first.",
        ]

    def test_identities_carry_the_hashes_that_policies_look_up(self, services, records, filled):
        profile = records.profile(filled[1])
        told = ask(services, "workload_profile", part="identities")
        assert all(f"{stats.identity:016x}" in told for stats in profile.histories)

    def test_commands_and_pressure(self, services):
        assert "waited" in ask(services, "workload_profile", part="commands")
        told = ask(services, "workload_profile", part="pressure")
        assert "runnable tasks over time: 0.0 s: 10, 1.0 s: 10" in told
        assert "switches:" in told

    def test_a_run_without_a_profile_says_so(self, tmp_path):
        with PolicyRepository(tmp_path / "new.sqlite") as new:
            run = new.create_run(WORKLOAD, HARDWARE)
            told = ask(Services(new, WHOLE_LIBRARY), "workload_profile", run=run)
        assert f"error: the workload of run {run} was not observed yet" in told

    def test_the_run_of_the_agent_is_meant_where_none_is_named(self, records, filled):
        told = ask(Services(records, WHOLE_LIBRARY, run_id=filled[1]), "workload_profile")
        assert told.startswith(f"run {filled[1]}:")
        assert "there is no run" in ask(Services(records, WHOLE_LIBRARY, run_id="gone"), "workload_profile")

    def test_no_run_at_all(self, tmp_path):
        with PolicyRepository(tmp_path / "empty.sqlite") as empty:
            assert "error: no run is stored yet" in ask(Services(empty, WHOLE_LIBRARY), "workload_profile")


class TestPolicies:
    def test_search(self, services):
        told = ask(services, "search_policies", words="long tail of a batch")
        assert "- longest_first (bundled): " in told
        assert "none" in ask(services, "search_policies", words="xyzzy")
        assert all(f"- {name} " in ask(services, "search_policies") for name in WHOLE_LIBRARY)

    def test_search_names_schedulers_that_only_a_person_can_name(self, services):
        listed = ask(services, "search_policies", words="games")
        assert "- scx_lavd (a program; only a person names it, by --scheduler): Latency-criticality" in listed

    def test_summary(self, services):
        told = ask(services, "show_policy", policy="batch")
        assert "how it decides:" in told
        assert "- slice_us=" in told

    def test_source_in_pieces(self, services):
        source = WHOLE_LIBRARY["batch"].source.read_text().splitlines()
        told = ask(services, "show_policy", policy="batch", part="source", first_line=3, most_lines=2)
        assert told == f"batch.bpf.c, lines 3 to 4 of {len(source)}:\n{source[2]}\n{source[3]}"

    def test_manifest(self, services):
        assert 'name = "batch"' in ask(services, "show_policy", policy="batch", part="manifest")

    def test_unknown_name_suggests(self, services):
        told = ask(services, "show_policy", policy="bach")
        assert told.startswith("error: there is no policy 'bach'")
        assert "did you mean batch?" in told

    @pytest.mark.parametrize("name", ["../batch", "/etc/passwd", "a/b", "", "batch\n", "x" * 200])
    def test_a_path_is_no_name(self, services, name):
        assert "the arguments of show_policy are not accepted" in ask(services, "show_policy", policy=name)

    def test_history_tells_workload_and_verdict(self, services, records, filled):
        told = ask(services, "policy_history", policy="longest_first")
        assert re.search(r"better, candidate / default 0\.(79|80)", told)
        assert "'./batch.sh' on vm-tcg" in told
        assert f"run {filled[1]}" in told
        assert ask(services, "policy_history", policy="fifo").endswith("none")


class TestCompose:
    def test_a_spec_becomes_both_texts(self, services):
        table = {"name": "mine", "goal": "Short things first.", "classes": [{"name": "all", "order": "fifo"}]}
        told = ask(services, "compose_policy", spec=table)
        assert told.startswith("mine.toml:\n")
        assert "mine.bpf.c:\n/* SPDX" in told

    def test_mistakes_are_told_by_their_fields(self, services):
        table = {"name": "mine", "goal": "g", "classes": [{"name": "all", "ordr": "fifo"}], "dispatch": 3}
        told = ask(services, "compose_policy", spec=table)
        assert told.startswith("error: ")
        assert "classes[0].ordr: no such field; did you mean order?" in told
        assert "dispatch = 3: not text" in told

    def test_the_schema_is_told(self, services):
        assert json.loads(ask(services, "describe_spec"))["title"] == "PolicySpec"


class TestLearned:
    def test_lessons(self, services, filled):
        told = ask(services, "lessons", run=filled[1])
        assert "- longest_first " in told
        assert "better" in told

    def test_insights_stand_behind_the_verdicts(self, records, services, filled):
        key = first_candidate(records, filled[1]).key
        records.add_insight(Insight("Long tasks first helps.", (key,), filled[1], "2026-01-01T00:00:00"))
        told = ask(services, "lessons")
        where = f"(evidence: candidates {key}; run {filled[1]})"
        assert f"- unchecked words of a model: Long tasks first helps. {where}" in told

    def test_similar_runs(self, records, services, filled):
        assert ask(services, "similar_runs").endswith("none")
        other = records.create_run(replace(WORKLOAD, command="./other.sh"), HARDWARE, run_id="other")
        records.save_profile(other, records.profile(filled[1]))
        told = ask(Services(records, WHOLE_LIBRARY, run_id=other), "similar_runs")
        records.finish_run(other, RunStatus.FAILED)
        assert f"run {filled[1]}: './batch.sh' (batch-long-tail), distance 0.00" in told
        assert "- longest_first " in told

    def test_antipatterns(self, services):
        told = ask(services, "antipatterns")
        assert "- plain " in told
        assert "failed at scheduling logic on any workload: this was seen" in told

    def test_the_limit_says_what_is_left_out(self, services, records, filled):
        run = records.run(filled[1])
        count = len(records.lessons(run.workload.key, run.hardware.key))
        assert count > 1
        assert f"({count - 1} more are left out)" in ask(services, "lessons", limit=1)


class TestRuns:
    def test_list(self, services, filled):
        assert f"- {filled[1]}: './batch.sh' in /tmp: better" in ask(services, "list_runs")

    def test_summary_lists_candidates_with_keys_and_verdicts(self, services, records, filled):
        candidate = first_candidate(records, filled[1])
        told = ask(services, "show_run")
        assert f"- {candidate.key} {candidate.label}: better" in told
        assert "plan 1: " in told

    def test_why_a_run_failed(self, services, records):
        run_id = records.create_run(WORKLOAD, HARDWARE)
        records.finish_run(
            run_id, RunStatus.FAILED, failure=RunFailure("the workload failed:\n    cc: no", "fix it", False)
        )
        assert "it failed: the workload failed: cc: no" in ask(services, "show_run", run=run_id)

    def test_reasons_and_samples(self, services, records, filled):
        candidate = first_candidate(records, filled[1])
        assert f"(configure): {candidate.reason}" in ask(services, "show_run", part="reasons")
        told = ask(services, "show_run", part="samples")
        assert "block 0 (warm-up): " in told
        assert f"{candidate.key} 0.8" in told

    def test_unknown_run(self, services):
        assert "error: there is no run 'gone'" in ask(services, "show_run", run="gone")


class TestReports:
    def test_summary_and_gates(self, services, records, filled):
        candidate = first_candidate(records, filled[1])
        told = ask(services, "verification_report", candidate=candidate.key)
        assert ": passed: every gate let it through, on kernel" in told
        assert "- attach: passed: fine" in told
        assert "attach: passed (0.0 s)" in ask(
            services, "verification_report", candidate=candidate.key, section="gates"
        )

    def test_the_gate_that_failed(self, services, records, filled):
        failed = next(found for found in records.plan(filled[1], 0).candidates if found.policy == "plain")
        told = ask(services, "verification_report", candidate=failed.key)
        assert ": failed: gate 'scheduling logic'" in told

    def test_reports_outside_of_runs_come_first(self, records, filled):
        candidate = first_candidate(records, filled[1])
        other = next(found for found in records.plan(filled[1], 0).candidates if found.policy == "plain")
        kept = {candidate.key: records.verification(filled[1], other.key)}
        told = ask(Services(records, WHOLE_LIBRARY, reports=kept), "verification_report", candidate=candidate.key)
        assert ": failed: gate 'scheduling logic'" in told

    def test_unknown_candidate(self, services):
        assert "holds no verification of candidate ffff" in ask(services, "verification_report", candidate="ffff")


def test_every_agent_gets_its_own_tools(services):
    names = {role: {tool.name for tool in tools_for(role, services)} for role in ROLES}
    assert names["observation"] < {tool.name for tool in all_tools(services)}
    assert "search_policies" in names["planning"]
    assert "verification_report" in names["execution"]
    assert all(names.values())
    assert all(tool.read_only for role in ROLES for tool in tools_for(role, services))


def test_tools_are_told_in_a_few_hundred_tokens(services):
    told = json.dumps([tool.schema() for tool in tools_for("planning", services)])
    assert len(told) < 8000
    assert len({tool.name for tool in all_tools(services)}) == len(all_tools(services))


def test_no_answer_is_longer_than_a_model_gets_to_see(services):
    for tool in all_tools(services):
        needed = {"policy": "batch"} if "policy" in tool.arguments.model_fields else {}
        if not {"candidate", "spec"} & tool.arguments.model_fields.keys():
            assert len(ask(services, tool.name, **needed)) <= LONGEST_RESULT


class TestSystem:
    def test_this_machine(self, services):
        told = ask(services, "system_state")
        assert told.startswith("kernel ")
        assert "CPUs online" in told

    def test_a_machine_with_sched_ext(self, tmp_path):
        files = {
            "proc/sys/kernel/osrelease": "7.3.4\n",
            "proc/meminfo": "MemTotal:        4194304 kB\n",
            "proc/loadavg": "1.00 2.00 3.00 1/100 7\n",
            "proc/pressure/cpu": "some avg10=1.00 avg60=2.00 avg300=3.00 total=4\nfull avg10=0.00\n",
            "boot/config-7.3.4": "CONFIG_HZ=250\n# CONFIG_PSI is not set\nCONFIG_OTHER=y\n",
            "sys/kernel/sched_ext/state": "enabled\n",
            "sys/kernel/sched_ext/root/ops": "fifo\n",
        }
        for cpu, llc, online in ((0, "0-1", ""), (1, "0-1", "1"), (2, "2", "0"), (10, "10", "1")):
            place = f"sys/devices/system/cpu/cpu{cpu}"
            files |= {
                f"{place}/topology/core_id": str(cpu // 2),
                f"{place}/topology/physical_package_id": "0",
                f"{place}/topology/thread_siblings_list": "0-1" if cpu < 2 else str(cpu),
                f"{place}/cache/index0/level": "1",
                f"{place}/cache/index0/shared_cpu_list": str(cpu),
                f"{place}/cache/index3/level": "3",
                f"{place}/cache/index3/shared_cpu_list": llc,
                f"{place}/node{cpu // 10}/x": "",
            } | ({f"{place}/online": online} if online else {})
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        state = read_system(tmp_path)
        assert [cpu.number for cpu in state.cpus] == [0, 1, 10]
        assert (state.cpus[1].llc, state.cpus[1].siblings, state.cpus[2].node) == ("0-1", "0-1", 1)
        assert (state.release, state.memory_mib, state.load) == ("7.3.4", 4096, "1.00 2.00 3.00")
        assert state.config == {"CONFIG_HZ": "250"}
        assert state.pressure == {"cpu": "some avg10=1.00 avg60=2.00 avg300=3.00 total=4"}
        assert state.sched_ext == {"state": "enabled", "root/ops": "fifo"}

    def test_a_kernel_that_tells_nothing(self, tmp_path):
        state = read_system(tmp_path)
        assert (state.release, state.cpus, state.pressure) == ("", (), {})
