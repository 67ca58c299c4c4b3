"""`optimize --on host` as a whole: the candidate is verified in the micro-VM outside, and measured on the guest's own
kernel by the installed parts; killed with -9 amid a trial, and resumed to its end. See guest_host_run.py."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from schedagent.core.rules import GATES
from schedagent.core.settings import load_settings
from tests.support.in_guest import ROOT, told_inside
from tests.support.no_verdict import no_verdict
from tests.support.paths import FIXTURES
from tests.support.real_runs import PROGRAM
from tests.support.relay import Relay
from tests.support.verifier_service_process import wait_for
from tests.vm.guest_host_run import RELAY
from verifier.microvm import machine
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
def verifier(folder):
    """The real verifier service; its socket."""
    path = folder / "verifier.sock"
    environment = {**os.environ, "SCHEDAGENT_STATE": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*PROGRAM, "verifier", "serve", "--socket", path], env=environment) as service:
        wait_for(path.exists, 60)
        exported = [*PROGRAM, "keys", "export", "--output", folder / "verifier.pem"]
        subprocess.run(exported, env=environment, check=True)
        yield path
        service.terminate()


@pytest.fixture(scope="module")
def channel(folder, verifier):
    """Where QEMU finds the far end of the guest's port."""
    path = folder / "relay.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        threading.Thread(target=_serve, args=(listener, verifier), daemon=True).start()
        yield path


def _serve(listener: socket.socket, verifier: Path) -> None:
    """Be the far end of each machine that boots."""

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(verifier))
        return connection

    while True:
        try:
            end, _address = listener.accept()
        except OSError:
            return
        threading.Thread(target=_far_end, args=(end, connect), daemon=True).start()


def _far_end(end: socket.socket, connect: Callable[[], socket.socket]) -> None:
    with end, end.makefile("rwb", buffering=0) as channel:
        Relay(channel, connect).serve()


@pytest.fixture(scope="module")
def seen(folder, channel):
    """What guest_host_run.py printed."""
    batch = folder / "batch"
    shutil.copytree(FIXTURES / "longtail", batch)
    subprocess.run(["make", "-s", "-C", batch], check=True)
    settings = load_settings()
    plain = machine.qemu_argv
    port = ["-chardev", f"socket,id=relay,path={channel}", "-device", f"virtserialport,chardev=relay,name={RELAY}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "qemu_argv", lambda *words: [*plain(*words), *port])
        words = (batch, settings.kernels_dir, folder / "verifier.pem")
        told = told_inside(
            folder, default_kernel(settings), "guest_host_run.py", *words, timeout_s=1500, memory_mib=1024
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
