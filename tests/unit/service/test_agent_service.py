"""The whole agent service: measuring, recommending, carrying out, stopping; and that monitoring changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import RepositoryError, UsageError
from schedagent.core.process.systemd import Notifier
from schedagent.core.recommendation import MACHINE, ApplyRequest, Progress, RecommendationKind, Standing
from schedagent.core.service_settings import Mode, ServiceSettings, WatchedWorkload
from schedagent.core.settings import Settings
from schedagent.run.lifecycle import REPOSITORY, only_one
from schedagent.service import loop
from schedagent.service.keeping import Keeper
from schedagent.service.loop import Service, only_service, service_lives
from tests.support.daemon_processes import until
from tests.support.finished_runs import (
    BUILD,
    DAY_S,
    WORKLOAD,
    dying_work,
    optimise,
    reading,
    scripted_work,
    undecided_work,
    win,
)
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(120)
GROUP = "/build.slice"
WATCHED = ServiceSettings(workloads=(WatchedWorkload(WORKLOAD, GROUP),), baseline_readings=20)
NOON = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC).timestamp()


class Clock:
    """Time as a test wants it."""

    def __init__(self, now=NOON):
        self.now = now

    def __call__(self):
        return self.now


class Seen:
    """Looks as a test wants them."""

    def __init__(self, clock):
        self.clock, self.delay_s, self.commands = clock, 0.004, BUILD

    def read(self):
        return [reading(subject=GROUP, at=self.clock.now, delay_s=self.delay_s, commands=self.commands)]


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "state").mkdir()
    service = replace(WATCHED, socket=tmp_path / "none.sock")
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", daemon=service)


@pytest.fixture
def repository(settings):
    with PolicyRepository(settings.state_dir / REPOSITORY) as opened:
        yield opened


class Bench:
    """A service, its clock and what it sees."""

    def __init__(self, settings, repository, work=scripted_work, **changes):
        self.clock = Clock()
        self.seen = Seen(self.clock)
        self.records = repository.service
        self.step_s = 0.1
        settings = replace(settings, daemon=replace(settings.daemon, **changes))
        keeper = Keeper(self.records, DaemonClient(settings.daemon.socket), settings.daemon, self.clock)
        notifier = Notifier("", 0)
        self.service = Service(settings, repository, self.seen, keeper, notifier, self.clock, work)

    def minutes(self, count):
        for _ in range(count):
            self.clock.now += 60
            self.service.measure()

    def run(self, until_true, limit_s=30.0):
        """Let the service work until something is so, then stop it."""

        async def live():
            stop = asyncio.Event()
            working = asyncio.create_task(self.service.run(stop))
            end = time.monotonic() + limit_s
            while not until_true() and not working.done():
                assert time.monotonic() < end, "it never came to be"
                await asyncio.sleep(0.02)
                self.clock.now += self.step_s
            stop.set()
            await working

        asyncio.run(live())

    def ask(self, one, **fields):
        self.records.recommend(one)
        return self.records.ask(ApplyRequest(0, one.id, "", "ada", self.clock.now, **fields)).number


@pytest.fixture
def bench(settings, repository):
    return Bench(settings, repository)


# --- measuring


def test_drift_is_recommended_once_and_nothing_is_begun_while_it_monitors(bench):
    bench.minutes(20)
    assert bench.records.baseline(GROUP).measures["run_queue_delay_s"].count == 20
    bench.minutes(30)
    assert bench.records.recommendations() == []
    bench.seen.delay_s = 0.03
    bench.minutes(30)
    [one] = bench.records.recommendations()
    assert (one.kind, one.workload, one.cgroup) == (RecommendationKind.OPTIMISE, WORKLOAD, GROUP)
    assert "usually 4 ms" in one.why
    for _ in range(3):
        bench.service.begin_next()
    assert bench.records.requests() == []


def test_drift_that_nobody_can_name_is_told_once(settings, repository, caplog):
    bench = Bench(settings, repository, workloads=())
    bench.minutes(25)
    bench.seen.delay_s = 0.03
    with caplog.at_level("INFO", "schedagent.service"):
        bench.minutes(30)
    told = [record.message for record in caplog.records if "its workload is unknown" in record.message]
    assert [text for text in told if text.startswith(GROUP)] == told[:1] != []
    assert bench.records.recommendations() == []


def test_other_commands_are_drift_too(bench):
    bench.minutes(25)
    bench.seen.commands = {"rustc": 30.0}
    bench.minutes(20)
    [one] = bench.records.recommendations()
    assert "goes to other commands than usual" in one.why


def test_a_cgroup_that_waits_much_is_recommended_with_its_baseline(bench):
    bench.seen.delay_s = 0.05
    bench.minutes(20)
    [one] = bench.records.recommendations()
    assert "usually waits 50 ms for a CPU" in one.why
    bench.minutes(20)
    assert len(bench.records.recommendations()) == 1


def test_idle_intervals_make_no_baseline(bench):
    bench.seen.commands = {"sleep": 0.001}
    bench.minutes(40)
    assert bench.records.baseline(GROUP) is None


def test_a_baseline_that_is_too_old_is_made_anew(bench):
    bench.minutes(20)
    first = bench.records.baseline(GROUP)
    bench.seen.delay_s = 0.005
    bench.clock.now += 8 * DAY_S
    bench.minutes(21)
    second = bench.records.baseline(GROUP)
    assert (second.since > first.until, second.measures["run_queue_delay_s"].mean) == (False, pytest.approx(0.00405))
    bench.clock.now += 8 * DAY_S
    bench.minutes(21)
    assert bench.records.baseline(GROUP).since > first.until


def test_old_intervals_are_forgotten(bench):
    bench.minutes(5)
    bench.clock.now += 15 * DAY_S
    bench.minutes(1)
    assert len(bench.records.readings(GROUP)) == 1


def test_a_full_disk_does_not_end_the_service(bench, monkeypatch, caplog):
    def full(*_arguments, **_options):
        raise RepositoryError("the disk is full")

    monkeypatch.setattr(type(bench.records), "add_readings", full)
    bench.service.tick()
    assert "the disk is full" in caplog.text


def test_runs_are_examined_and_older_winners_withdrawn(bench, repository):
    bench.clock.now = time.time()
    win(repository, policy="good")
    bench.service.examine_runs()
    win(repository, policy="better")
    bench.service.examine_runs()
    standing = {one.policy: one.standing for one in bench.records.recommendations()}
    assert standing == {"good": Standing.WITHDRAWN, "better": Standing.OPEN}


# --- by itself


def begun(bench, minutes=1):
    """What the service begins by itself, asked as often as there are minutes; each is through at once."""
    for _ in range(minutes):
        bench.service.begin_next()
        for request in bench.records.requests(Progress.QUEUED):
            bench.records.save_request(replace(request, progress=Progress.DONE), Standing.APPLIED)
        bench.clock.now += 60
    return [request.recommendation_id for request in bench.records.requests()]


def test_optimising_by_itself_keeps_to_its_rate(settings, repository):
    bench = Bench(settings, repository, mode=Mode.OPTIMISE, runs_per_day=2)
    ones = [bench.records.recommend(optimise(key=str(key), now=NOON + key, lasts_s=9 * DAY_S)) for key in range(4)]
    assert begun(bench, 10) == [ones[0].id, ones[1].id], "the oldest first"
    bench.clock.now += DAY_S
    assert begun(bench, 10) == [one.id for one in ones]


def test_nothing_begins_in_quiet_hours(settings, repository):
    local = datetime.fromtimestamp(NOON).astimezone()
    quiet = f"{local.hour:02}:00-{(local.hour + 2) % 24:02}:00"
    bench = Bench(settings, repository, mode=Mode.ACT, quiet=quiet)
    one = bench.records.recommend(optimise(now=NOON, lasts_s=9 * DAY_S))
    assert begun(bench, 5) == []
    bench.clock.now += 7200
    assert begun(bench, 1) == [one.id]


def test_what_fits_this_machine_is_deployed_in_mode_act_only(settings, repository, monkeypatch):
    deploy = replace(optimise(now=NOON, cgroup=GROUP, kernel="7.3"), kind=RecommendationKind.DEPLOY, policy="good")
    monkeypatch.setattr(loop.platform, "release", lambda: "7.3")
    assert begun(Bench(settings, repository, mode=Mode.OPTIMISE)) == []
    bench = Bench(settings, repository, mode=Mode.ACT)
    bench.records.recommend(deploy)
    other = bench.records.recommend(replace(deploy, id="other"))
    kept = bench.ask(replace(deploy, id="kept"), progress=Progress.KEEPING)
    assert begun(bench) == ["kept"], "nothing is deployed in the place of what is kept"
    bench.records.save_request(replace(bench.records.request(kept), progress=Progress.DONE), Standing.APPLIED)
    assert begun(bench, 5) == ["kept", min(deploy.id, other.id, key=lambda one: one != other.id)]


def test_the_schedule_asks_in_time(settings, repository):
    bench = Bench(settings, repository, mode=Mode.OPTIMISE, every="1h", runs_per_day=10)
    bench.minutes(61)
    assert len(begun(bench, 3)) == 1
    bench.minutes(60)
    assert len(begun(bench, 3)) == 2


# --- carrying out


def test_what_was_queued_is_carried_out_whatever_the_mode(bench, repository):
    one = optimise(now=NOON, subject=GROUP)
    number = bench.ask(one)
    bench.run(lambda: bench.records.request(number).progress is Progress.DONE)
    run_id = bench.records.request(number).run_id
    assert repository.run(run_id).status is RunStatus.FINISHED
    assert bench.records.recommendation(one.id).standing is Standing.APPLIED


def test_what_was_stopped_goes_on_with_the_next_service(settings, repository):
    hang, log = settings.state_dir / "hang", settings.state_dir / "lab.log"
    hang.touch()
    bench = Bench(settings, repository)
    number = bench.ask(optimise(now=NOON))
    bench.run(log.exists)
    request = bench.records.request(number)
    assert request.progress is Progress.RUNNING
    with only_one(settings, f"request-{number}"):
        pass  # the process that held it is gone
    hang.unlink()
    again = Bench(settings, repository)
    again.run(lambda: again.records.request(number).progress is Progress.DONE)
    lines = log.read_text().splitlines()
    assert [line for line in lines if line[:2] != "by"] == [f"start {request.run_id}", f"resume {request.run_id}"]


def test_what_does_not_stop_is_killed_before_the_service_ends(settings, repository, monkeypatch):
    monkeypatch.setattr(loop, "GRACE_S", 0.5)
    for name in ("hang", "deaf"):
        (settings.state_dir / name).touch()
    log = settings.state_dir / "lab.log"
    bench = Bench(settings, repository)
    bench.ask(optimise(now=NOON))
    bench.run(lambda: log.exists() and "by" in log.read_text())
    worker = int(log.read_text().split("by ")[1])
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_failure_is_noted_and_the_service_goes_on(settings, repository):
    (settings.state_dir / "fail").touch()
    bench = Bench(settings, repository)
    first, second = bench.ask(optimise(now=NOON)), bench.ask(optimise(key="b", now=NOON))
    bench.run(lambda: bench.records.request(second).progress is Progress.FAILED)
    assert [bench.records.request(one).note for one in (first, second)] == ["the lab is broken"] * 2


def test_a_process_that_dies_is_not_started_again(settings, repository):
    bench = Bench(settings, repository, dying_work)
    number = bench.ask(optimise(now=NOON))
    bench.run(lambda: bench.records.request(number).progress is Progress.FAILED)
    assert "ended early" in bench.records.request(number).note


def test_what_came_to_no_end_is_not_tried_again_at_once(settings, repository):
    """As with a full disk: not even that it failed can be stored."""
    bench = Bench(settings, repository, undecided_work)
    bench.step_s = 1.0
    number = bench.ask(optimise(now=NOON))
    begun, carry_out = [], bench.service._carry_out

    def noted(request):
        begun.append(bench.clock.now)
        return carry_out(request)

    bench.service._carry_out = noted
    bench.run(lambda: len(begun) == 2)
    assert begun[1] >= begun[0] + 60
    assert (settings.state_dir / "tries").read_text().startswith("x")
    assert bench.records.request(number).progress is Progress.QUEUED


def test_a_newer_token_is_fetched_for_what_is_kept(settings, repository):
    bench = Bench(settings, repository, undecided_work)
    bench.step_s = 1.0
    number = bench.ask(optimise(now=NOON), progress=Progress.KEEPING)
    tries = settings.state_dir / "tries"
    bench.run(lambda: bench.clock.now > NOON + 10)
    assert not tries.exists()
    bench.service._keeper.tick = lambda: bench.service._keeper.wants_token.add(number)
    bench.run(tries.exists)
    assert bench.records.request(number).progress is Progress.KEEPING


def test_its_own_work_is_not_measured(settings, repository):
    hang = settings.state_dir / "hang"
    hang.touch()
    bench = Bench(settings, repository)
    bench.ask(optimise(now=NOON))

    def measured():
        if not (settings.state_dir / "lab.log").exists():
            return False
        bench.minutes(5)
        return True

    bench.records.add_readings([], keep_since=0)
    bench.run(measured)
    assert len(bench.records.readings(GROUP)) <= 1, "the first reading is before the work"
    hang.unlink()


def test_what_another_process_does_is_left_to_it(bench, settings):
    number = bench.ask(optimise(now=NOON), progress=Progress.RUNNING)
    request = bench.records.request(number)
    assert not bench.service._is_free(request), "it was asked for just now, by somebody who begins it"
    bench.clock.now += 60
    assert bench.service._is_free(request)
    begun = replace(request, started_at=NOON, run_id="r1")
    for name in (f"request-{number}", "r1"):
        with only_one(settings, name):
            assert not bench.service._is_free(begun)
    assert bench.service._is_free(begun)


# --- one service, as a process


def test_a_second_one_is_refused_with_who_holds_the_lock(settings):
    assert not service_lives(settings)
    with only_service(settings):
        assert service_lives(settings)
        with pytest.raises(UsageError, match=f"runs already: process {os.getpid()} since 20"), only_service(settings):
            pass
    assert not service_lives(settings)
    with only_service(settings):
        pass


@contextmanager
def running(folder, config="", program=None, **environment):
    """Start the real program with its own home folder."""
    (folder / "home").mkdir(exist_ok=True)
    (folder / "service.toml").write_text(config)
    told = {
        **{"HOME": str(folder / "home"), "SCHEDAGENT_CONFIG": str(folder / "service.toml"), "PATH": os.environ["PATH"]},
        **{"SCHEDAGENT_STATE": str(folder / "state"), "SCHEDAGENT_CACHE": str(folder / "cache")},
        **{"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
    }
    words = [sys.executable, *(program or ("-m", "schedagent", "daemon"))]
    process = subprocess.Popen(words, env=told, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_tells_systemd_and_ends_cleanly(tmp_path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        with running(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert [listener.recv(100), listener.recv(100)] == [b"READY=1", b"WATCHDOG=1"]
            with running(tmp_path) as second:
                assert second.wait(60) == 2
                assert f"runs already: process {process.pid} since" in second.stderr.read()
            while select.select([listener], [], [], 0)[0]:  # the kernel keeps ten of them, and drops what comes then
                listener.recv(100)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            while listener.recv(100) != b"STOPPING=1":
                pass


def test_the_real_program_carries_out_what_is_queued_in_a_process_of_its_own(tmp_path):
    """As far as a unit test can see: its lab's kernel is not there, which the request then says."""
    (tmp_path / "state").mkdir()
    with PolicyRepository(tmp_path / "state" / REPOSITORY) as repository:
        one = repository.service.recommend(optimise(now=time.time()))
        number = repository.service.ask(ApplyRequest(0, one.id, "", "ada", time.time())).number
        with running(tmp_path, SCHEDAGENT_KERNEL="9.9.9-none") as process:
            until(lambda: repository.service.request(number).progress is Progress.FAILED, 60)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        assert "9.9.9-none" in repository.service.request(number).note


