"""A policy cannot blind, starve, kill or outlive what watches it; nor can a clock or a live patch revive its token."""

import os
import re
import socket
import subprocess
import sys

import pytest

from kernel_bpf.load.running import live_patches
from schedagent.core.deployment import End, Stage
from schedagent.core.errors import BpfError, RecordError, Refused, SetupError, TokenError
from schedagent.core.token import CLOCK_SKEW_S
from schedagent.schedagentd import kernel, protection
from schedagent.schedagentd.driver import KEEP_TIME_S
from schedagent.schedagentd.kernel import HostKernel, _lease, _remove
from schedagent.schedagentd.server import BUSY_S, REST_S, Server
from tests.support.deploy_orders import CANARY, content_of, order_of
from tests.support.paths import ROOT
from tests.support.scripted_host import UID
from tests.support.unit_commands import command

PATCH = "livepatch_1:abcdefab"


class TestTakingAwayComesFirst:
    @pytest.mark.parametrize("why", ["stall", "rollback", "replaced", "lease", "stop"])
    def test_nothing_is_written_before_it_is_gone(self, host, why):
        """The policy schedules the kernel threads that write: on a disk that takes its time it would stay."""
        host.deploy(lease_s=50.0)
        order, real = [], host.record._change
        host.world.hooks["detach"] = lambda: order.append("detached")

        def change():
            order.append("written")
            return real()

        host.record._change = change
        match why:
            case "stall":
                host.world.end_policy()
                host.wait(1)
            case "rollback":
                host.rollout.rollback()
            case "replaced":
                host.deploy("second")
            case "lease":
                host.wait(50)
            case "stop":
                host.rollout.stop()
        written = order[: order.index("detached")].count("written")
        assert written == (2 if why == "replaced" else 0), "what replaces it is accepted and announced first"

    def test_what_could_not_be_stored_waits_until_everything_was_looked_at(self, host):
        first = host.deploy().number
        host.record._database.execute("PRAGMA query_only = ON")
        host.world.end_policy()
        host.wait(1)
        assert host.driver.unsaved
        host.record._database.execute("PRAGMA query_only = OFF")
        host.deploy("second")
        order, save = [], host.driver.save_unsaved
        host.driver.save_unsaved = lambda: (order.append("stored"), save())
        host.world.hooks["state"] = lambda: order.append("looked")
        host.wait(1)
        assert (order, host.get(first).end) == (["looked", "stored"], End.STALL)


class TestLease:
    """What is pinned carries its lease with it, for whoever outlives schedagentd."""

    def test_it_is_noted_with_the_pins_and_follows_renewals(self, staying):
        number = staying.proven()
        assert staying.world.policy["lease"] == staying.get(number).lease_until
        staying.rollout.renew(number, 5000.0)
        assert staying.world.policy["lease"] == staying.get(number).lease_until > staying.clock.boot() + 3000

    def test_whoever_takes_it_over_notes_it_again(self, staying):
        number = staying.proven()
        staying.kill()
        staying.world.policy["lease"] = 0.0
        staying.start()
        assert staying.world.policy["lease"] == staying.get(number).lease_until

    def test_one_that_cannot_be_noted_harms_nothing_that_runs(self, staying):
        number = staying.proven()
        staying.world.hooks["before prolong"] = lambda: (_ for _ in ()).throw(BpfError("no room"))
        staying.rollout.renew(number, 600.0)
        assert staying.running == number

    def test_there_is_always_one_and_never_two(self, tmp_path):
        pins = tmp_path / "schedagent"
        folder = pins / "7"
        _lease(folder, 100)
        folder.mkdir()
        (folder / "link0").touch()
        _lease(folder, 200)
        _lease(folder, 200)
        assert sorted(path.name for path in pins.iterdir()) == ["7", "lease_7_200"]
        assert HostKernel(1000, pins).pinned() == (7,)
        _lease(pins / "77", 300)
        _remove(folder)
        assert [path.name for path in pins.iterdir()] == ["lease_77_300"]
        _remove(folder)  # nor is it an error that nothing is there
        _remove(tmp_path / "none" / "1")

    def test_it_is_there_before_the_first_pin(self, tmp_path):
        class Policy:
            def pin(self, folder):
                assert [path.name for path in folder.parent.iterdir()] == ["lease_7_100"]

        kernel.PinnablePolicy(Policy(), tmp_path / "p" / "7", 1.0).pin(100.9)


