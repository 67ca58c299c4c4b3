"""The policy repository on real SQLite files: round trips, repeated saves, kill -9, damage, full disk, two at once."""

import dataclasses
import math
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

import repo_store.database.engine
from repo_store.database.tables import SCHEMA, Base
from repo_store.records import RunStatus
from repo_store.search import INDEX_TABLE
from repo_store.store import PolicyRepository
from schedagent.core.errors import RepositoryError, UsageError
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.trials.lesson import Antipattern
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Hardware, Outcome, Sample, Verdict
from schedagent.core.trials.workload import CommandStats, Goal, WorkloadClass, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from tests.support.paths import ROOT

WORKLOAD = WorkloadCommand("make -j", "/src", metric=r"(\d+)", goal=Goal.LATENCY)
HARDWARE = Hardware("some CPU", 2, 1024, "vm-tcg", "7.3.4+deb13-amd64")
LARGEST = 2**64 - 1
CANDIDATE = CandidatePolicy(
    "longest_first", (("slice_us", 5000),), ((LARGEST, 10**12), (7, 1)), ((LARGEST, 3),), "the tail is long"
)
OTHER = CandidatePolicy("fifo", (("slice_us", 20000),), reason="simplest")
PLAN = Plan((CANDIDATE, OTHER), "the profile shows a long tail", "it was better before")
VERDICT = Verdict(Outcome.BETTER, 0.81, 0.78, 0.84, 0.975, 6, 1, "19 % lower")
COMMAND = CommandStats("cc1", LARGEST, "cc1", 12, 1, 2, 3, 4, 5, 6, 7, 8, 9)
PROFILE = WorkloadProfile(
    2.5, 4.5, 2, ((0.0, 1), (0.25, 9)), 0.9, (COMMAND,), (COMMAND,), 0.1, -1.0, math.inf,
    WorkloadClass.BATCH_LONG_TAIL, ("the longest takes 7 times the median",), 3,
)  # fmt: skip


def sample(arm, value=1.5, **fields):
    settings = {"wall_ns": 2**62, "cpu_ns": 5, "exit_status": 0, "started_at": "2026-08-01", "calibration_ns": 9}
    return Sample(arm=arm, value=value, **settings | fields)


def block(number, value=1.5):
    return Block(number, (sample(CANDIDATE.key, value), sample(DEFAULT_ARM, 2.0, output_tail="ok ü")))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "repository.db"


@pytest.fixture
def repository(path):
    with PolicyRepository(path) as opened:
        yield opened


@pytest.fixture
def run_id(repository):
    return repository.create_run(WORKLOAD, HARDWARE, settings={"iterations": 3, "cache": "/c"}, seed=LARGEST)


def raw(path, statement):
    """Run a statement behind the repository's back."""
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(statement).fetchall()
    finally:
        connection.close()


class TestRuns:
    def test_round_trip(self, repository, run_id):
        run = repository.run(run_id)
        assert (run.workload, run.hardware, run.seed) == (WORKLOAD, HARDWARE, LARGEST)
        assert run.settings == {"iterations": 3, "cache": "/c"}
        assert (run.status, run.finished_at, run.report) == (RunStatus.RUNNING, "", None)

    def test_finish_is_final(self, repository, run_id):
        repository.finish_run(run_id, RunStatus.INTERRUPTED)
        assert repository.run(run_id).finished_at
        repository.resume_run(run_id)
        assert repository.run(run_id).status is RunStatus.RUNNING
        repository.finish_run(run_id, RunStatus.FINISHED, {"best": 0.8, "a": [1]})
        first = repository.run(run_id)
        assert (first.status, first.report) == (RunStatus.FINISHED, {"best": 0.8, "a": [1]})
        repository.finish_run(run_id, RunStatus.FINISHED, {"a": [1], "best": 0.8})
        assert repository.run(run_id) == first
        with pytest.raises(RepositoryError, match="finished already"):
            repository.finish_run(run_id, RunStatus.FAILED, {})
        with pytest.raises(UsageError, match="is finished"):
            repository.resume_run(run_id)

    def test_repeated_creation(self, repository, run_id):
        again = {"settings": {"cache": "/c", "iterations": 3}, "seed": LARGEST, "run_id": run_id}
        assert repository.create_run(WORKLOAD, HARDWARE, **again) == run_id
        assert len(repository.list_runs()) == 1
        with pytest.raises(RepositoryError, match=f"run {run_id} is stored already"):
            repository.create_run(WORKLOAD, HARDWARE, **again | {"seed": 1})

    def test_list_newest_first(self, repository):
        ids = [repository.create_run(WORKLOAD, HARDWARE, run_id=f"run{number}") for number in range(3)]
        assert [run.id for run in repository.list_runs()] == ids[::-1]
        assert [run.id for run in repository.list_runs(limit=1)] == ids[-1:]

    def test_unknown_run(self, repository):
        for call in (repository.run, repository.resume_run, lambda name: repository.finish_run(name, RunStatus.FAILED)):
            with pytest.raises(UsageError, match="no run 'nope'"):
                call("nope")


