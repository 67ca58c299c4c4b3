"""The whole life of a policy on a Debian with real systemd: one walk, each test a step that relies on those before it.

`make test-host` runs it and writes the transcript (transcript.py). Policies are verified outside; inside there is what
an administrator has: systemd, the installed schedagent, and Prometheus.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.host.outside import VERIFIED

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

CARRIED = "/mnt"
INSTALL = f"dpkg --force-unsafe-io --install {CARRIED}/schedagent_*.deb"
PYTHON = "/usr/lib/schedagent/venv/bin/python3 -I"
MEASURED, OUTSIDE = "/work.slice", "/system.slice/clerk.service"
NEIGHBOUR, LIMIT = "/system.slice/neighbour.service", 0.2
"""One who would take all CPUs, and may use so many."""
START_NEIGHBOUR = f"systemd-run --quiet --unit=neighbour --property=CPUQuota={LIMIT:.0%} sh -c 'while :; do :; done'"
START_LOAD = "systemd-run --quiet --unit=load redis-benchmark -q -l -t get -c 8"
NORMAL, SCHED_EXT = "0", "7"
TRUSTED = "/etc/schedagent/trusted"
STATE = "/var/lib/schedagentd"
VERIFIER = "/run/verifier.sock"
AGENT = f"env SCHEDAGENT_STATE=/run/state SCHEDAGENT_CACHE=/run/cache SCHEDAGENT_VERIFIER_SOCKET={VERIFIER}"
CONFIG = """
rollback = "not_on_exit"
sample_s = 1
baseline_samples = 12
pulses_s = [1, 3]
probation_s = { canary = 15, full = 6 }
longest_lease_s = 3600
"""
"""Stages as short as a test needs them; the bounds are the default ones."""

WORKER = "while :; do sleep 0.1; for i in $(seq 500); do :; done; done"
FOLDERS = ("/usr/lib", "/usr/share", "/usr/share/doc", "/etc", "/var/lib", "/var/cache")
PLACES = (*(f"{folder}/schedagent" for folder in FOLDERS), "/var/lib/dpkg/", "/var/log/dpkg.log")
"""Folders that are schedagent's alone, and dpkg's own notes."""

FILL = (
    "for size in 1M 1K 1K 1K; do sync; while head -c $size /dev/zero > fill$i; do i=$((i+1)); done; done 2> /dev/null"
)
"""ext4 keeps blocks back for a while; so again, until there are none."""

MONITOR_S = 20
DETECTED_S = 2.0
"""A fault that schedagentd noticed is put right within this time; a tick of a second, and sysfs's confirmation."""


