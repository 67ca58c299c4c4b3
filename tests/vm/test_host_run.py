"""`optimize --on host` as a whole: the candidate is verified in the micro-VM outside, and measured on the guest's own
kernel by the installed parts; killed with -9 amid a trial, and resumed to its end. See guest_host_run.py."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from schedagent.core.rules import GATES
from schedagent.core.settings import load_settings
from tests.support.in_guest import ROOT, told_inside
from tests.support.no_verdict import no_verdict
from tests.support.paths import FIXTURES
from tests.support.real_runs import PROGRAM
from tests.support.real_verifier import verifier_service, with_port
from tests.support.relay import far_end
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1900)]


@pytest.fixture(scope="module")
def folder():
    """QEMU, which is nobody, gets at the socket in it."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def seen(folder):
    """What guest_host_run.py printed."""
    batch, socket, key = folder / "batch", folder / "verifier.sock", folder / "verifier.pem"
    shutil.copytree(FIXTURES / "longtail", batch)
    subprocess.run(["make", "-s", "-C", batch], check=True)
    settings = load_settings()
    environment = {**os.environ, "SCHEDAGENT_STATE": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    with (
        verifier_service(socket, folder / "state"),
        far_end(folder, socket) as port,
        with_port(port),
    ):
        subprocess.run([*PROGRAM, "keys", "export", "--output", key], env=environment, check=True)
        told = told_inside(
            folder,
            default_kernel(settings),
            "guest_host_run.py",
            *(batch, settings.kernels_dir, key),
            timeout_s=1500,
            memory_mib=1024,
        )
    if len(told["killed"]["early"]) > 1:
        no_verdict(json.dumps(told["killed"]))
    return told


@pytest.fixture(scope="module")
def report(seen):
    assert seen["status"] in (0, 3), seen["complained"]
    return json.loads(seen["printed"])


def test_the_default_scheduler_is_back_when_the_run_is_killed(seen):
    assert seen["killed"]["took"] < 4, "an emulated CPU takes a second or two to free a policy"


def test_resume_counts_every_sample_once_and_leaves_the_default_in_charge(seen):
    assert seen["after"][: len(seen["before"])] == seen["before"]
    blocks = {block for block, _arm, _started in seen["after"]}
    assert sorted(blocks) == list(range(len(blocks)))
    assert seen["state"] == "disabled"


def test_longest_first_is_better_by_a_fifth_on_this_machine(seen, report):
    assert report["profile"]["kind"] == "batch-long-tail"
    [candidate] = report["iterations"][0]["candidates"]
    assert candidate["policy"] == "longest_first"
    assert [gate["status"] for gate in candidate["gates"]] == ["passed"] * len(GATES)
    verdict = candidate["verdict"]
    assert (seen["status"], verdict["outcome"]) == (0, "better"), verdict
    assert verdict["ratio"] <= 0.8, verdict
    assert verdict["guards"], verdict
    assert all(guard["held"] for guard in verdict["guards"]), verdict
