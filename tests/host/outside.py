"""What is made outside the guest and carried into it: the Debian package, a policy that the real verifier proved, and a
bad one under a key of the test's own, which no verifier would ever sign."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from schedagent.core.token import DeploymentToken, Scope, digest_inputs, encode, key_id
from tests.support import relay
from tests.support.paths import FIXTURES, ROOT
from verifier.microvm.kernels import KernelImage

VERIFIED = "fair"
"""It keeps the limits of cgroups, so it may run beside a neighbour who has one."""
INSIDE = Path(__file__).parent / "inside"
TROUBLE = ROOT / "tests/fixtures/policies/trouble.bpf.c"
VERIFY_LIMIT_S = 300.0
ATTEMPTS = 3
"""A busy host closes a gate now and then, or leaves it open; what passed is kept."""


def schedagent(state: Path, *words: str) -> str:
    """Run schedagent of the tree with a state folder of its own; return what it printed."""
    environment = {**os.environ, "SCHEDAGENT_STATE": str(state), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "schedagent", *words]
    for _attempt in range(ATTEMPTS):
        done = subprocess.run(
            argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=VERIFY_LIMIT_S, check=False
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def state_of(folder: Path) -> Path:
    """The verifier's state, beside what is carried in."""
    return folder.parent / "verifier-state"


def verified_policy(folder: Path, release: str, tokens: int) -> None:
    """Fill a folder with NAME.bpf.o, a report for each of `tokens` deployments (NAME-1.json ...), and verifier.pem."""
    state = state_of(folder)
    for number in range(1, tokens + 1):
        words = ["verify", VERIFIED, "--kernel", release, "--object", str(folder / f"{VERIFIED}.bpf.o"), "--json"]
        (folder / f"{VERIFIED}-{number}.json").write_text(schedagent(state, *words))
    schedagent(state, "keys", "export", "--output", str(folder / "verifier.pem"))


def unverified_policy(folder: Path, target: KernelTarget, orders: Mapping[str, int]) -> None:
    """Fill a folder with trouble.bpf.o, a report NAME.json for each order (its name, and the fault it is to do), and
    test.pem, the key that signed them: trusting it is what a careful administrator would not do."""
    content = compile_policy(TROUBLE, "trouble", target).object_bytes
    (folder / "trouble.bpf.o").write_bytes(content)
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "test.pem").write_bytes(public)
    for name, fault in orders.items():
        token = _token(content, public, target, fault)
        (folder / f"{name}.json").write_text(json.dumps({"policy": "trouble", "token": encode(token, key.sign)}))


def _token(content: bytes, public: bytes, target: KernelTarget, fault: int) -> DeploymentToken:
    now = int(time.time())
    return DeploymentToken(
        artifact_digest=hashlib.sha256(content).hexdigest(),
        tunables=(("fault", fault), ("slice_us", 5000)),
        inputs_digest=digest_inputs((), ()),
        report_digest="ef" * 32,
        kernel_release=target.release,
        btf_build_id=target.btf_build_id,
        scope=Scope.FULL,
        cgroup="",
        not_before=now - 60,
        expires_at=now + 3600,
        nonce=secrets.token_hex(16),
        key_id=key_id(public),
    )


def policies_and_programs(folder: Path, kernel: KernelImage, target: KernelTarget, orders: Mapping[str, int]) -> None:
    """Fill a folder with what is carried into the guest beside the package: policies, keys, inside/, a batch, the near
    end of the relay to the verifier, and the kernel, of which candidates are proved."""
    shutil.copytree(INSIDE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(FIXTURES / "longtail", folder / "longtail")
    subprocess.run(["make", "-s", "-C", folder / "longtail"], check=True)
    shutil.copy(relay.__file__, folder / "relay.py")
    shutil.copytree(kernel.vmlinuz.parent, folder / "kernels" / kernel.release)
    verified_policy(folder, target.release, tokens=2)
    unverified_policy(folder, target, orders)