class TestSteps:
    def test_nothing_stored_yet(self, repository, run_id):
        assert repository.profile(run_id) is None
        assert repository.plan(run_id, 1) is None
        assert repository.verification(run_id, CANDIDATE.key) is None
        assert repository.blocks(run_id, 1) == []
        assert repository.verdicts(run_id, 1) == {}
        assert repository.iterations(run_id) == []

    def test_profile(self, repository, run_id):
        for _ in range(2):
            repository.save_profile(run_id, PROFILE)
            assert repository.profile(run_id) == PROFILE
        with pytest.raises(RepositoryError, match=r"the profile of run .* is stored already"):
            repository.save_profile(run_id, dataclasses.replace(PROFILE, wall_s=2.6))
        assert repository.profile(run_id) == PROFILE

    def test_a_number_is_the_same_whatever_its_type_and_nan_is_nan(self, repository, run_id):
        whole = dataclasses.replace(PROFILE, wall_s=20, predicted_ratio=math.nan)
        for _ in range(2):
            repository.save_profile(run_id, whole)
        stored = repository.profile(run_id)
        assert (stored.wall_s, type(stored.wall_s)) == (20, float)
        repository.save_profile(run_id, stored)
        with pytest.raises(RepositoryError, match="stored already"):
            repository.save_profile(run_id, dataclasses.replace(whole, predicted_ratio=1.0))

    def test_plan(self, repository, run_id):
        for _ in range(2):
            repository.save_plan(run_id, 1, PLAN)
            assert repository.plan(run_id, 1) == PLAN
        repository.save_plan(run_id, 2, dataclasses.replace(PLAN, candidates=()))
        assert repository.plan(run_id, 2).candidates == ()
        assert repository.iterations(run_id) == [1, 2]
        for changed in (PLAN.candidates[::-1], PLAN.candidates[:1], ()):
            with pytest.raises(RepositoryError, match="iteration 1 is stored already"):
                repository.save_plan(run_id, 1, dataclasses.replace(PLAN, candidates=changed))
        with pytest.raises(RepositoryError, match="iteration 2 is stored already"):
            repository.save_plan(run_id, 2, PLAN)
        assert (repository.plan(run_id, 1), repository.plan(run_id, 2).candidates) == (PLAN, ())

    def test_verification(self, repository, run_id):
        gates = (
            GateResult("load", GateStatus.PASSED, "120 instructions", 0.27),
            GateResult("stress", GateStatus.FAILED, "stall"),
        )
        report = VerificationReport("longest_first", CANDIDATE.key, "ab" * 32, "7.3.4", gates, token="sat2.a.b.c")
        for _ in range(2):
            repository.save_verification(run_id, report)
            assert repository.verification(run_id, CANDIDATE.key) == report
        with pytest.raises(RepositoryError, match="the verification of"):
            repository.save_verification(run_id, dataclasses.replace(report, token=""))

    def test_blocks(self, repository, run_id, path):
        for number in (1, 0, 2, 1):
            repository.add_block(run_id, 1, block(number), argv=["sh", "-c", "make -j"])
        assert repository.blocks(run_id, 1) == [block(0), block(1), block(2)]
        assert repository.blocks(run_id, 2) == []
        assert raw(path, "SELECT DISTINCT argv FROM samples") == [('["sh","-c","make -j"]',)]
        with pytest.raises(RepositoryError, match=r"block 1 of run .* is stored already"):
            repository.add_block(run_id, 1, block(1, value=1.6), argv=["sh", "-c", "make -j"])
        with pytest.raises(RepositoryError, match="is stored already"):
            repository.add_block(run_id, 1, Block(1, block(1).samples[:1]), argv=["sh", "-c", "make -j"])
        assert repository.blocks(run_id, 1) == [block(0), block(1), block(2)]

    def test_the_table_itself_refuses_a_second_sample(self, repository, run_id, path):
        repository.add_block(run_id, 1, block(1))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            raw(path, "INSERT INTO samples SELECT * FROM samples")

    def test_block_is_stored_whole_or_not_at_all(self, repository, run_id):
        twice = Block(1, (sample(DEFAULT_ARM), sample(CANDIDATE.key), sample(CANDIDATE.key)))
        with pytest.raises(RepositoryError, match="UNIQUE"):
            repository.add_block(run_id, 1, twice)
        assert repository.blocks(run_id, 1) == []

    def test_sample_of_a_run_that_failed(self, repository, run_id):
        broken = sample(CANDIDATE.key, math.nan, exit_status=None, policy_exit="runnable task stall")
        for _ in range(2):
            repository.add_block(run_id, 1, Block(1, (broken, sample(DEFAULT_ARM, exit_status=-9))))
        first, second = repository.blocks(run_id, 1)[0].samples
        assert math.isnan(first.value)
        assert dataclasses.replace(first, value=0) == dataclasses.replace(broken, value=0)
        assert second.exit_status == -9

    def test_verdicts(self, repository, run_id):
        failed = Verdict(Outcome.FAILED, math.nan, math.nan, math.nan, 0.0, 0, 0, "it stalled")
        repository.save_plan(run_id, 1, PLAN)
        for _ in range(2):
            repository.save_verdict(run_id, 1, OTHER.key, failed)
            repository.save_verdict(run_id, 1, CANDIDATE.key, VERDICT)
        verdicts = repository.verdicts(run_id, 1)
        assert list(verdicts) == [CANDIDATE.key, OTHER.key], "in the order of the plan"
        assert verdicts[CANDIDATE.key] == VERDICT
        assert verdicts[OTHER.key].outcome is Outcome.FAILED
        assert math.isnan(verdicts[OTHER.key].ratio)
        with pytest.raises(RepositoryError, match="the verdict on"):
            repository.save_verdict(run_id, 1, CANDIDATE.key, dataclasses.replace(VERDICT, pairs=7))

    def test_nothing_without_its_run_or_plan(self, repository, run_id):
        with pytest.raises(RepositoryError, match="FOREIGN KEY"):
            repository.save_profile("nope", PROFILE)
        with pytest.raises(RepositoryError, match="FOREIGN KEY"):
            repository.add_block("nope", 1, block(1))
        with pytest.raises(RepositoryError, match="FOREIGN KEY"):
            repository.save_verdict(run_id, 1, CANDIDATE.key, VERDICT)

    def test_text_that_is_not_unicode(self, repository, run_id):
        with pytest.raises(RepositoryError, match="cannot store this WorkloadCommand"):
            repository.create_run(dataclasses.replace(WORKLOAD, command="cat \udcff"), HARDWARE)
        with pytest.raises(RepositoryError, match="surrogates not allowed"):
            repository.add_block(run_id, 1, Block(1, (sample(DEFAULT_ARM, output_tail="\udcff"),)))

    def test_content_changed_by_hand(self, repository, run_id, path):
        repository.save_profile(run_id, PROFILE)
        raw(path, "UPDATE profiles SET profile = '{}'")
        with pytest.raises(RepositoryError, match="a stored WorkloadProfile cannot be read"):
            repository.profile(run_id)


