"""Runs inside the micro-VM as root: the real schedagentd on a real sched_ext kernel, with its unit's capabilities.

Usage: guest_deploy.py TROUBLE_OBJECT; prints what it saw as one JSON object.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kernel_bpf.load.linux import mount
from kernel_bpf.load.running import running_build_id, running_release
from kernel_bpf.load.sched_ext import kernel_state
from schedagent.client.daemon import DaemonClient
from schedagent.core import trusted
from schedagent.core.errors import SchedagentError, SetupError
from schedagent.core.token import DeploymentToken, Scope, digest_inputs, encode, key_id

FOLDER = Path("/tmp/schedagentd-test")
CGROUPS = Path("/sys/fs/cgroup")
CANARY, WIDER = "/jobs/canary", "/jobs"
SCHED_EXT = 7
KEY = ed25519.Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
CONFIG = f"""
state_dir = "{FOLDER}/state"
socket = "{FOLDER}/s"
keys_dir = "{FOLDER}/keys"
rollback = "not_on_exit"
baseline_samples = 0
sample_s = 0.5
probation_s = {{ canary = 6, wider = 1, full = 1 }}
"""


class Daemon:
    def __init__(self) -> None:
        self.client = DaemonClient(FOLDER / "s")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        rights = ",".join(capability.removeprefix("CAP_").lower() for capability in capabilities())
        bound = [f"--bounding-set=-all,+{rights.replace(',', ',+')}", "--inh-caps=-all", "--no-new-privs"]
        words = [sys.executable, "-m", "schedagent.schedagentd", "--config", f"{FOLDER}/c.toml"]
        self.process = subprocess.Popen(["setpriv", *bound, *words])
        until(self.answers, 60)

    def answers(self) -> bool:
        with suppress(SetupError):
            return bool(self.client.ask("status"))
        return False

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    @property
    def active(self) -> dict | None:
        return self.client.ask("status")["active"]


def capabilities() -> list[str]:
    unit = Path(__file__).resolve().parents[2] / "deploy/systemd/schedagentd.service"
    return re.search(r"^CapabilityBoundingSet=(.+)$", unit.read_text(), re.MULTILINE).group(1).split()


def until(true, limit_s: float = 20.0) -> float:
    """Wait until something is so; return how many seconds that took."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > limit_s:
            raise TimeoutError(f"not within {limit_s} s")
        time.sleep(0.15)  # less often than schedagentd lets one user ask
    return time.monotonic() - begun


def request(content: bytes, fault: int = 0, stage_scope: Scope = Scope.FULL) -> dict:
    now = int(time.time())
    tunables = (("fault", fault), ("slice_us", 5000))
    token = DeploymentToken(
        artifact_digest=hashlib.sha256(content).hexdigest(),
        tunables=tunables,
        inputs_digest=digest_inputs((), ()),
        report_digest="ef" * 32,
        kernel_release=running_release(),
        btf_build_id=running_build_id(),
        scope=stage_scope,
        cgroup="",
        not_before=now - 10,
        expires_at=now + 3600,
        nonce=secrets.token_hex(16),
        key_id=key_id(PUBLIC),
    )
    return {
        "policy": "trouble",
        "object_base64": base64.b64encode(content).decode(),
        "tunables": dict(tunables),
        "report_digest": "ef" * 32,
        "token": encode(token, KEY.sign),
        "cgroup": CANARY,
        "lease_s": 600,
    }


def worker(cgroup: str) -> subprocess.Popen[bytes]:
    """Something that always has a child of its own running, in a cgroup."""
    process = subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/sleep 0.2; done"])
    (CGROUPS / cgroup.lstrip("/") / "cgroup.procs").write_text(str(process.pid))
    return process


def policies_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Scheduling policies of a process and of its child, which is away for a moment between two of them."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        with suppress(IndexError, ProcessLookupError):
            child = os.sched_getscheduler(int(children.read_text().split()[0]))
            return [os.sched_getscheduler(process.pid), child]
        time.sleep(0.02)


