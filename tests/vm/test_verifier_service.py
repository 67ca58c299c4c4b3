"""The verifier as a user of its own, asked by another one: what passes between them, and what does not.

Interpreter, program and kernels often lie in root's home, which other users cannot enter. They are shown to them at the
same places in a mount namespace of the test's own, read-only in effect since both users own nothing there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel_bpf.policies.library import POLICIES
from schedagent.cli.common import EXIT_FAILED, EXIT_NO
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.core.token import Scope, check, decode, digest_inputs
from schedagent.core.trusted import load_trusted
from tests.support.paths import ROOT
from verifier.microvm.kernels import default_kernel

SERVICE_USER, AGENT_USER = 65532, 65533  # nobody's, and not nobody: QEMUs that root started run as that
SHARED_GROUP = 100  # users

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users"),
]


def searchable(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o001)


def shown_to_all(needed: list[Path]) -> str:
    """A shell script that shows `needed` at their places to users who cannot enter a folder above them."""
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        doors = [folder for folder in reversed(path.parents) if not searchable(folder)]
        if doors:
            closed.setdefault(doors[0], []).append(path)
    script = ["set -e"]
    for door, paths in closed.items():
        kept = [f"$keep/{number}" for number in range(len(paths))]
        script += ["keep=$(mktemp -d)", "mount -t tmpfs none $keep"]
        script += [
            f"mkdir {keep}; mount --bind {shlex.quote(str(path))} {keep}"
            for keep, path in zip(kept, paths, strict=True)
        ]
        script += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(door))}"]
        for keep, path in zip(kept, paths, strict=True):
            script += [f"(umask 022; mkdir -p {shlex.quote(str(path))}); mount --bind {keep} {shlex.quote(str(path))}"]
    return "\n".join([*script, 'exec "$@"'])


def as_user(uid: int, groups: str, words: list[str]) -> list[str]:
    """The command that runs `words` as a user, with all they need in sight."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT, load_settings().kernels_dir]
    identity = [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        f"--groups={groups}",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        shown_to_all(needed),
        "sh",
        *identity,
        "--",
        *words,
    ]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="verifier-service-"))
    folder.chmod(0o755)
    for name, user in (("service", SERVICE_USER), ("agent", AGENT_USER)):
        (folder / name / "cache").mkdir(parents=True)
        (folder / name / "cache" / "kernels").symlink_to(load_settings().kernels_dir)
        for path in (folder / name, folder / name / "cache"):
            os.chown(path, user, user)
    (folder / "agent" / "cache").chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def environment(place: Path, name: str, **more: str) -> dict[str, str]:
    own = place / name
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(own),
        "SCHEDAGENT_STATE": str(own / "state"),
        "SCHEDAGENT_CACHE": str(own / "cache"),
        "SCHEDAGENT_KERNEL": default_kernel(load_settings()).release,
        **more,
    }


def program(*words: object) -> list[str]:
    return [sys.executable, "-m", "schedagent", *map(str, words)]


@contextmanager
def service(place: Path) -> Iterator[Path]:
    """The service, as a user who is a member of the group that may ask."""
    path = place / "service" / "verifier.sock"
    words = as_user(
        SERVICE_USER, str(SHARED_GROUP), program("verifier", "serve", "--socket", path, "--allow-group", "users")
    )
    with (place / "log").open("w+") as log:
        process = subprocess.Popen(words, env=environment(place, "service"), stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not path.exists():
                assert process.poll() is None, (place / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield path
        finally:
            process.terminate()
            assert process.wait(30) == 0, (place / "log").read_text()
    assert not path.exists()


def agent(place: Path, words: list[str], group: int = SHARED_GROUP, **more: str) -> subprocess.CompletedProcess[str]:
    command = as_user(AGENT_USER, str(group), words)
    variables = environment(place, "agent", **more)
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)


def test_an_agent_has_a_policy_verified_and_never_sees_the_key(place):
    with service(place) as path:
        verify = program("verify", POLICIES / "fair.bpf.c", "--json")
        done = agent(place, verify, SCHEDAGENT_VERIFIER_SOCKET=str(path))
        if done.returncode in (EXIT_NO, EXIT_FAILED):  # a busy host closed a gate, or left it open; passes are kept
            done = agent(place, verify, SCHEDAGENT_VERIFIER_SOCKET=str(path))
        assert done.returncode == 0, done.stdout + done.stderr + (place / "log").read_text()
        stranger = agent(place, verify, group=AGENT_USER, SCHEDAGENT_VERIFIER_SOCKET=str(path))
        assert "Permission denied" in stranger.stderr
    report = json.loads(done.stdout)
    assert report["verified_by"] == f"the service at {path}"
    _key_is_out_of_reach(place)
    _check_token(place, report)


def test_a_caller_that_is_killed_takes_its_machine_along(place):
    with service(place) as path:
        command = as_user(AGENT_USER, str(SHARED_GROUP), program("verify", POLICIES / "batch.bpf.c"))  # not kept yet
        variables = environment(place, "agent", SCHEDAGENT_VERIFIER_SOCKET=str(path))
        caller = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: machines() or caller.poll() is not None, 300)
            assert caller.poll() is None, "it was over before a machine was seen"
            assert requests()
        finally:
            caller.kill()
            caller.wait()
        wait_for(lambda: not machines() and not requests(), 20)


def machines() -> list[int]:
    """The QEMUs of the service."""
    return [pid for pid in processes() if command(pid).startswith("qemu-system")]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def requests() -> list[str]:
    """The folders of requests that are worked on."""
    return [
        path.name for path in Path(tempfile.gettempdir()).glob("schedagent-request-*") if owner(path) == SERVICE_USER
    ]


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if owner(path) == SERVICE_USER]


def owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except (FileNotFoundError, ProcessLookupError):
        return None


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def _check_token(place, report):
    """The token counts for who trusts the exported key, and for nobody else."""
    exported = subprocess.run(
        as_user(SERVICE_USER, str(SERVICE_USER), program("keys", "export")),
        env=environment(place, "service"), capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    (place / "exported.pem").write_bytes(exported)
    (place / "exported.pem").chmod(0o644)
    trusted = agent(place, program("keys", "trust", place / "exported.pem", "--json"))
    assert trusted.returncode == 0, trusted.stderr
    token = decode(report["token"])
    assert [key["key"] for key in json.loads(trusted.stdout)] == [token.key_id]
    shutil.copytree(place / "agent" / "state" / "keys" / "trusted", place / "trusted")
    found = check(
        report["token"],
        load_trusted(place / "trusted"),
        artifact_digest=report["artifact_digest"],
        tunables=token.tunables,
        inputs_digest=digest_inputs((), ()),
        report_digest=token.report_digest,
        kernel_release=default_kernel(load_settings()).release,
        btf_build_id=token.btf_build_id,
        live_patches=(),
        scope=Scope.PARTIAL,
        cgroup="/build.slice",
        now=time.time(),
    )
    assert CandidatePolicy("fair", found.tunables).key == report["candidate_key"]


def _key_is_out_of_reach(place):
    key = place / "service" / "state" / "keys" / "signing.key"
    assert key.stat().st_uid == SERVICE_USER
    for path in (key, key.parent, key.parent / "trusted"):
        listed = agent(place, ["ls", str(path)] if path.is_dir() else ["cat", str(path)])
        assert listed.returncode != 0
        assert "Permission denied" in listed.stderr
    own = subprocess.run(
        ["setpriv", f"--reuid={SERVICE_USER}", "--clear-groups", "cat", key], capture_output=True, check=True
    )
    assert b"PRIVATE KEY" in own.stdout, "the same way does show it to its owner"
