"""The wheel in a virtual environment of its own, outside the checkout, for an ordinary user: all that a newcomer calls
works, on the real micro-VM, the README's commands among it, and no hint speaks of make: that user has no Makefile.

What the wheel depends on is copied out of set-up's environment instead of downloaded; pip checks that it is all.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from deploy.setup import environment
from schedagent.core.settings import load_settings
from tests.support.paths import FIXTURES, ROOT
from tests.support.readme import commands
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.e2e, pytest.mark.timeout(900)]

SPEC = """
name = "short_first"
goal = "Short steps at once."
dispatch = "priority"

[[classes]]
name = "steps"
match = { burst_us = { below = 3000 } }
order = "shortest_first"
placement = "previous_cpu"
priority = 1
preempts = true

[[classes]]
name = "rest"
order = "longest_first"
"""
OPTIMIZE = 'schedagent optimize "make -j" --dir ~/src/project --prepare "make clean"'
SHORT = "--iterations 1 --candidates 1 --budget-minutes 0.5"
OWN_COMMANDS = re.compile(r"make (-j|clean)")
ATTEMPTS = 3
"""A busy host may take the VM away or a policy's time; what failed is not kept, and a newcomer tries again."""


@dataclass(frozen=True)
class Newcomer:
    """An ordinary user with a home folder of their own, who installed the wheel there as pipx and uv do."""

    home: Path

    @property
    def program(self) -> Path:
        return self.home / ".local/bin/schedagent"

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Call the program in the home folder."""
        return self.shell(shlex.join(["schedagent", *map(str, words)]))

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the home folder; whatever it prints, no make is spoken of but the user's own."""
        nobody = pwd.getpwnam("nobody")
        user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
        done = subprocess.run(
            [*(user if os.geteuid() == 0 else []), "sh", "-c", command],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": f"{self.program.parent}:/usr/bin:/bin", "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert not re.search(r"\bmake\b", OWN_COMMANDS.sub("", done.stdout + done.stderr)), done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of what git tracks: an older build folder may hold what is gone."""
    sources, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, sources / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", output, sources)
    [built] = output.iterdir()
    return built


@pytest.fixture(scope="module")
def newcomer(wheel: Path) -> Iterator[Newcomer]:
    """The user, for whom nothing has been set up."""
    with tempfile.TemporaryDirectory(prefix="schedagent-home-") as name:
        home = Path(name)
        venv = home / ".local/share/venvs/schedagent"
        subprocess.run([environment.TARGET_PYTHON, "-m", "venv", "--without-pip", venv], check=True)
        pip("--python", venv / "bin/python", "install", "--no-deps", wheel)
        packages = venv / "lib" / f"python{environment.MINOR}" / "site-packages"
        [metadata] = packages.glob("schedagent-*.dist-info")
        wanted = [line for line in PathDistribution(metadata).requires or () if "extra ==" not in line]
        for library in environment.run_time_libraries(wanted):
            environment._copy_library(library, packages)
        pip("--python", venv / "bin/python", "check")
        user = Newcomer(home)
        user.program.parent.mkdir(parents=True)
        user.program.symlink_to(venv / "bin/schedagent")
        sudo = user.program.with_name("sudo")
        sudo.write_text('#!/bin/sh\nexec "$@"\n')
        sudo.chmod(stat.S_IRWXU)
        shutil.copytree(FIXTURES / "cproject", home / "src/project")
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for folder, _, files in os.walk(home):
                for path in (Path(folder), *(Path(folder, file) for file in files)):
                    os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
        yield user


@pytest.fixture(scope="module")
def ready(newcomer: Newcomer) -> Newcomer:
    """The same, after taking a kernel: the one that set-up downloaded, where this user may read it."""
    kernel = default_kernel(load_settings())
    folder = newcomer.home / "a kernel"
    shutil.copytree(kernel.vmlinuz.parent, folder)
    taken = newcomer.run("kernels", "use", folder)
    assert taken.returncode == 0, taken.stderr
    assert taken.stdout.startswith(f"kernel {kernel.release} ({newcomer.home}/.cache/schedagent/kernels/")
    return newcomer


def pip(*words: object) -> None:
    """Call pip, without a network: nothing is looked up."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, words)], check=True, timeout=300)


def test_before_set_up_it_shows_what_is_missing_and_the_command_that_gets_it(newcomer: Newcomer) -> None:
    assert " setup  " in newcomer.run("--help").stdout
    planned = newcomer.run("setup")
    assert planned.returncode == 1
    assert "missing: a kernel for the VM\n  schedagent kernels fetch\n" in planned.stdout
    assert planned.stdout.endswith("to get what is missing: schedagent setup --yes\n")
    examined = newcomer.run("doctor")
    assert examined.returncode == 1
    assert "run: schedagent kernels fetch\n" in examined.stdout
    refused = newcomer.run("verify", "fifo")
    assert (refused.returncode, "hint: run: schedagent kernels fetch" in refused.stderr) == (1, True), refused.stderr


def test_after_set_up_nothing_is_missing(ready: Newcomer) -> None:
    done = ready.run("setup")
    assert (done.returncode, done.stdout.startswith("nothing is missing")) == (0, True), done.stdout
    assert ready.run("kernels", "list").stdout.startswith("* ")
    examined = ready.run("doctor")
    assert examined.returncode == 0, examined.stdout


def test_a_spec_becomes_a_policy_that_passes_the_static_gates(ready: Newcomer) -> None:
    (ready.home / "spec").mkdir()
    (ready.home / "spec/short_first.toml").write_text(SPEC)
    composed = ready.run("compose", "spec/short_first.toml", "--output", ".")
    assert composed.returncode == 0, composed.stderr
    checked = ready.run("verify", "--static", "short_first.bpf.c")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_a_policy_of_the_library_is_proved_in_the_vm_and_gets_a_token(ready: Newcomer) -> None:
    for _ in range(ATTEMPTS):
        proved = ready.shell("schedagent verify longest_first")
        if proved.returncode == 0:
            break
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert "overhead" in proved.stdout


@pytest.fixture(scope="module")
def optimized(ready: Newcomer) -> subprocess.CompletedProcess[str]:
    return ready.shell(f"{OPTIMIZE} {SHORT}")


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    match = re.search(r"^Run (\S+):", done.stdout, re.MULTILINE)
    assert match, done.stdout + done.stderr
    return match[1]


@pytest.mark.slow
def test_optimize_ends_with_a_verdict(ready: Newcomer, optimized: subprocess.CompletedProcess[str]) -> None:
    assert optimized.returncode in (0, 3), optimized.stderr
    assert "Verdict: " in optimized.stdout
    assert run_id(optimized) in ready.run("runs", "list").stdout


@pytest.mark.slow
def test_runs_show_has_it_again(ready: Newcomer, optimized: subprocess.CompletedProcess[str]) -> None:
    shown = ready.shell(f"schedagent runs show {run_id(optimized)}")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == optimized.stdout


@pytest.mark.slow
def test_deploy_says_what_it_lacks(ready: Newcomer, optimized: subprocess.CompletedProcess[str]) -> None:
    """There is no schedagentd here; with one, `make test-host` deploys."""
    done = ready.shell(f"sudo schedagent deploy {run_id(optimized)}")
    assert done.returncode in (1, 2, 3)
    assert done.stderr.startswith("error: ")


def test_make_demo_is_the_same_command_on_the_bundled_project() -> None:
    assert OPTIMIZE in commands()
    printed = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert OPTIMIZE.partition(" ")[2].replace("~/src/project", "tests/fixtures/cproject") in printed
