"""Runs inside the micro-VM as root: `optimize --on host` on a real sched_ext kernel, with the real schedagentd.

Usage: guest_host_run.py BATCH KERNELS PUBLIC_KEY; prints what it saw as one JSON object. The
verifier is outside, behind the machine's port, see tests/support/relay.py.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from kernel_bpf.load.sched_ext import kernel_state
from schedagent.client.daemon import SOCKET
from schedagent.core import trusted
from tests.support.guest_daemon import FOLDER, Daemon, prepare, until
from tests.support.real_runs import PROGRAM, newest_run, samples
from tests.support.relay import near_end

VERIFIER = Path("/tmp/verifier.sock")
STATE = Path("/tmp/state")
CONFIG = f'socket = "{SOCKET}"\nbaseline_samples = 0\nsample_s = 0.5\n[bounds]\nstarvation_s = 20\n'
TASKS = "9 100 900"
"""The long task's time is that of all others together: who starts it first ends after two thirds of the time."""


def killed_amid_a_trial(argv: list[str], environment: dict[str, str]) -> dict:
    """Start a run, and kill it with -9 when its candidate is in charge and a block was measured.

    A busy host leaves a gate of its candidate open now and then: it is started once more then, and passes are kept.
    """
    early, database = [], STATE / "repository.sqlite"
    for _attempt in range(2):
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
            until(lambda: process.poll() is not None or (_blocks(database) and kernel_state().state == "enabled"), 600)
            if process.poll() is None:
                process.kill()
                return {"took": until(lambda: kernel_state().state == "disabled"), "early": early}
            early.append(process.communicate()[0])
    return {"early": early}


def _blocks(database: Path) -> int:
    with suppress(sqlite3.OperationalError):  # not created yet
        return len({block for block, _arm, _started in samples(database)})
    return 0


def main() -> None:
    batch, kernels, key = sys.argv[1:]
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    prepare("")
    (FOLDER / "c.toml").write_text(f'state_dir = "{FOLDER}/state"\nkeys_dir = "{FOLDER}/keys"\n{CONFIG}')
    trusted.trust(FOLDER / "keys", Path(key).read_bytes())
    daemon = Daemon()
    daemon.client = type(daemon.client)(SOCKET)
    daemon.start()
    threading.Thread(target=near_end, args=(VERIFIER,), daemon=True).start()
    cache = Path("/tmp/cache")
    cache.mkdir()
    (cache / "kernels").symlink_to(kernels)
    environment = {
        **os.environ, "SCHEDAGENT_STATE": str(STATE), "SCHEDAGENT_CACHE": str(cache),
        "SCHEDAGENT_VERIFIER_SOCKET": str(VERIFIER), "HOME": "/tmp",
    }  # fmt: skip
    work = ["--workload", f"./batch.sh {TASKS}", "--dir", batch, "--on", "host"]
    argv = [*PROGRAM, "optimize", *work, "--iterations", "1", "--candidates", "1", "--json"]
    try:
        seen: dict = {"killed": killed_amid_a_trial(argv, environment)}
        seen["before"] = samples(STATE / "repository.sqlite")
        run = newest_run(STATE / "repository.sqlite")
        ended = subprocess.run(
            [*PROGRAM, "resume", run, "--json"], env=environment, capture_output=True, text=True, check=False
        )
        seen["after"] = samples(STATE / "repository.sqlite")
        seen |= {"status": ended.returncode, "printed": ended.stdout, "complained": ended.stderr}
        seen["state"] = kernel_state().state
    finally:
        daemon.kill(signal.SIGTERM)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