class Host:
    """What the steps ask again and again.

    Args:
        guest: the machine.
    """

    def __init__(self, guest) -> None:
        self.guest = guest

    def schedagent(self, words: str, **options) -> str:
        """Run the installed program."""
        return self.guest.run(f"schedagent {words}", **options)

    def configure(self, text: str) -> None:
        """Give schedagentd another configuration."""
        path = "/etc/schedagent/schedagentd.toml"
        self.guest.run(f"cat > {path} <<'END'\n{text.strip()}\nEND\nsystemctl restart schedagentd")

    def deploy(self, name: str, report: str, words: str = "", **options) -> str:
        """Deploy an object that was carried in, measured in one slice."""
        files = f"{CARRIED}/{name}.bpf.o --report {CARRIED}/{report}.json"
        return self.schedagent(f"deploy {files} --cgroup {MEASURED} {words}".rstrip(), **options)

    def status(self) -> dict:
        """What schedagentd says."""
        return json.loads(self.guest.ask("schedagent status --json"))

    def newest(self) -> dict:
        """The newest deployment of the record."""
        return json.loads(self.guest.ask("schedagent history --limit 1 --json"))[0]

    def until(self, expression: str, limit_s: float = 60) -> None:
        """Wait until schedagentd says that something is so."""
        self.guest.ask(f'{PYTHON} {CARRIED}/until.py "{expression}" {limit_s}', timeout_s=limit_s + 30)

    def ask_prometheus(self, expression: str, limit_s: float = 40) -> str:
        """Return what Prometheus answers as soon as it is not empty."""
        return self.guest.run(f"python3 -I {CARRIED}/prometheus.py '{expression}' {limit_s}", timeout_s=limit_s + 30)

    def kernel(self) -> tuple[str, int]:
        """State and enable_seq, from sysfs."""
        state, number = self.guest.ask("cd /sys/kernel/sched_ext; cat state enable_seq").split()
        return state, int(number)

    def policies(self, cgroup: str) -> str:
        """Scheduling policies of a cgroup's tasks."""
        return self.guest.run(f"{PYTHON} {CARRIED}/policies.py {cgroup}")

    def pins(self) -> str:
        """What is pinned: a link or a map of a deployment."""
        return self.guest.ask("find /sys/fs/bpf -mindepth 2")

    def main_pid(self) -> int:
        """Process id of schedagentd."""
        return int(self.guest.ask("systemctl show -P MainPID schedagentd"))

    def ended(self, number: int) -> dict:
        """How a deployment ended; the record and the kernel agree on it."""
        history = json.loads(self.guest.ask("schedagent history --json"))
        deployment = next(entry for entry in history if entry["deployment"] == number)
        assert deployment["phase"] == "ended", deployment
        assert self.kernel()[0] == "disabled"
        return deployment


@pytest.fixture(scope="session")
def host(guest):
    return Host(guest)


def running(host: Host, report: str, words: str = "", name: str = "trouble") -> int:
    """Deploy at stage full and wait until it runs; return its number."""
    number = int(re.search(r"deployment (\d+)", host.deploy(name, report, f"--stage full {words}")).group(1))
    host.until(f"active and active['deployment'] == {number} and active['phase'] == 'running'")
    return number


def test_installing_it_and_watching_only_changes_nothing(guest, host):
    """Install it, start it, let it watch: nothing else changes on this host"""
    earlier, before = snapshot(guest), snapshot(guest)
    guest.run(INSTALL, timeout_s=300)
    guest.run("printf '[daemon]\nreading_every_s = 2\n' > /etc/schedagent/schedagent.toml")
    units = "ls schedagent*.socket schedagentd.service schedagent.service"
    guest.run(f"systemctl enable --now $(cd /usr/lib/systemd/system; {units})")
    guest.run("systemctl --no-legend list-units 'schedagent*'")
    host.schedagent("--version")
    host.schedagent("status")
    guest.run(f"sleep {MONITOR_S}", timeout_s=MONITOR_S + 60)
    after = snapshot(guest)
    assert after["kernel"] == before["kernel"]
    assert changed_sysctls(before, after) <= changed_sysctls(earlier, before) | UNSTEADY
    assert foreign_processes(after) == foreign_processes(before)
    assert foreign_files(before, after) == set()


UNSTEADY = {
    "/proc/sys/fs/dentry-state", "/proc/sys/fs/file-nr", "/proc/sys/fs/inode-nr", "/proc/sys/fs/inode-state",
    "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/random/uuid", "/proc/sys/kernel/random/entropy_avail",
}  # fmt: skip
"""Files below /proc/sys that count what happens."""

INSTALLED = re.compile(
    r"/usr/s?bin/schedagent|/usr/lib/(systemd/system|sysusers\.d|tmpfiles\.d)/schedagent|"
    r"/etc/systemd/system/[a-z-]+\.target\.wants/schedagent|"
    r"/usr/share/(man/man\d|bash-completion/completions|fish/vendor_completions\.d|zsh/vendor-completions)/_?schedagent"
)
"""Files of schedagent's in folders of everybody."""

OURS = ("schedagent", "host-test-agent")


def snapshot(guest) -> dict:
    """See inside/snapshot.py."""
    return json.loads(guest.ask(f"/usr/bin/python3 -I {CARRIED}/snapshot.py", timeout_s=120))


