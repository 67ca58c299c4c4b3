"""Runs shell commands in the guest of the host test, one at a time, and answers with exit status and output.

The same JSON lines over virtio-serial as verifier/microvm/jobs.py, but on Debian's own Python, without ours.
It is a real-time task, as the micro-VM's agent: a policy that starves everything else is still reported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

PORT = "schedagent"
MOST_BYTES = 4 << 20


def open_port() -> int:
    """Open the virtio-serial port by its name."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
    raise FileNotFoundError(PORT)


def run(command: str, timeout_s: float) -> dict:
    """Run a command in a session of its own; status -1 if it did not end in time. Its output goes to a file, so that
    what it leaves running in the background keeps nobody waiting."""
    with tempfile.TemporaryFile(dir="/run/host-test") as output:
        process = subprocess.Popen(
            ["/bin/bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/root",
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = -1
        output.seek(0)
        return {"status": status, "output": output.read(MOST_BYTES).decode(errors="replace")}


def main() -> None:
    """Answer until the machine ends."""
    port = open_port()
    os.write(port, b'{"answer": {"ready": true}}\n')
    with os.fdopen(port, "rb", buffering=0, closefd=False) as lines:
        while True:
            line = lines.readline()
            if not line.endswith(b"\n"):
                raise EOFError("the host side of the port is away")
            job = json.loads(line)
            answer = json.dumps({"answer": run(job["command"], job["timeout_s"])}).encode() + b"\n"
            while answer:
                answer = answer[os.write(port, answer) :]


if __name__ == "__main__":
    main()