class TestLearning:
    def test_lessons_of_all_runs_on_the_same_workload_and_hardware(self, repository):
        other_hardware = dataclasses.replace(HARDWARE, cpus=4)
        for name, hardware in (("a", HARDWARE), ("b", other_hardware), ("c", HARDWARE)):
            repository.create_run(WORKLOAD, hardware, run_id=name)
            repository.save_plan(name, 1, PLAN)
            repository.save_verdict(name, 1, CANDIDATE.key, VERDICT)
        found = repository.lessons(WORKLOAD.key, HARDWARE.key)
        assert [lesson.run_id for lesson in found] == ["c", "a"]
        lesson = found[0]
        assert (lesson.policy, lesson.candidate_key, lesson.tunables) == (
            "longest_first",
            CANDIDATE.key,
            CANDIDATE.tunables,
        )
        assert (lesson.outcome, lesson.ratio, lesson.low, lesson.high, lesson.pairs) == (
            Outcome.BETTER,
            0.81,
            0.78,
            0.84,
            6,
        )
        assert (lesson.workload_key, lesson.hardware_key) == (WORKLOAD.key, HARDWARE.key)
        assert repository.lessons("other", HARDWARE.key) == []

    def test_antipatterns(self, repository):
        anywhere = Antipattern("fifo", "k1", (("a", 1),), "", HARDWARE.key, "load", "refused", "2026-01-01")
        here = dataclasses.replace(
            anywhere, candidate_key="k2", workload_key=WORKLOAD.key, gate="trial", at="2026-01-02"
        )
        for found in (anywhere, here, here, dataclasses.replace(here, reason="another reason")):
            repository.add_antipattern(found)
        repository.add_antipattern(dataclasses.replace(anywhere, hardware_key="elsewhere"))
        assert repository.antipatterns(WORKLOAD.key, HARDWARE.key) == [here, anywhere]
        assert repository.antipatterns("other", HARDWARE.key) == [anywhere]