def changed_sysctls(before: dict, after: dict) -> set[str]:
    return {name for name, value in after["sysctls"].items() if before["sysctls"].get(name) != value}


def foreign_processes(snapshot: dict) -> list:
    """Processes that are not ours, and how they are scheduled; udev's workers end when nothing is left to do."""
    others = [process for process in snapshot["processes"].values() if process["command"] != "(udev-worker)"]
    return sorted(json.dumps(process) for process in others if not process["unit"].startswith(OURS))


def foreign_files(before: dict, after: dict) -> set[str]:
    """Files that came, went or changed, but for those that installing says it writes."""
    names = set(before["files"]) | set(after["files"])
    changed = {name for name in names if before["files"].get(name) != after["files"].get(name)}
    accounts = {f"/etc/{name}{end}" for name in ("passwd", "group", "shadow", "gshadow") for end in ("", "-")}
    return {name for name in changed - accounts if not name.startswith(PLACES) and not INSTALLED.match(name)}


def test_the_units_are_sound_and_confined(guest):
    """systemd's own opinion of the units"""
    guest.run("systemd-analyze verify --man=no /usr/lib/systemd/system/schedagent*.service")
    scores = guest.run("systemd-analyze security --no-pager | grep -E 'UNIT|schedagent'")
    for unit, score in re.findall(r"^(schedagent\S*)\s+(\S+)", scores, re.MULTILINE):
        assert float(score) < 5, f"{unit} is exposed"


def test_observing_a_service_under_load(guest, host):
    """Watch Debian's Redis under its own load generator, as a user who is no more than a member of the group"""
    before = host.kernel()
    guest.run(f"systemctl start redis-server; {START_LOAD}")
    guest.run("useradd --system --groups schedagent --home-dir /run/watcher --create-home watcher")
    watch = "runuser -u watcher -- schedagent observe --unit redis-server --for 8s --tier 2"
    guest.run(watch, timeout_s=120, whole=True)
    seen = json.loads(guest.ask(f"{watch} --json", timeout_s=120))
    [server] = [thread for thread in seen["profile"]["critical"] if thread["comm"] == "redis-server"]
    assert server["waits_in"] in ("epoll_wait", "epoll_pwait"), server
    assert server["woken_by"] in ("redis-benchmark", "interrupt"), server
    assert server["woken"]["samples"] > 100, server
    guest.run("systemctl show -P NRestarts,MainPID redis-server; systemctl stop schedagent-observer.service")
    assert host.kernel() == before


def test_pulses(guest, host):
    """Deploy what was verified outside: by pulses, the default scheduler in between, until it stays"""
    guest.run(f"install -m 644 {CARRIED}/verifier.pem {TRUSTED}/verifier.pem")
    host.configure(CONFIG)
    for unit, place in (("builder", "--slice=work.slice"), ("baker", "--slice=work.slice"), ("clerk", "")):
        guest.run(f"systemd-run --quiet --unit={unit} {place} sh -c '{WORKER}'")
    guest.run(START_NEIGHBOUR)
    assert "does not own its CPUs" in host.deploy(VERIFIED, f"{VERIFIED}-1", "--stage canary", status=1)
    number = int(re.search(r"deployment (\d+)", host.deploy(VERIFIED, f"{VERIFIED}-1", "--lease 900")).group(1))
    assert number == 1
    host.until("active and active['stage'] == 'pulse'")
    host.schedagent("status")
    host.until("waiting and waiting['phase'] == 'resting'", 30)
    host.schedagent("status")
    host.until("active and active['stage'] == 'full' and active['pinned']", 240)
    assert host.kernel()[0] == "enabled"
    guest.run("grep . /sys/kernel/sched_ext/state /sys/kernel/sched_ext/root/ops /sys/kernel/sched_ext/switch_all")
    assert guest.run("cat /sys/kernel/sched_ext/switch_all") == "1"
    assert {host.policies(cgroup) for cgroup in (f"{MEASURED}/builder.service", OUTSIDE)} == {NORMAL}
    assert share(guest, NEIGHBOUR) == pytest.approx(LIMIT, rel=0.25)
    host.schedagent("promote 1", status=1)
    host.schedagent(f"renew 1 --lease 900 --report {CARRIED}/{VERIFIED}-2.json")
    host.schedagent("history --limit 1")