class TestTime:
    """A clock that is set back revives no token."""

    def accepts(self, host, order):
        host.rollout.deploy(UID, order, content_of("late"), Stage.CANARY, CANARY, 60.0)

    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_an_expired_token_stays_expired(self, host, end):
        order = order_of("late", life_s=3600, now=host.clock.unix())
        for _minute in range(120):
            host.clock.now += 60
            host.driver.keep_time()
        getattr(host, end)()
        host.clock.day -= 7000
        host.start()
        with pytest.raises(TokenError, match="the clock was set back"):
            self.accepts(host, order)

    def test_it_is_stored_now_and_then_and_not_all_the_time(self, host):
        begun = host.clock.unix()
        changes = host.record._database.total_changes
        for _second in range(1000):
            host.clock.now += 1
            host.driver.keep_time()
        assert host.record.last_seen >= begun + 1000 - KEEP_TIME_S
        assert 0 < host.record._database.total_changes - changes <= 1000 / KEEP_TIME_S

    def test_it_is_never_earlier_than_before(self, host):
        host.record.saw(host.clock.unix() + 50)
        seen = host.record.last_seen
        host.driver.keep_time(at_once=True)
        assert host.record.last_seen == seen

    def test_a_clock_that_was_wrong_for_a_moment_keeps_no_token_away(self, host):
        host.clock.day += 3.2e7
        host.clock.now += KEEP_TIME_S
        host.driver.keep_time()
        assert host.record.last_seen <= host.clock.unix() - 3.2e7 + CLOCK_SKEW_S
        host.clock.day -= 3.2e7
        self.accepts(host, order_of("late", now=host.clock.unix()))

    def test_one_that_stays_ahead_is_believed(self, host):
        host.clock.day += 3.2e7
        for _look in range(2):
            host.clock.now += KEEP_TIME_S
            host.driver.keep_time()
        assert host.record.last_seen == host.clock.unix()

    def test_a_full_disk_is_no_reason_to_stop(self, host):
        host.record._database.execute("PRAGMA query_only = ON")
        host.clock.now += KEEP_TIME_S
        host.driver.keep_time()
        with pytest.raises(RecordError):
            host.record.saw(host.clock.unix())


class TestLivePatches:
    def test_a_patched_kernel_is_another_kernel(self, host):
        host.world.set(live_patches=[PATCH])
        with pytest.raises(TokenError, match=r"live_patches=.*not for .*livepatch_1") as refused:
            host.deploy()
        assert "boot a kernel" in refused.value.hint
        assert host.rollout.status()["kernel"]["live_patches"] == [PATCH]

    def test_one_that_comes_later_ends_what_it_changes(self, host):
        number = host.proven()
        host.world.set(live_patches=[PATCH])
        with pytest.raises(TokenError, match="live patches were applied since: livepatch_1"):
            host.rollout.renew(number, 600.0)
        with pytest.raises(TokenError, match="live_patches"):
            host.rollout.promote(number)
        host.wait(600)
        assert (host.running, host.get(number).end) == (None, End.LEASE_LAPSED)

    def patch(self, root, name, enabled, transition, build_id=b""):
        for state, value in (("enabled", enabled), ("transition", transition)):
            path = root / "livepatch" / name / state
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        if build_id:
            note = root / "module" / name / "notes/.note.gnu.build-id"
            note.parent.mkdir(parents=True)
            sizes = (4, len(build_id), 3)
            note.write_bytes(b"".join(size.to_bytes(4, "little") for size in sizes) + b"GNU\0" + build_id)

    def test_what_the_kernel_shows_of_them(self, tmp_path):
        places = tmp_path / "livepatch", tmp_path / "module"
        assert live_patches(*places) == (), "a kernel without them"
        self.patch(tmp_path, "on", 1, 0, bytes.fromhex("ab" * 20))
        self.patch(tmp_path, "off", 0, 0, bytes.fromhex("cd" * 20))
        self.patch(tmp_path, "leaving", 0, 1)
        assert live_patches(*places) == ("leaving:unknown", f"on:{'ab' * 20}")
        (tmp_path / "livepatch/on/enabled").write_text("perhaps\n")
        with pytest.raises(SetupError, match="cannot be read"):
            live_patches(*places)