def life(daemon: Daemon, content: bytes, inside: subprocess.Popen[bytes], outside: subprocess.Popen[bytes]) -> dict:
    seen: dict = {"before": kernel_state().state}
    number = daemon.client.ask("deploy", **request(content))["deployment"]
    state = kernel_state()
    time.sleep(1)  # a child that was there before is gone
    seen["canary"] = {"state": state.state, "ops": state.ops, "switch_all": state.switch_all}
    seen["inside"], seen["outside"] = policies_of(inside), policies_of(outside)
    daemon.kill()
    seen["killed on probation"] = until(lambda: kernel_state().state == "disabled")
    daemon.start()
    seen["after that"] = [one["end"] for one in daemon.client.ask("history")["history"]]
    seen["inside after that"] = policies_of(inside)[0]
    number = daemon.client.ask("deploy", **request(content))["deployment"]
    until(lambda: daemon.active and daemon.active["pinned"])
    daemon.client.ask("promote", deployment=number, stage="wider", cgroup=WIDER)
    seen["outside when wider"] = policies_of(outside)[0]
    until(lambda: daemon.active["pinned"])  # for the second time, by the same daemon
    daemon.kill()
    time.sleep(1)
    seen["killed when proven"] = kernel_state().state
    daemon.start()
    seen["adopted"] = bool(daemon.active) and daemon.active["deployment"] == number
    daemon.client.ask("promote", deployment=number, stage="full")
    state = kernel_state()
    seen["full"] = {"state": state.state, "ops": state.ops, "switch_all": state.switch_all}
    until(lambda: daemon.active["pinned"])
    seen["rss_kib"] = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.process.pid}/status").read_text()).group(1))
    seen["stopped"] = daemon.kill(signal.SIGTERM)
    seen["stopped when proven"] = kernel_state().state
    daemon.start()
    seen["adopted again"] = daemon.active["deployment"] == number
    return seen


def ends(daemon: Daemon, content: bytes, inside: subprocess.Popen[bytes]) -> dict:
    """What an adopted policy's own record says of its end, then a stall in a canary."""
    Path("/proc/sysrq-trigger").write_text("S")
    seen: dict = {"sysrq seen in": until(lambda: daemon.active is None)}
    [newest] = daemon.client.ask("history", limit=1)["history"]
    seen["sysrq"] = [newest["end"], newest["detail"], kernel_state().state]
    try:
        daemon.client.ask("deploy", **request(content))
    except SchedagentError as error:
        seen["again"] = error.message
    hogs = [worker(CANARY) for _ in range(4)]
    daemon.client.ask("deploy", **request(content, fault=3), again=True)
    seen["stall seen in"] = until(lambda: daemon.active is None)
    [newest] = daemon.client.ask("history", limit=1)["history"]
    seen["stall"] = [newest["end"], newest["said"], kernel_state().state]
    for hog in hogs:
        hog.kill()
        hog.wait()
    daemon.client.ask("deploy", **request(content), again=True)
    seen["rolled back"] = daemon.client.ask("rollback")["in_charge"]
    seen["at the end"] = [kernel_state().state, policies_of(inside)[0], len(list(Path("/sys/fs/bpf").glob("*/*")))]
    return seen


def main() -> None:
    content = Path(sys.argv[1]).read_bytes()
    with suppress(OSError):  # it is mounted already
        mount("bpf", "/sys/fs/bpf", "bpf")
    if not (CGROUPS / "cgroup.procs").exists():
        mount("cgroup2", CGROUPS, "cgroup2")
    (CGROUPS / CANARY.lstrip("/")).mkdir(parents=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "c.toml").write_text(CONFIG)
    trusted.trust(FOLDER / "keys", PUBLIC)
    inside, outside, daemon = worker(CANARY), worker(WIDER), Daemon()
    try:
        daemon.start()
        seen = life(daemon, content, inside, outside)
        seen |= ends(daemon, content, inside)
    finally:
        for process in (inside, outside):
            process.kill()
            process.wait()
    seen["ended"] = daemon.kill(signal.SIGTERM)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