def share(guest, cgroup: str) -> float:
    """CPUs that a cgroup uses, over ten seconds."""
    used = f"sed -n 's/^usage_usec //p' /sys/fs/cgroup{cgroup}/cpu.stat; cut -d ' ' -f 1 /proc/uptime"
    began, first, ended, last = map(float, guest.run(f"{used}; sleep 10; {used}").split())
    return (ended - began) / 1e6 / (last - first)


def test_an_upgrade_of_the_daemon(guest, host):
    """Upgrade the package, which restarts the daemon: the policy stays in charge all along"""
    before = host.kernel()
    first = host.main_pid()
    guest.run("systemd-run --quiet --unit=sampler python3 -I " + f"{CARRIED}/sample_kernel.py /run/host-test/stop")
    guest.run(INSTALL, timeout_s=300)
    host.until("active and active['deployment'] == 1")
    guest.run("touch /run/host-test/stop; until [ -e /run/host-test/stop.seen ]; do sleep 0.1; done")
    assert json.loads(guest.run("cat /run/host-test/stop.seen")) == [list(before)]
    assert host.main_pid() != first
    guest.run("journalctl -o cat -u schedagentd -n 4")


def test_prometheus_scrapes_it(guest, host):
    """Debian's Prometheus scrapes it, with the configuration and the rules that were installed"""
    guest.run("cp /usr/share/schedagent/prometheus/*.yml /etc/prometheus/")
    guest.run("sed -i 's/_interval: 15s/_interval: 2s/' /etc/prometheus/prometheus.yml; systemctl start prometheus")
    assert host.ask_prometheus('up{job="schedagent"} == 1', 60)
    assert host.ask_prometheus('schedagent_sched_ext_state{state="enabled"} == 1')
    assert host.ask_prometheus("schedagent_deployment_in_charge == 1")
    assert host.ask_prometheus('schedagent_trips_total{cause="stall"} == 0')
    assert host.ask_prometheus("schedagent_up").count(" 1") >= 3
    host.schedagent("metrics show | grep -v '^#' | head -20")
    assert guest.run("systemctl show -P NRestarts schedagent-metrics") == "0"


def test_the_daemon_is_killed_while_a_proven_policy_runs(guest, host):
    """kill -9 of the daemon: systemd starts another, which takes over what is proven"""
    before, first = host.kernel(), host.main_pid()
    guest.run("systemctl kill --signal=KILL schedagentd")
    assert host.kernel() == before
    guest.until(f'[ "$(systemctl show -P ActiveState schedagentd)" = active ] && ! [ -d /proc/{first} ]', 30)
    host.until("active and active['deployment'] == 1")
    assert host.kernel() == before
    assert guest.run("systemctl show -P NRestarts schedagentd") == "1"


def test_a_second_daemon(guest, host):
    """A second daemon is refused, and the first one does not notice"""
    before = host.kernel()
    assert "schedagentd" in guest.run("/usr/sbin/schedagentd", status=1)
    assert host.kernel() == before
    assert host.status()["active"]["deployment"] == 1


def test_rolling_back(guest, host):
    """Roll back to the default scheduler"""
    assert "default scheduler" in host.schedagent("rollback")
    assert host.ended(1)["end"] == "rolled back"
    assert host.pins() == ""
    assert host.policies(OUTSIDE) == NORMAL


