"""The exporter's parts: what each reads from a real repository, a daemon, /proc and sysfs, and what happens without."""

from __future__ import annotations

import ast
import json
import os
import pwd
import sqlite3
import time
from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from agents.llm.budget import BudgetLimits, UsageRecord
from agents.llm.transcript import read_transcript, read_usage, transcript_path
from repo_store.database import snapshot
from repo_store.store import PolicyRepository
from repo_store.totals import RepositoryReader, RepositoryTotals
from schedagent.client.daemon import DaemonClient
from schedagent.core.deployment import End
from schedagent.core.errors import RecordError, RepositoryError, SetupError
from schedagent.core.recommendation import ApplyRequest
from schedagent.metrics import exporter, run_queue
from schedagent.metrics.catalog import EVENT_KINDS, FAMILIES, PARTS, POLICIES, SCX_EVENT_LABELS, SCX_EVENTS, word
from schedagent.metrics.exporter import build_registry, machine_parts
from schedagent.metrics.family import OTHER, Family, Histogram, MetricKind
from schedagent.metrics.models import ModelPart
from schedagent.metrics.parts import DaemonPart, HostPart, KernelPart, RepositoryPart
from schedagent.metrics.run_queue import RunQueue
from tests.support.as_user import as_user, let_others_in
from tests.support.daemon_processes import Daemon, scripted_kernel, until
from tests.support.exporter_process import ROOT, Scrape, recorded_run
from tests.support.finished_runs import optimise, reading
from tests.support.scripted_host import Host
from tests.support.scripted_lab import HARDWARE, WORKLOAD

pytestmark = pytest.mark.timeout(120)

LIMITS = BudgetLimits(10, 100_000, 1.0)


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch):
    monkeypatch.setattr(exporter, "FRESH_S", 0.0)