LIBRARY = [
    PolicyInfo("longest_first", "Runs the longest expected tasks first", ("batch-long-tail",),
               "Orders by remaining time.", "Interactive latency suffers", (), ("history",), Path("longest_first.c")),
    PolicyInfo("interactive", "Short bursts first, for wake-up latency", ("latency-sensitive",), "Measures bursts.",
               "Loses throughput", (), (), Path("interactive.bpf.c")),
    PolicyInfo("batch", "Long slices, few switches", ("cpu-batch", "parallel-build"), "Keeps a task on its CPU.",
               "Wake-up latency", (), (), Path("batch.bpf.c")),
]  # fmt: skip


class TestSearch:
    @pytest.fixture(params=["fts5", "plain"])
    def library(self, repository, path, request):
        if request.param == "plain":
            raw(path, f"DROP TABLE {INDEX_TABLE}")
        repository.sync_policies(LIBRARY)
        return repository

    def names(self, repository, words, **options):
        return [match.name for match in repository.search_policies(words, **options)]

    def test_best_match_first(self, library):
        assert self.names(library, "wake-up latency")[0] == "interactive"
        assert self.names(library, "parallel build") == ["batch"]
        assert self.names(library, "longest_first")[0] == "longest_first"
        assert self.names(library, "LATENC", limit=1) == ["interactive"], "beginnings of words match, in any case"

    @pytest.mark.parametrize("words", ["", "  ", '"', "NOT NEAR", "zzz", "* - ( NEAR", "'; DROP TABLE policies; --"])
    def test_any_text_is_only_text(self, library, words):
        assert self.names(library, words) == []
        assert len(self.names(library, "latency")) == 3

    def test_library_that_changed(self, library):
        library.sync_policies(LIBRARY)
        changed = dataclasses.replace(LIBRARY[2], description="Keeps caches hot")
        library.sync_policies([LIBRARY[0], changed])
        assert self.names(library, "hot caches") == ["batch"]
        assert "interactive" not in self.names(library, "latency bursts")
        assert "batch" not in self.names(library, "switches")

    def test_workloads_it_was_better_on_are_found(self, library, run_id):
        library.save_plan(run_id, 1, PLAN)
        assert self.names(library, "make") == []
        library.save_verdict(run_id, 1, OTHER.key, dataclasses.replace(VERDICT, outcome=Outcome.WORSE))
        library.save_verdict(run_id, 1, CANDIDATE.key, VERDICT)
        assert self.names(library, "make") == ["longest_first"]


WRITER = """
import sys
from repo_store.store import PolicyRepository
from schedagent.core.trials.trial import Block, Sample
path, run_id, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
repository = PolicyRepository(path)
start = len(repository.blocks(run_id, 1))
for number in range(max(0, start - 1), count):
    arms = [Sample(arm, number + 1.0, number, 1, 0, "now", 1, "x" * 3000) for arm in ("", "candidate")]
    repository.add_block(run_id, 1, Block(number, tuple(arms)))
    print(number, flush=True)
"""


def writer(path, run_id, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, run_id, str(count)], cwd=ROOT, stdout=subprocess.PIPE)


