"""schedagentd as it really is, for programs of tests/vm: inside the micro-VM, with its unit's rights and limits."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kernel_bpf.load.linux import mount
from kernel_bpf.load.running import running_build_id, running_release
from schedagent.client.daemon import DaemonClient
from schedagent.core import trusted
from schedagent.core.errors import SetupError
from schedagent.core.token import DeploymentToken, Scope, digest_inputs, encode, key_id
from tests.support.unit_commands import UNITS

FOLDER = Path("/tmp/schedagentd-test")
CGROUPS = Path("/sys/fs/cgroup")
CANARY, MEMBER = "/canary", "/jobs"
"""One that is given a CPU of its own, and one that never is."""
KEY = ed25519.Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def prepare(config: str) -> None:
    """Mount what systemd would have, and write configuration and trusted key."""
    with suppress(OSError):  # it is mounted already
        mount("bpf", "/sys/fs/bpf", "bpf")
    if not (CGROUPS / "cgroup.procs").exists():
        mount("cgroup2", CGROUPS, "cgroup2")
    for cgroup in (CANARY, MEMBER):
        (CGROUPS / cgroup.lstrip("/")).mkdir(parents=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "c.toml").write_text(
        f'state_dir = "{FOLDER}/state"\nsocket = "{FOLDER}/s"\nkeys_dir = "{FOLDER}/keys"\n{config}'
    )
    trusted.trust(FOLDER / "keys", PUBLIC)


@contextmanager
def own_a_cpu(cgroup: str) -> Iterator[None]:
    """Make a cgroup a partition with the last CPU, for a while."""
    folder = CGROUPS / cgroup.lstrip("/")
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    (folder / "cpuset.cpus").write_text(str(os.cpu_count() - 1))
    (folder / "cpuset.cpus.partition").write_text("root")
    try:
        yield
    finally:
        (folder / "cpuset.cpus.partition").write_text("member")
        (folder / "cpuset.cpus").write_text("\n")
        (CGROUPS / "cgroup.subtree_control").write_text("-cpuset")


class Daemon:
    """One schedagentd, started as its unit says it.

    Args:
        environment: besides this process's.
    """

    def __init__(self, **environment: str) -> None:
        self.environment = environment
        self.client = DaemonClient(FOLDER / "s")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        rights = ",".join(capability.removeprefix("CAP_").lower() for capability in capabilities())
        bound = [f"--bounding-set=-all,+{rights.replace(',', ',+')}", "--inh-caps=-all", "--no-new-privs"]
        words = [sys.executable, "-m", "schedagent.schedagentd", "--config", f"{FOLDER}/c.toml"]
        limits = ["prlimit", f"--memlock={setting('LimitMEMLOCK').replace('infinity', 'unlimited')}"]
        limits += ["choom", "-n", setting("OOMScoreAdjust"), "--"]  # schedagentd takes real-time scheduling itself
        environment = {**os.environ, **self.environment}
        self.process = subprocess.Popen([*limits, "setpriv", *bound, *words], env=environment)
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
    return setting("CapabilityBoundingSet").split()


def setting(name: str) -> str:
    """What the unit says under a name."""
    return re.search(rf"(?m)^{name}=(.+)$", (UNITS / "schedagentd.service").read_text()).group(1)


def until(true, limit_s: float = 20.0) -> float:
    """Wait until something is so; return how many seconds that took."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > limit_s:
            raise TimeoutError(f"not within {limit_s} s")
        time.sleep(0.15)  # less often than schedagentd lets one user ask
    return time.monotonic() - begun


def request(content: bytes, fault: int = 0, order_only: bool = False, **changes: object) -> dict:
    """What deploys a policy with the tunables of trouble.bpf.c as a canary, with a token for it.

    Args:
        order_only: what a trial takes: no stage, cgroup or lease.
    """
    now = int(time.time())
    tunables = (("fault", fault), ("slice_us", 5000))
    token = DeploymentToken(
        artifact_digest=hashlib.sha256(content).hexdigest(),
        tunables=tunables,
        inputs_digest=digest_inputs((), ()),
        report_digest="ef" * 32,
        kernel_release=running_release(),
        btf_build_id=running_build_id(),
        scope=Scope.FULL,
        cgroup="",
        not_before=now - 10,
        expires_at=now + 3600,
        nonce=secrets.token_hex(16),
        key_id=key_id(PUBLIC),
    )
    order = {
        "policy": "trouble",
        "object_base64": base64.b64encode(content).decode(),
        "tunables": dict(tunables),
        "report_digest": "ef" * 32,
        "token": encode(token, KEY.sign),
    }
    return order | ({} if order_only else {"stage": "canary", "cgroup": CANARY, "lease_s": 600}) | changes