CHANGING = """
import json, sys, threading
log = open({log!r}, "a", buffering=1)
def hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes)) and flags & 3:
            log.write(json.dumps([event, str(path)]) + "\\n")
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.chmod", "os.chown",
                   "os.truncate", "os.kill", "os.killpg", "subprocess.Popen", "os.fork", "os.forkpty", "os.exec",
                   "os.posix_spawn", "os.system", "socket.connect", "socket.bind", "sqlite3.connect", "os.setxattr"):
        log.write(json.dumps([event, repr(arguments)]) + "\\n")
sys.addaudithook(hook)
from schedagent.cli.app import main
sys.argv = ["schedagent", "daemon"]
main()
"""
COUNTERS = ("ns_last_pid", "random/", "pty/nr", "-nr", "-state", "netns", "nf_conntrack_count", "perf_", "aio-nr")


def sysctls():
    """Every setting of the kernel that can be written, and read, but for those that only count."""
    found = {}
    for folder, _folders, names in os.walk("/proc/sys"):
        for path in (Path(folder, name) for name in names):
            if any(part in str(path) for part in COUNTERS):
                continue
            try:
                if path.stat().st_mode & 0o222:
                    found[str(path)] = path.read_bytes()
            except OSError:
                continue
    return found


def policies():
    """Scheduling policy and nice value of each process, by its id and start; without those of other tests."""
    found, tests = {}, os.getsid(0)
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()):
        try:
            begin = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            if os.getsid(pid) != tests:
                found[pid, begin] = os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)
        except OSError:
            continue
    return found


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def files(folder, but_not):
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if not any(path == one or one in path.parents for one in but_not)
    }