class TestCrash:
    def test_kill_loses_no_committed_block_and_counts_none_twice(self, repository, run_id, path):
        seen = -1
        for round_number in range(3):
            with writer(path, run_id, 10**6) as process:
                for _ in range(25 + 7 * round_number):
                    seen = int(process.stdout.readline())
                process.send_signal(signal.SIGKILL)
            blocks = repository.blocks(run_id, 1)
            assert len(blocks) > seen
            assert [one.number for one in blocks] == list(range(len(blocks)))
            assert {len(one.samples) for one in blocks} == {2}
        total = len(blocks) + 10
        with writer(path, run_id, total) as process:
            process.communicate()
        assert process.returncode == 0
        assert raw(path, "SELECT count(*), count(DISTINCT block), sum(wall_ns) FROM samples") == [
            (2 * total, total, total * (total - 1))
        ]
        assert raw(path, "PRAGMA integrity_check") == [("ok",)]

    def test_settings_of_every_connection(self, repository):
        for engine in (repository._engine, repo_store.database.engine.for_writing(repository._engine)):
            with engine.connect() as connection:
                pragmas = ("foreign_keys", "journal_mode", "busy_timeout", "synchronous")
                found = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in pragmas]
            assert found == [1, "wal", 10_000, 2]


class TestTwoAtOnce:
    def test_many_open_a_new_repository_at_once(self, path):
        code = "import sys; from repo_store.store import PolicyRepository; PolicyRepository(sys.argv[1]).list_runs()"
        running = [
            subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)
        ]
        for process in running:
            assert process.communicate()[1] == b""
            assert process.returncode == 0

    def test_two_runs_write_at_once(self, repository, path):
        ids = [repository.create_run(WORKLOAD, HARDWARE, run_id=name) for name in ("one", "two")]
        running = [writer(path, run_id, 60) for run_id in ids]
        assert [process.communicate() and process.returncode for process in running] == [0, 0]
        assert [len(repository.blocks(run_id, 1)) for run_id in ids] == [60, 60]

    def test_threads_share_a_repository(self, repository, run_id):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: repository.add_block(run_id, 1, block(number % 10)), range(40)))
        assert repository.blocks(run_id, 1) == [block(number) for number in range(10)]

    def test_locked_for_too_long(self, path, monkeypatch):
        monkeypatch.setattr(repo_store.database.engine, "_PRAGMAS", ("PRAGMA busy_timeout = 50",))
        PolicyRepository(path).close()
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with PolicyRepository(path) as repository, pytest.raises(RepositoryError, match="locked by another") as caught:
            repository.create_run(WORKLOAD, HARDWARE)
        holder.close()
        assert "fuser" in caught.value.hint


