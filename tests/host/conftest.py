"""The guest that all steps of the walk share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.setup import package
from kernel_bpf.build.target import prepare_target
from schedagent.core.errors import VmLost
from schedagent.core.settings import load_settings
from tests.host import debian, outside
from tests.host.guest import CommandFailed, Guest, boot
from tests.host.transcript import PATH, Transcript
from tests.support.real_verifier import verifier_service, with_port
from tests.support.relay import far_end
from verifier.microvm.kernels import default_kernel

LOGS = "journalctl --no-pager -o short-monotonic -n 60 -u 'schedagent*'"
CARRIED_MIB = 1024
HARMLESS = ("harmless", "harmless-2", "harmless-3", "harmless-4", "harmless-5")
FAULTY = dict.fromkeys(HARMLESS, 0) | {"erroring": 2, "stalling": 3, "stalling-again": 3}
"""Orders of the policy that does wrong on request, by the fault that each asks for."""
PASSED = pytest.StashKey[int]()
"""How many steps have passed so far."""


@pytest.fixture(scope="session")
def tell(request):
    """Write a line of the transcript, with the seconds since the beginning."""
    transcript = Transcript()
    yield transcript.line
    session = request.session
    transcript.line(f"== {session.stash.get(PASSED, 0)} of {session.testscollected} steps passed")
    transcript.close()
    sys.stderr.write(f"transcript: {PATH}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Let a failed step show what our units logged."""
    report = yield
    if report.when == "call" and report.passed:
        item.session.stash[PASSED] = item.session.stash.get(PASSED, 0) + 1
    if report.when == "call" and report.failed and "guest" in item.funcargs:
        with suppress(CommandFailed, VmLost):
            item.funcargs["guest"].run(LOGS, status=None, whole=True)
    return report


@pytest.fixture(autouse=True)
def _heading(request, tell):
    tell(f"== {request.node.function.__doc__ or request.node.name}")


@pytest.fixture(scope="session")
def guest(tmp_path_factory, tell) -> Iterator[Guest]:
    """A Debian that has booted; schedagent is not installed yet."""
    settings = load_settings()
    kernel = default_kernel(settings)
    folder: Path = tmp_path_factory.mktemp("host")
    folder.chmod(0o755)
    tell(f"== Outside: Debian {debian.release()}, kernel {kernel.release}")
    base = debian.base_image(settings)
    carried = folder / "carried"
    tell("- make deb")
    package.build(carried, compressed=False)  # an emulated machine unpacks slowly
    tell(f"- schedagent verify {outside.VERIFIED} --json --object {outside.VERIFIED}.bpf.o")
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    outside.policies_and_programs(carried, kernel, target, FAULTY)
    disks = [
        base,
        debian.disk(folder / "carried.ext4", CARRIED_MIB, carried),
        debian.disk(folder / "small.ext4", 16),
    ]
    verifier = folder / "verifier.sock"
    tell("- schedagent verifier serve")
    with (
        verifier_service(verifier, outside.state_of(carried)),
        far_end(folder, verifier) as port,
        with_port(port),
        boot(kernel, disks, folder) as machine,
    ):
        guest = Guest(machine, tell)
        guest.run("systemctl is-system-running --wait")
        guest.run("mount -o ro /dev/vdb /mnt; ls /mnt")
        yield guest