def test_optimizing_a_batch_on_this_machine(guest, host):
    """Optimise a batch on the machine itself: candidates are verified elsewhere, and tried through schedagentd"""
    guest.run("systemctl stop neighbour load")
    guest.run(f"systemd-run --quiet --unit=relay python3 -I {CARRIED}/relay.py {VERIFIER}")
    guest.run(f"mkdir -p /run/cache; ln -s {CARRIED}/kernels /run/cache/kernels; cp -r {CARRIED}/longtail /run/batch")
    work = '--workload "./batch.sh 9 100 900" --dir /run/batch --on host --iterations 1 --candidates 1'
    guest.run(f"{AGENT} schedagent optimize {work}", timeout_s=900, status=None, whole=True)
    assert host.kernel()[0] == "disabled"
    listed = json.loads(guest.ask(f"{AGENT} schedagent runs list --json"))
    report = json.loads(guest.ask(f"{AGENT} schedagent runs show {listed[0]['run']} --json"))
    [candidate] = report["iterations"][0]["candidates"]
    assert candidate["policy"] == "longest_first"
    assert candidate["verdict"]["outcome"] == "better", candidate["verdict"]


def test_an_experiment_on_a_service(guest, host):
    """Try a policy by pulses on the Redis that serves, which is not restarted"""
    before = guest.ask("systemctl show -P MainPID redis-server")
    guest.run(START_LOAD)
    words = "--unit redis-server --policy interactive --window 6s --for 3min"
    guest.run(f"{AGENT} schedagent experiment {words}", timeout_s=900, status=None, whole=True)
    assert guest.ask("systemctl show -P MainPID redis-server") == before
    assert host.kernel()[0] == "disabled"
    listed = json.loads(guest.ask(f"{AGENT} schedagent runs list --json"))
    report = json.loads(guest.ask(f"{AGENT} schedagent runs show {listed[0]['run']} --json"))
    [candidate] = report["iterations"][0]["candidates"]
    assert candidate["verdict"]["pairs"] >= 1, candidate["verdict"]
    assert candidate["verdict"]["outcome"] != "failed", candidate["verdict"]


def test_an_unknown_verifier(guest, host):
    """What a key signed that nobody trusts is refused"""
    assert "token" in host.deploy("trouble", "harmless", status=1)
    guest.run(f"install -m 644 {CARRIED}/test.pem {TRUSTED}/test.pem")
    host.configure(CONFIG.replace("baseline_samples = 12", "baseline_samples = 0\ndirect_full = true"))


def test_what_would_end_a_neighbours_limit(guest, host):
    """A policy that does not keep the limits of cgroups is refused while somebody has one"""
    guest.run(START_NEIGHBOUR)
    refused = host.deploy("trouble", "harmless", "--stage full", status=1)
    assert NEIGHBOUR in refused
    assert "--accept cgroup-limits" in refused
    guest.run("systemctl stop neighbour")


def test_the_daemon_is_killed_while_a_policy_is_on_probation(guest, host):
    """kill -9 of the daemon: what is not proven ends with it"""
    number = running(host, "harmless")
    guest.run("systemctl kill --signal=KILL schedagentd")
    assert guest.until("grep -q disabled /sys/kernel/sched_ext/state", 20) < DETECTED_S
    host.until("newest['phase'] == 'ended'")
    assert host.ended(number)["end"] == "schedagentd or the machine died during its probation"
    assert host.policies(OUTSIDE) == NORMAL


def test_a_lease_that_nobody_renews(guest, host):
    """A lease that nobody renews lapses"""
    number = running(host, "harmless-2", "--again --lease 15")
    host.until("not active", 30)
    assert host.ended(number)["end"] == "lease lapsed"


def test_a_stall_trips_the_circuit_breaker(guest, host):
    """A policy that loses tasks: the kernel ejects it, and the breaker keeps the cause"""
    number = running(host, "stalling", "--again")
    host.until("not active", 40)
    newest = host.newest()
    assert newest["deployment"] == number
    assert (newest["end"], host.kernel()[0]) == ("stall", "disabled")
    host.schedagent("history --limit 1")
    assert host.ask_prometheus('ALERTS{alertname="SchedagentPolicyStalled", alertstate="firing"}')
    guest.run("systemctl stop prometheus")