class TestUnusable:
    @pytest.fixture
    def closed(self, path):
        """A repository with some content, closed, so that all of it is in the one file."""
        with PolicyRepository(path) as repository:
            name = repository.create_run(WORKLOAD, HARDWARE, run_id="run")
            for number in range(50):
                repository.add_block(name, 1, block(number))
        return path

    def damaged(self, path):
        with pytest.raises(RepositoryError, match="is damaged") as caught, PolicyRepository(path) as repository:
            repository.blocks("run", 1)
        assert str(path) in caught.value.message
        assert f"mv {path} {path}.broken" in caught.value.hint
        assert path.exists()

    def test_not_a_database(self, closed):
        closed.write_bytes(b"\0garbage" * 1000)
        self.damaged(closed)

    def test_pages_overwritten(self, closed):
        content = bytearray(closed.read_bytes())
        content[8192:] = os.urandom(len(content) - 8192)
        closed.write_bytes(content)
        self.damaged(closed)

    def test_cut_short(self, closed):
        closed.write_bytes(closed.read_bytes()[:10000])
        self.damaged(closed)

    def test_hint_works(self, closed):
        closed.write_bytes(b"\0garbage" * 1000)
        with pytest.raises(RepositoryError) as caught:
            PolicyRepository(closed)
        subprocess.run(["sh", "-c", caught.value.hint.rsplit(": ", 1)[1]], check=True)
        with PolicyRepository(closed) as repository:
            assert repository.list_runs() == []

    def test_empty_file_is_a_new_repository(self, path):
        path.parent.mkdir()
        path.touch()
        with PolicyRepository(path) as repository:
            assert repository.list_runs() == []

    def test_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(RepositoryError, match=r"cannot be written: (Not a directory|File exists)"):
            PolicyRepository(tmp_path / "file" / "state" / "repository.db")
        with pytest.raises(RepositoryError, match="cannot be written: Is a directory"):
            PolicyRepository(tmp_path)

    def test_read_only_file_system(self, tmp_path):
        with mounted(tmp_path, "size=4m") as folder:
            PolicyRepository(folder / "repository.db").close()
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            with pytest.raises(RepositoryError, match="cannot be written: Read-only file system"):
                PolicyRepository(folder / "repository.db")
            with pytest.raises(RepositoryError, match="cannot be written: Read-only file system"):
                PolicyRepository(folder / "new" / "repository.db")

    def test_full_disk_keeps_what_was_stored(self, tmp_path):
        with mounted(tmp_path, "size=600k") as folder, PolicyRepository(folder / "repository.db") as repository:
            self.fill(repository)

    def test_full_database_keeps_what_was_stored(self, repository, monkeypatch):
        """The same without a mount: SQLite's own limit raises the error of a full disk."""
        with repository._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100")
        self.fill(repository)

    def fill(self, repository):
        run_id = repository.create_run(WORKLOAD, HARDWARE)
        large = [Block(number, (sample(DEFAULT_ARM, output_tail="x" * 20000),)) for number in range(100)]
        with pytest.raises(RepositoryError, match="is full") as caught:
            any(repository.add_block(run_id, 1, one) for one in large)
        assert "make room" in caught.value.hint
        stored = repository.blocks(run_id, 1)
        assert stored == large[: len(stored)]
        assert len(stored) > 2
        with pytest.raises(RepositoryError, match="is full"):
            repository.add_block(run_id, 1, large[len(stored)])

    def test_file_size_limit(self, path):
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))\n{WRITER}"
        with PolicyRepository(path) as repository:
            repository.create_run(WORKLOAD, HARDWARE, run_id="run")
            argv = [sys.executable, "-c", code, path, "run", "1000"]
            result = subprocess.run(argv, cwd=ROOT, capture_output=True, check=False)
            assert b"RepositoryError: " in result.stderr
            assert b"check the disk and its quota" in result.stderr
            assert len(repository.blocks("run", 1)) == len(result.stdout.split()) > 0

    def test_newer_schema(self, closed):
        raw(closed, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(RepositoryError, match=rf"newer schedagent \(schema 9999, known here: {SCHEMA}\)"):
            PolicyRepository(closed)

    def test_database_of_another_program(self, path):
        path.parent.mkdir()
        raw(path, "CREATE TABLE bookmarks (url TEXT)")
        with pytest.raises(RepositoryError, match="another program: it has the table bookmarks"):
            PolicyRepository(path)
        assert raw(path, "SELECT name FROM sqlite_master") == [("bookmarks",)]

    def test_failed_migration_leaves_no_trace(self, path, monkeypatch):
        def fail(connection):
            connection.exec_driver_sql("CREATE TABLE half (x TEXT)")
            raise RuntimeError("power cut")

        with monkeypatch.context() as patch:
            patch.setattr(repo_store.database.engine, "_upgrade", fail)
            with pytest.raises(RuntimeError, match="power cut"):
                PolicyRepository(path)
        assert raw(path, "SELECT name FROM sqlite_master") == []
        PolicyRepository(path).close()

    def test_file_is_private(self, repository, path):
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


@contextmanager
def mounted(tmp_path, options):
    """Mount a small file system; skips the test where that is not allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    try:
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no mount command")
    if result.returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class TestSchema:
    def test_migrations_make_the_tables(self, repository):
        with repository._engine.connect() as connection:
            options = {"include_name": lambda name, kind, _: kind != "table" or not name.startswith(INDEX_TABLE)}
            context = MigrationContext.configure(connection, opts=options | {"compare_type": True})
            assert compare_metadata(context, Base.metadata) == []

    def test_newest_migration_is_the_schema(self):
        script = ScriptDirectory(str(ROOT / "repo_store" / "migrations"))
        assert script.get_heads() == [SCHEMA]

    def test_tables_fit_postgresql(self):
        dialect = postgresql.dialect()
        for table in Base.metadata.sorted_tables:
            statement = str(CreateTable(table).compile(dialect=dialect))
            assert "SERIAL" not in statement
            for index in table.indexes:
                assert str(CreateIndex(index).compile(dialect=dialect))

    def test_url_without_its_driver(self):
        with pytest.raises(RepositoryError, match="postgresql") as caught:
            PolicyRepository("postgresql+nosuchdriver://user:secret@localhost/x")
        assert "secret" not in str(caught.value)