def scrape(*parts):
    return Scrape(generate_latest(build_registry(parts)).decode())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A state folder with one finished run: a composed policy won, a bundled one lost."""
    return recorded_run(tmp_path_factory.mktemp("recorded"))


class TestFamily:
    FIXED = Family("schedagent_x_total", MetricKind.COUNTER, "X.", {"a": ("1", "2"), "b": ("y", OTHER)})

    def test_every_series_is_there_from_the_beginning(self):
        [*samples] = self.FIXED.metric({("1", "y"): 3}).samples
        assert [(*sample.labels.values(), sample.value) for sample in samples] == [
            ("1", "y", 3), ("1", OTHER, 0), ("2", "y", 0), ("2", OTHER, 0),
        ]  # fmt: skip

    def test_what_is_not_on_the_list_is_other_or_a_mistake(self):
        samples = self.FIXED.metric({("1", "z"): 3, ("1", "zz"): 4}).samples
        assert {sample.labels["b"]: sample.value for sample in samples if sample.labels["a"] == "1"} == {
            "y": 0,
            OTHER: 7,
        }
        with pytest.raises(ValueError, match="has no a '3'"):
            self.FIXED.metric({("3", "y"): 1})

    def test_sparse_ones_tell_only_what_is_there(self):
        assert replace(self.FIXED, sparse=True).metric({}).samples == []

    def test_histogram(self):
        histogram = Histogram((0.1, 1.0))
        for value, times in ((0.05, 2), (0.1, 1), (0.5, 4), (2.0, 1)):
            histogram.add(value, times)
        assert histogram.buckets() == [("0.1", 3.0), ("1.0", 7.0), ("+Inf", 8.0)]
        assert histogram.sum == pytest.approx(4.2)


class TestCatalog:
    def test_names_are_unique_and_by_the_conventions(self):
        families = [family for group in FAMILIES.values() for family in group]
        assert len({family.name for family in families}) == len(families)
        for family in families:
            assert family.name.startswith("schedagent_")
            assert family.name.endswith("_total") == (family.kind is MetricKind.COUNTER)
            assert family.text.endswith(".")
        assert set(FAMILIES) == {"", *PARTS}

    def test_the_number_of_series_is_bounded(self):
        most = 0
        for family in (one for group in FAMILIES.values() for one in group):
            series = 1
            for values in family.labels.values():
                assert len(set(values)) == len(values)
                series *= len(values)
            most += series * (20 if family.kind is MetricKind.HISTOGRAM else 1)
        assert most < 500, most


class TestSchedagentd:
    @pytest.fixture
    def daemon(self, tmp_path):
        with scripted_kernel(tmp_path) as kernel:
            made = Daemon(tmp_path / "d", kernel).start()
            yield made
            made.end()

    @pytest.mark.parametrize("policy_first", [True, False], ids=["in a pulse", "between two"])
    def test_pulses(self, tmp_path, policy_first):
        with scripted_kernel(tmp_path) as kernel:
            daemon = Daemon(tmp_path / "p", kernel, policy_first=policy_first, pulses_s=(600.0,)).start()
            try:
                part = DaemonPart(DaemonClient(daemon.config.socket, 5.0))
                assert scrape(part)("deployment_pulse_seconds") is None
                daemon.deploy("fifo", stage="pulse", cgroup="")
                rolling = scrape(part)
                assert (rolling("deployment_pulse_seconds"), rolling("deployment_pulse_pairs")) == (600, 0)
                assert (rolling("deployment_in_charge"), rolling("deployment_waiting")) == (
                    policy_first,
                    not policy_first,
                )
                assert rolling("deployment_events_total", kind="pulses") == 1
            finally:
                daemon.end()

    def test_its_life(self, daemon):
        part = DaemonPart(DaemonClient(daemon.config.socket, 5.0))
        before = scrape(part)
        assert before("up", part="schedagentd") == 1
        assert (before("deployment_in_charge"), before("deployment_lease_left_seconds")) == (0, None)
        assert before("trips_total", cause="stall") == 0

        daemon.deploy("fifo", lease_s=100.0)
        running = scrape(part)
        assert running("deployment_info", policy="fifo", stage="canary") == 1
        assert 95 < running("deployment_lease_left_seconds") <= 100
        assert running("deployment_token_left_seconds") > 80000
        assert (running("deployment_in_charge"), running("foreign_scheduler")) == (1, 0)
        assert running("deployment_events_total", kind="accepted") == 1

        daemon.tell_kernel("end_policy")
        until(lambda: daemon.client.ask("status")["active"] is None)
        tripped = scrape(part)
        assert tripped("trips_total", cause="stall") == 1
        assert tripped("deployments_ended_total", stage="canary", end="stall") == 1
        assert tripped("deployment_events_total", kind="tripped") == 1
        assert (tripped("deployment_in_charge"), tripped("deployment_info", policy="fifo", stage="canary")) == (0, None)

        daemon.deploy("made_here")
        assert scrape(part)("deployment_info", policy=OTHER, stage="canary") == 1
        daemon.client.ask("rollback")
        assert scrape(part)("deployments_ended_total", stage="canary", end="rolled_back") == 1

    def test_totals_survive_it(self, daemon):
        daemon.deploy("fifo")
        daemon.client.ask("rollback")
        daemon.end()
        daemon.start()
        found = scrape(DaemonPart(daemon.client))
        assert found("deployments_ended_total", stage="canary", end="rolled_back") == 1
        assert found("deployment_events_total", kind="started") == 2

    def test_another_scheduler(self, daemon):
        daemon.tell_kernel("take_over")
        assert scrape(DaemonPart(daemon.client))("foreign_scheduler") == 1

    def test_it_is_not_there(self, tmp_path, caplog):
        registry = build_registry([DaemonPart(DaemonClient(tmp_path / "none")), KernelPart(tmp_path)])
        for errors in (1, 2):
            found = Scrape(generate_latest(registry).decode())
            assert (found("up", part="schedagentd"), found("up", part="kernel")) == (0, 1)
            assert found("scrape_errors_total", part="schedagentd") == errors
            assert found("trips_total", cause="stall") is None, "a total that is not known is not 0"
        assert caplog.text.count("is not running") == 1, "said once, not in every scrape"

    def test_it_hangs(self, daemon):
        os.kill(daemon.pid, 19)
        begun = time.monotonic()
        try:
            assert scrape(DaemonPart(DaemonClient(daemon.config.socket, 0.3)))("up", part="schedagentd") == 0
        finally:
            os.kill(daemon.pid, 18)
        assert time.monotonic() - begun < 3

    def test_its_record_cannot_be_read(self, daemon):
        told = daemon.client.ask("status") | {"totals": None}
        part = DaemonPart(daemon.client)
        part.client = type("Client", (), {"ask": lambda _self, _verb: told})()
        with pytest.raises(SetupError, match="cannot read its record"):
            part.read()


class TestTotals:
    """What schedagentd counts stands beside the tables that it prunes."""

    @pytest.fixture
    def host(self, tmp_path):
        made = Host(tmp_path / "state")
        yield made
        made.record.close()

    def test_pruning_takes_nothing_away(self, host, monkeypatch):
        monkeypatch.setattr("schedagent.schedagentd.record.KEPT_EVENTS", 5)
        monkeypatch.setattr("schedagent.schedagentd.record.KEPT_DEPLOYMENTS", 2)
        for turn in range(6):
            host.deploy(f"policy{turn}")
            host.rollout.rollback(to_default=True)
        assert len(host.record.history(100)) < 6
        assert host.record.totals()["ended"] == [{"stage": "canary", "end": End.ROLLED_BACK, "count": 6}]
        assert host.record.totals()["events"]["ended"] == 6

    def test_an_end_counts_once(self, host):
        number = host.deploy().number
        host.rollout.rollback()
        host.record.save(host.get(number), "ended", "stored late")
        assert host.record.totals()["ended"] == [{"stage": "canary", "end": End.ROLLED_BACK, "count": 1}]

    def test_what_is_not_written_is_not_counted(self, host):
        before = host.record.totals()

        def half():
            with host.record._change():
                host.record._event("accepted", 1, "")
                host.record._database.execute("INSERT INTO nowhere VALUES (1)")

        with pytest.raises(RecordError):
            half()
        assert host.record.totals() == before

    def test_a_status_does_without_a_record(self, host):
        host.record.close()
        assert host.rollout.status()["totals"] is None

    def test_every_kind_of_event_is_in_the_catalog(self):
        """Those that the code can tell: constants in the place of a kind."""
        places = {"save": 1, "_try_save": 1, "note": 0, "_try_note": 0, "begin": 3}
        kinds = set()
        for path in (ROOT / "schedagent/schedagentd").glob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in places:
                    for told in ast.walk(ast.Tuple(call.args[places[call.func.attr] :][:1])):
                        kinds |= (
                            {told.value} if isinstance(told, ast.Constant) and isinstance(told.value, str) else set()
                        )
        assert len(kinds) > 15
        assert {word(kind) for kind in kinds - {""}} <= set(EVENT_KINDS)


class TestKernel:
    def test_a_loaded_policy(self, tmp_path):
        files = {
            "state": "enabled", "switch_all": "1", "nr_rejected": "2", "enable_seq": "7", "hotplug_seq": "1",
            "root/ops": "fifo",
            "root/events": "SCX_EV_SELECT_CPU_FALLBACK 3\nSCX_EV_BYPASS_DURATION 2500000000\nSCX_EV_A 1\nSCX_EV_B 1",
        }  # fmt: skip
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        found = scrape(KernelPart(tmp_path))
        assert found("sched_ext_state", state="enabled") == 1
        assert found("sched_ext_state", state="disabled") == 0
        assert found("sched_ext_events_total", event="select_cpu_fallback") == 3
        assert found("sched_ext_events_total", event=OTHER) == 2
        assert found("sched_ext_bypass_seconds_total") == 2.5
        assert (found("sched_ext_enables_total"), found("sched_ext_rejected_tasks_total")) == (7, 2)

    def test_the_known_events_are_those_of_the_kernels(self, real_target):
        """A kernel that counts something new counts it as other, and this test says so."""
        header = (real_target.header_dir / "vmlinux.h").read_text()
        told = {
            line.split()[-1].rstrip(";").removeprefix("SCX_EV_") for line in header.splitlines() if "SCX_EV_" in line
        }
        assert "SELECT_CPU_FALLBACK" in told
        assert told - {"BYPASS_DURATION"} <= set(SCX_EVENTS)
        assert len(SCX_EVENT_LABELS) == len(SCX_EVENTS) + 1

    def test_none(self, tmp_path):
        found = scrape(KernelPart(tmp_path))
        assert (found("up", part="kernel"), found("sched_ext_available")) == (1, 0)


class FakeProc:
    """/proc with threads whose counters a test sets."""

    def __init__(self, folder):
        self.folder = folder

    def set(self, thread, delay_ns, turns, process=None):
        process = process or thread
        (self.folder / f"{process}/task/{thread}").mkdir(parents=True, exist_ok=True)
        (self.folder / f"{thread}").mkdir(exist_ok=True)
        (self.folder / f"{thread}/schedstat").write_text(f"12345 {delay_ns} {turns}\n")


class TestRunQueue:
    @pytest.fixture
    def proc(self, tmp_path):
        return FakeProc(tmp_path)

    def test_turns_count_at_their_mean(self, proc, tmp_path):
        proc.set(10, 10**9, 100)
        proc.set(11, 0, 0, process=10)
        queue = RunQueue(tmp_path)
        queue.read()
        assert queue.histogram.counts == [0] * 17, "what was before is not counted"
        proc.set(10, 10**9 + 4_000_000, 104)  # 4 turns, 1 ms each
        proc.set(11, 200_000, 1, process=10)
        proc.set(12, 50_000_000, 5)  # new: 5 turns, 10 ms each
        queue.read()
        buckets = dict(queue.histogram.buckets())
        assert (buckets["0.00025"], buckets["0.0005"], buckets["0.001"], buckets["0.01"]) == (1, 1, 5, 10)
        assert queue.histogram.sum == pytest.approx(0.0542)
        assert queue.threads == 3

    def test_a_number_that_is_used_again_is_a_new_thread(self, proc, tmp_path):
        proc.set(10, 10**9, 100)
        queue = RunQueue(tmp_path)
        queue.read()
        proc.set(10, 2000, 2)
        queue.read()
        assert (sum(queue.histogram.counts), queue.histogram.sum) == (2, pytest.approx(2e-6))

    def test_with_many_processes_the_same_part_of_them_is_looked_at(self, proc, tmp_path, monkeypatch):
        monkeypatch.setattr(run_queue, "MOST_PROCESSES", 4)
        for number in range(100, 110):
            proc.set(number, 0, 1)
        queue = RunQueue(tmp_path)
        queue.read()
        assert (queue.threads, queue.sampled) == (3, 0.25)
        for number in range(100, 110):
            proc.set(number, 1000, 2)
        queue.read()
        assert sum(queue.histogram.counts) == 3
        monkeypatch.setattr(run_queue, "MOST_PROCESSES", 100)
        queue.read()
        assert sum(queue.histogram.counts) == 3, "those that were left out before are no newcomers"
        monkeypatch.setattr(run_queue, "MOST_THREADS", 5)
        queue.read()
        assert queue.threads == 5

    def test_on_this_machine(self):
        """Two processes on one CPU wait for each other, and that is seen."""
        part = HostPart()
        part.read()
        cpu = min(os.sched_getaffinity(0))
        children = [os.fork() for _ in range(2)]
        if 0 in children:
            os.sched_setaffinity(0, {cpu})
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                pass
            os._exit(0)
        time.sleep(0.4)
        found = scrape(part)
        for child in children:
            os.waitpid(child, 0)
        assert found("run_queue_delay_seconds_sum") > 0.1
        assert found("run_queue_delay_seconds_count") > 10
        assert found("run_queue_watched_threads") > 1

    def test_a_kernel_without_psi(self, tmp_path):
        found = scrape(HostPart(tmp_path))
        assert (found("up", part="host"), found("cpu_pressure_seconds_total", kind="some")) == (1, None)
        (tmp_path / "pressure").mkdir()
        line = "some avg10=0.00 avg60=1.50 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        (tmp_path / "pressure/cpu").write_text(line)
        assert scrape(HostPart(tmp_path))("cpu_pressure_seconds_total", kind="some") == 2.5


class TestRepository:
    def test_a_recorded_run(self, recorded):
        script, report = recorded
        found = scrape(RepositoryPart(RepositoryReader(script.settings.repository_path)))
        assert found("runs", status="finished") == 1
        assert found("verifications_total", result="passed") == 2
        assert found("trial_verdicts_total", policy=OTHER, outcome="better") == 1, "the composed policy"
        assert found("trial_verdicts_total", policy="longest_first", outcome="inconclusive") == 1
        with script.repository() as repository:
            best = repository.verdicts(report["run"], 0)[report["best"]["key"]]
        assert found("trial_best_ratio", policy=OTHER) == best.ratio < 0.9
        assert found("trial_ratio_count") == 1, "only what was decided"
        assert found("trial_ratio_bucket", le="0.9") == 1
        assert found("derived_policies", origin="compose") == 1
        with script.repository() as repository:
            blocks = repository.blocks(report["run"], 0)
        assert found("trial_samples_total") == sum(len(block.samples) for block in blocks)

    def test_gates(self, recorded):
        script, report = recorded
        with script.repository() as repository:
            reports = [
                repository.verification(report["run"], one.key) for one in repository.candidates(report["run"], 0)
            ]
        found = scrape(RepositoryPart(RepositoryReader(script.settings.repository_path)))
        for gate in reports[0].gates:
            expected = sum(one.status == gate.status for told in reports for one in told.gates if one.gate == gate.gate)
            assert found("verifier_gates_total", gate=word(gate.gate), result=word(gate.status)) == expected

    def test_of_several_made_policies_the_best_counts(self):
        class Reader:
            def read(self):
                return RepositoryTotals(best={"made_1": 0.7, "fifo": 0.9, "made_2": 0.8})

        found = scrape(RepositoryPart(Reader()))
        assert (found("trial_best_ratio", policy=OTHER), found("trial_best_ratio", policy="fifo")) == (0.7, 0.9)

    def test_reports_are_read_once(self, recorded, monkeypatch):
        reader = RepositoryReader(recorded[0].settings.repository_path)
        first = reader.read()
        monkeypatch.setattr("repo_store.totals._verifications_of", None)
        assert reader.read() == first

    def test_what_the_agent_service_keeps(self, tmp_path):
        now = time.time()
        with PolicyRepository(tmp_path / "repository.sqlite") as repository:
            service = repository.service
            service.add_readings([reading(1), reading(2), reading(9, subject="/a")], keep_since=0)
            one = service.recommend(replace(optimise(now=now), expires_at=now + 1000))
            service.recommend(replace(optimise(now=now - 1000), id="00000001", expires_at=now - 1))
            service.ask(ApplyRequest(0, one.id, "", "ada", now - 60))
        found = scrape(RepositoryPart(RepositoryReader(tmp_path / "repository.sqlite")))
        assert found("recommendations", kind="optimise", standing="open") == 1
        assert found("recommendations", kind="optimise", standing="expired") == 1
        assert (found("requests", progress="queued"), found("requests", progress="done")) == (1, 0)
        assert found("oldest_queued_request_timestamp_seconds") == pytest.approx(now - 60)
        assert found("agent_last_reading_timestamp_seconds") == reading(2).at

    def test_none_yet(self, tmp_path):
        reader = RepositoryReader(tmp_path / "none.sqlite")
        assert (reader.read(), reader.open_runs()) == (RepositoryTotals(), frozenset())
        assert not (tmp_path / "none.sqlite").exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_nothing_is_written_whoever_looks(self, tmp_path):
        """The owner of a folder that is read-only to it, as in the unit; and while another process writes."""
        looker = pwd.getpwnam("daemon")
        folder = tmp_path / "state"
        folder.mkdir(mode=0o755)
        let_others_in(tmp_path)
        path = folder / "repository.sqlite"
        with PolicyRepository(path):
            pass
        path.chmod(0o644)
        before = sorted(entry.name for entry in folder.iterdir())
        assert as_user(looker, lambda: RepositoryReader(path).read().runs) == "{}"
        assert sorted(entry.name for entry in folder.iterdir()) == before
        with PolicyRepository(path) as repository:
            repository.create_run(WORKLOAD, HARDWARE)
            for extra in folder.iterdir():
                extra.chmod(0o644)
            assert as_user(looker, lambda: RepositoryReader(path).read().runs) == "{'running': 1}"

    def test_written_to_meanwhile(self, tmp_path, monkeypatch):
        path = tmp_path / "repository.sqlite"
        with PolicyRepository(path):
            pass
        monkeypatch.setattr(snapshot, "_connect_reading", lambda _path: (connect(path), True))
        with pytest.raises(RepositoryError, match="written to while"), snapshot.read_only(path):
            os.utime(path)

    def test_of_another_version(self, tmp_path):
        path = tmp_path / "repository.sqlite"
        with PolicyRepository(path):
            pass
        with connect(path) as database:
            database.execute("UPDATE alembic_version SET version_num = '0001'")
        with pytest.raises(RepositoryError, match="schema 0001"):
            RepositoryReader(path).read()


def connect(path):
    return sqlite3.connect(path, isolation_level=None)


class TestModels:
    def part(self, script, limits=LIMITS):
        return ModelPart(script.settings.state_dir, RepositoryReader(script.settings.repository_path), limits)

    def test_a_recorded_run(self, recorded):
        script, report = recorded
        found = scrape(self.part(script))
        _header, exchanges = read_transcript(transcript_path(script.settings.state_dir, report["run"]))
        for role in ("observation", "planning", "learning"):
            records = [one.record for one in exchanges if one.record and one.record.role == role]
            assert found("model_calls_total", role=role) == len(records) > 0
            assert found("model_tokens_total", role=role, direction="input") == sum(one.input_tokens for one in records)
        assert found("model_calls_total", role="execution") == 0
        assert found("model_unpriced_calls_total", role="planning") == 1
        assert found("model_budget_used_ratio", limit="calls") == 0, "the run is finished"

    def test_budget_of_runs_that_go_on_and_only_new_lines(self, tmp_path):
        with PolicyRepository(tmp_path / "repository.sqlite") as repository:
            run = repository.create_run(WORKLOAD, HARDWARE)
        path = transcript_path(tmp_path, run)
        path.parent.mkdir()
        answer = json.dumps({"event": "answer", "record": vars(UsageRecord("planning", "m", 1, 900, 100, 0.25))}) + "\n"
        path.write_text(answer)
        part = ModelPart(tmp_path, RepositoryReader(tmp_path / "repository.sqlite"), LIMITS)
        found = scrape(part)
        assert found("model_budget_used_ratio", limit="dollars") == 0.25
        assert found("model_budget_used_ratio", limit="tokens") == 0.01
        with path.open("a") as stream:
            stream.write('{"event": "error", "kind": "x"}\n' + answer + answer[:20])
        found = scrape(part)
        assert found("model_calls_total", role="planning") == 2
        assert found("model_call_failures_total") == 1
        with path.open("a") as stream:
            stream.write(answer[20:])
        assert scrape(part)("model_cost_dollars_total", role="planning") == 0.75
        path.unlink()
        assert scrape(part)("model_cost_dollars_total", role="planning") == 0.75, "counters never go down"

    def test_damage_is_told(self, tmp_path):
        path = tmp_path / "t.jsonl"
        path.write_text('{"event": "answer"}\n')
        with pytest.raises(RepositoryError, match="byte 20 is damaged"):
            read_usage(path)


def test_a_mistake_in_one_part_leaves_the_others(tmp_path, caplog):
    class Broken:
        name = "models"

        def read(self):
            raise ZeroDivisionError

    found = scrape(Broken(), KernelPart(tmp_path))
    assert (found("up", part="models"), found("up", part="kernel")) == (0, 1)
    assert "ZeroDivisionError" in caplog.text, "with its traceback: this is a mistake of ours"


def test_whoever_asks_often_is_told_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "FRESH_S", 60.0)
    looks = []

    class Counting:
        name = "kernel"

        def read(self):
            looks.append(1)
            return {}

    registry = build_registry([Counting()])
    assert generate_latest(registry) == generate_latest(registry)
    assert len(looks) == 1


def test_no_private_word_in_what_is_told(recorded, tmp_path):
    """Neither commands nor paths, ids or digests: labels hold words of the catalog only."""
    script, report = recorded
    found = scrape(*machine_parts(script.settings, tmp_path / "none"))
    for private in (report["run"], str(script.settings.state_dir), script.workload.command, "tail_first"):
        assert private not in found.text
    accepted = {
        value for group in FAMILIES.values() for one in group for values in one.labels.values() for value in values
    }
    told = {value for _name, labels in found.samples for label, value in labels if label != "le"}
    assert told <= accepted
    assert set(POLICIES) <= accepted