def test_monitoring_changes_nothing_on_this_machine(tmp_path):
    """Acceptance 5, as far as one process can be held to it; the host test does the same with a whole system."""
    log, state = tmp_path / "log", tmp_path / "state"
    config = "[daemon]\nreading_every_s = 1\nbaseline_readings = 12\n"
    program = ("-c", CHANGING.format(log=str(log)))
    (tmp_path / "home").mkdir()
    before_sysctls, before_policies = sysctls(), policies()
    before_files = files(tmp_path, (state, log, tmp_path / "service.toml"))
    with running(tmp_path, config, program) as process:
        until((state / REPOSITORY).exists, 60)
        with PolicyRepository(state / REPOSITORY) as repository:
            until(lambda: process.poll() is not None or len(repository.service.readings(MACHINE)) >= 4, 60)
            readings = repository.service.readings(MACHINE)
        assert process.poll() is None
        assert children(process.pid) == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert len(readings) >= 4
    after = policies()
    assert {one: after[one] for one in before_policies if one in after} == {
        one: told for one, told in before_policies.items() if one in after
    }
    assert {name: told for name, told in sysctls().items() if before_sysctls.get(name) != told} == {}
    assert files(tmp_path, (state, log, tmp_path / "service.toml")) == before_files
    did = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one for one in did if str(state) not in one[1] and one[1] != os.devnull] == []
    assert any(event == "sqlite3.connect" for event, _what in did), "the hook saw nothing"