def test_a_policy_that_errs(guest, host):
    """A policy that raises an error"""
    host.deploy("trouble", "erroring", "--again")
    host.until("newest['phase'] == 'ended' and not active")
    newest = host.newest()
    assert newest["end"] in ("ejected by the kernel", "could not be loaded"), newest
    assert host.kernel()[0] == "disabled"


def test_a_full_disk_and_a_broken_one(guest, host):
    """A full disk, then one that the kernel makes read-only: what runs can be ended, and is accounted for later"""
    guest.run(
        "systemctl stop schedagentd.socket schedagentd; mkdir /run/host-test/small;"
        " mount /dev/vdc /run/host-test/small;"
        " cp -a /var/lib/schedagentd/. /run/host-test/small; umount /run/host-test/small; rmdir /run/host-test/small;"
        " mount -o errors=remount-ro /dev/vdc /var/lib/schedagentd; systemctl start schedagentd.socket schedagentd"
    )
    number = running(host, "harmless-3", "--again --lease 300")
    guest.run(f"cd {STATE}; i=0; {FILL}; df .")
    host.schedagent(f"rollback {number}")
    assert host.kernel()[0] == "disabled"
    assert host.status()["unsaved"] == [number]
    host.schedagent("status")
    guest.run(f"rm {STATE}/fill*")
    host.until("not unsaved")
    assert host.ended(number)["end"] == "rolled back"

    number = running(host, "harmless-4", "--again --lease 300")
    guest.run(f"echo broken > /sys/fs/ext4/vdc/trigger_fs_error; touch {STATE}/x", status=1)
    host.schedagent(f"rollback {number}")
    assert host.kernel()[0] == "disabled"
    assert host.status()["unsaved"] == [number]
    assert "schedagentd: " in host.deploy("trouble", "harmless-5", "--again", status=1)
    guest.run(
        "systemctl stop schedagentd.socket schedagentd; umount /var/lib/schedagentd; systemctl start schedagentd.socket"
    )


def test_the_clock_jumps(guest, host):
    """Somebody sets the clock: leases do not care, tokens do"""
    number = running(host, "harmless-5", "--again --lease 300")
    before = host.status()["active"]["lease_left_s"]
    guest.run("date -s '+2 days'")
    now = host.status()["active"]
    assert before - 30 < now["lease_left_s"] <= before
    host.schedagent(f"rollback {number}")
    assert "expired" in host.deploy("trouble", "stalling-again", "--again", status=1)
    guest.run("date -s '-2 days'")
    host.ended(number)


def test_uninstalling_it(guest, host):
    """Uninstall it: no file, unit, process, socket or pin is left; configuration and state go when they are purged"""
    guest.run("userdel --remove watcher; systemctl stop relay; rm -rf /run/cache /run/state /run/batch")
    guest.run(
        "systemctl stop 'builder*' 'baker*' 'clerk*' load redis-server; rm -f /etc/prometheus/schedagent.*"
    )  # what we added
    guest.run("dpkg --purge schedagent", timeout_s=120)
    assert guest.run("find / -xdev -path /var/lib/dpkg -prune -o -iname '*schedagent*' -print") == ""
    not_ours = r"\( -path /run/udev -o -path /run/host-test \) -prune"
    assert guest.run(f"find /run /sys/fs/bpf {not_ours} -o -iname '*schedagent*' -print") == ""
    assert guest.run("systemctl list-units --all --no-legend 'schedagent*'") == ""
    assert guest.run("systemctl list-unit-files --no-legend 'schedagent*'", status=None) == ""
    assert guest.ask("cat /sys/kernel/sched_ext/state") == "disabled"
    guest.run("getent passwd | grep schedagent; getent group schedagent; systemctl is-system-running", status=None)