class TestProtection:
    """What runs under a policy has to be out of its reach before one is loaded."""

    @pytest.mark.parametrize("verb", ["deploy", "promote", "restore"])
    def test_without_it_nothing_is_loaded(self, host, verb):
        if verb == "deploy":
            host.world.set(lacking=["its memory is not locked"])
            with pytest.raises(Refused, match="could starve or kill schedagentd: its memory is not locked"):
                host.deploy()
            return
        first = host.proven("first")
        if verb == "promote":
            host.world.set(lacking=["it is no real-time task"])
            with pytest.raises(Refused, match="it is no real-time task"):
                host.rollout.promote(first)
            assert host.running == first
        else:
            host.proven("second")
            host.world.set(lacking=["it is no real-time task"])
            host.world.end_policy()
            host.wait(1)
            assert host.running is None

    def inside(self, program):
        """Run a program in a process of its own, which may become what this one must not."""
        words = [
            sys.executable,
            "-c",
            f"import os, resource\nfrom schedagent.schedagentd.protection import *\n{program}",
        ]
        ended = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.split("\n")[:-1]

    def test_a_process_without_it_says_what_it_lacks(self):
        [lacks] = self.inside("print(lacking())")
        for words in ("CPUSchedulingPolicy=rr", "LimitMEMLOCK=infinity", "OOMScoreAdjust"):
            assert words in lacks

    def test_it_is_taken_as_far_as_it_can_be_had_and_never_without_a_limit(self):
        lacks, limit, scheduled = self.inside(
            "lacks = protect()\nprint(lacks)\nprint(resource.getrlimit(resource.RLIMIT_RTTIME)[0])\n"
            "print(os.sched_getscheduler(0))"
        )
        assert int(limit) == protection.LONGEST_RUN_S * 1_000_000
        has_it = int(scheduled) == os.SCHED_RR | os.SCHED_RESET_ON_FORK
        assert has_it is ("CPUSchedulingPolicy" not in lacks)

    def test_an_earlier_limit_is_not_raised(self):
        [limit] = self.inside(
            "resource.setrlimit(resource.RLIMIT_RTTIME, (5, 5))\nprotect()\n"
            "os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))\n"
            "print(resource.getrlimit(resource.RLIMIT_RTTIME)[0])"
        )
        assert int(limit) == 5

    def test_a_journal_that_reads_nothing_does_not_hold_it(self):
        """The policy schedules the journal, too."""
        ours, journal = socket.socketpair()
        program = (
            "import logging\nfrom schedagent.schedagentd.protection import protect\nprotect()\n"
            "logging.basicConfig(level=logging.INFO)\n"
            "for number in range(5_000):\n    logging.info('a line %d %s', number, 'x' * 200)"
        )
        with ours, journal:
            words, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(ROOT)}
            assert subprocess.run(words, stderr=journal, env=environment, timeout=60, check=False).returncode in (
                0,
                120,
            )
            assert ours.recv(100).startswith(b"INFO:root:a line 0 ")

    def test_it_rests_when_it_always_has_something_to_do(self, monkeypatch):
        """So that a flood of requests takes no CPU from everybody, and the limit on real-time tasks does not end it."""
        now, slept = [100.0], []

        def sleep(seconds):
            slept.append(seconds)
            now[0] += seconds

        monkeypatch.setattr("schedagent.schedagentd.server.time.monotonic", lambda: now[0])
        monkeypatch.setattr("schedagent.schedagentd.server.time.sleep", sleep)
        server = Server.__new__(Server)
        server._rested = 100.0
        for _step in range(1000):
            now[0] += 0.001
            server._rest()
        assert 0.5 / BUSY_S <= len(slept) <= 1.1 / BUSY_S
        assert set(slept) == {REST_S}


