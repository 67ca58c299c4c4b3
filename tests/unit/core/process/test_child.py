"""schedagent.core.process.child: a worker whose parent has gone, or has what it wanted, ends without a word."""

import subprocess
import sys
import time

import pytest

from schedagent.core.process.child import Child
from tests.support.paths import ROOT

LAST = b"last\n"


def answers_and_lingers(send):
    """Its parent leaves after the last line; that comes as an interrupt while it is busy with its end."""
    send(LAST)
    time.sleep(30)


def answers_nobody(send):
    """It goes on sending to a parent that has left."""
    send(LAST)
    while True:
        send(b"x" * 4096 + b"\n")


async def first_answer(work, folder):
    child = Child(work, (), folder, lambda line: line == LAST, task="is tried", grace_s=5)
    try:
        return [line async for line in child.answers()]
    finally:
        await child.end()


@pytest.mark.parametrize("work", [answers_and_lingers, answers_nobody])
def test_a_worker_that_nobody_listens_to_ends_without_a_word(work, tmp_path):
    script = (
        f"import asyncio, sys; from pathlib import Path; from {__name__} import {work.__name__} as work, first_answer\n"
        "print(asyncio.run(first_answer(work, Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("[b'last\\n']\n", "")