class TestPinsWithoutUs:
    """The very commands of the units, on a folder that stands for the BPF file system and a boot that is 1000 s old."""

    @pytest.fixture
    def pins(self, tmp_path):
        (tmp_path / "uptime").write_text("1000.25 1800.00\n")
        return tmp_path / "schedagent"

    def pin(self, pins, number, *leases):
        (pins / number).mkdir(parents=True)
        (pins / number / "link0").touch()
        for lease in leases:
            (pins / f"lease_{number}_{lease}").mkdir()

    def run(self, pins, unit):
        words = [word.replace("/sys/fs/bpf/schedagent", str(pins)) for word in command(unit)]
        words = [word.replace("/proc/uptime", str(pins.parent / "uptime")) for word in words]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        assert ended.stderr == ""
        return ended.stdout, sorted(path.name for path in pins.iterdir()) if pins.exists() else None

    @pytest.mark.parametrize(
        ("leases", "stays"),
        [
            (["1001"], True),
            (["99999999"], True),
            (["900", "1001"], True),
            (["1000"], False),
            (["12"], False),
            ([], False),
            (["9x"], False),
            (["9" * 40], False),
            (["-5"], False),
        ],
    )
    def test_pins_stay_for_as_long_as_their_lease(self, pins, leases, stays):
        self.pin(pins, "7", *leases)
        shown, left = self.run(pins, "schedagentd-lease.service")
        assert left == (sorted(["7", *(f"lease_7_{lease}" for lease in leases)]) if stays else [])
        assert ("deployment 7 is over" in shown) is not stays

    def test_each_goes_by_its_own_lease(self, pins):
        self.pin(pins, "7", "900")
        self.pin(pins, "77", "1100")
        self.pin(pins, "8")
        shown, left = self.run(pins, "schedagentd-lease.service")
        assert left == ["77", "lease_77_1100"]
        assert shown.count("<4>") == 2

    def test_what_schedagentd_notes_is_what_the_unit_reads(self, pins):
        (pins / "7").mkdir(parents=True)
        _lease(pins / "7", 1002)
        assert self.run(pins, "schedagentd-lease.service")[1] == ["7", "lease_7_1002"]
        (pins.parent / "uptime").write_text("1002.00 1.00\n")
        assert self.run(pins, "schedagentd-lease.service")[1] == []

    def test_nothing_pinned_is_no_failure(self, pins):
        assert self.run(pins, "schedagentd-lease.service") == ("", None)
        assert self.run(pins, "schedagentd-unpin.service") == ("", None)
        pins.mkdir()
        assert self.run(pins, "schedagentd-lease.service") == ("", [])

    def test_for_good_means_everything(self, pins):
        self.pin(pins, "7", "99999")
        assert self.run(pins, "schedagentd-unpin.service") == ("", None)


class TestUnits:
    """deploy/systemd: what schedagentd gets, and what ends a policy without anything of ours."""

    def unit(self, name):
        return (ROOT / "deploy/systemd" / name).read_text()

    def test_schedagentd_runs_above_what_it_loads(self):
        lines = set(self.unit("schedagentd.service").splitlines())
        assert {
            "CPUSchedulingPolicy=rr",
            f"CPUSchedulingPriority={protection.PRIORITY}",
            "CPUSchedulingResetOnFork=yes",
            f"LimitRTTIME={protection.LONGEST_RUN_S}s",
            "LimitMEMLOCK=infinity",
            f"OOMScoreAdjust={protection.OOM_SCORE}",
            "WatchdogSignal=SIGKILL",
            "OnFailure=schedagentd-unpin.service",
            "Wants=schedagentd-lease.timer",
        } <= lines

    @pytest.mark.parametrize("name", ["schedagentd-unpin.service", "schedagentd-lease.service"])
    def test_what_unpins_needs_nothing_of_ours(self, name):
        programs = re.findall(r"(?m)^Exec\w+=-?(\S+)", self.unit(name))
        assert set(programs) <= {"/bin/sh", "/bin/rm", "/bin/systemctl"}
        assert "python" not in self.unit(name)
        assert str(kernel.PINS) in self.unit(name)
        assert "schedagentd.service" not in "".join(re.findall(r"(?m)^(?:Requires|BindsTo|PartOf)=.*", self.unit(name)))
