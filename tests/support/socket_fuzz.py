"""Random and mutated messages to a real schedagentd over its real socket, from users of every kind.

Each user is a process of its own, really of that user where we are root; else one daemon after the other is configured
so that we are that user to it. What may not happen shows in three places: what the daemon answers, what it did to the
scripted kernel, and its memory.

python -m tests.support.socket_fuzz [MESSAGES [SEED]]        (make fuzz-socket)
"""

from __future__ import annotations

import json
import os
import pwd
import random
import re
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from schedagent.schedagentd.messages import LONGEST_QUESTION, LONGEST_REQUEST
from schedagent.schedagentd.record import FILE, KEPT_EVENTS
from tests.support.daemon_processes import Daemon, request_of, scripted_kernel
from tests.support.deploy_orders import CANARY, MEMBER
from tests.support.scripted_kernel import RemoteWorld

MOST_GROWN_KIB = 4096
"""How much the daemon's memory may grow after its first tenth of messages: SQLite's page cache (2 MB) and fragments."""
ANSWER_S = 20.0
STRANGER, LOOKER, CHANGER = "nobody", "daemon", "mail"
NASTY = [
    *(None, True, False, 0, -1, 1, 2**53, 2**64, -(2**70), 0.5, 1e308, "", "x" * 300, [], {}, [[]], {"a": 1}),
    *("/", "/..", "/build/../..", "/a\x00b", "\u202e", "\ud800", "canary", "full", "pulse", "higher", "lower"),
    *([1, 2], [[1, 2]], [1e18] * 64, [1e19], [1.0] * 65, {"slice_us": 1}, "sat2.a.b.c", "ab" * 32, 42, 1 << 22),
]
RAW = [
    b"",
    b"\n",
    b"\0",
    b"{}",
    b"[]",
    b"null",
    b"[" * 3000,
    b'{"a":' * 500,
    b"9" * 4000,
    b"\xff\xfe",
    b"1e999",
    b"NaN",
]


class Mutator:
    """Messages like those that are sent in earnest, more or less.

    Args:
        orders: requests to deploy, with good tokens.
    """

    def __init__(self, seed, orders):
        self._random = random.Random(seed)
        self._orders = orders

    def good(self):
        """A request as a client sends it."""
        pick, number = self._random.choice, self._random.randrange(1, 12)
        verb, fields = pick(
            [
                ("status", {}),
                ("policies", {}),
                ("history", {"limit": number}),
                ("events", {"after": number, "follow": pick([True, False])}),
                (
                    "deploy",
                    pick(self._orders) | pick([{"cgroup": CANARY, "stage": "canary"}, {"pid": 42}, {"stage": "full"}]),
                ),
                (
                    "deploy",
                    pick(self._orders) | {"cgroup": MEMBER, "lease_s": 3600, "better": pick(["higher", "lower"])},
                ),
                ("renew", {"deployment": number, "lease_s": 3600, "metric": [float(number)]}),
                ("renew", {"deployment": number, "token": pick(self._orders)["token"], "report_digest": "ef" * 32}),
                ("promote", {"deployment": number}),
                ("trial", pick(self._orders) | {"lease_s": 1}),
                ("rollback", pick([{}, {"deployment": number}, {"to_default": True}])),
            ]
        )
        return {"version": 1, "verb": verb, **fields}

    def line(self):
        """Bytes to send."""
        kind = self._random.random()
        if kind < 0.2:
            return json.dumps(self.good()).encode() + b"\n"
        if kind < 0.5:
            return self._other_values() + b"\n"
        if kind < 0.95:
            return self._other_bytes()
        if kind < 0.9995:
            return self._random.choice([self._random.randbytes(self._random.randrange(600)), *RAW]) + b"\n"
        return b"x" * self._random.choice(
            [LONGEST_QUESTION - 1, LONGEST_QUESTION, LONGEST_REQUEST - 1, LONGEST_REQUEST]
        )

    def _other_values(self):
        """A field or two with another value, one left out, or one that nobody knows."""
        told = self.good()
        for _change in range(self._random.randrange(1, 3)):
            name = self._random.choice([*told, "shell", "uid", "cgroup", "token"])
            if self._random.random() < 0.2:
                told.pop(name, None)
            else:
                told[name] = self._random.choice(NASTY)
        return json.dumps(told).encode()

    def _other_bytes(self):
        """Bytes flipped, put in, cut out, repeated or taken from another message."""
        line, pick = bytearray(json.dumps(self.good()).encode() + b"\n"), self._random.randrange
        for _change in range(pick(1, 5)):
            at = pick(len(line) + 1)
            match pick(5):
                case 0:
                    line[at : at + 1] = self._random.randbytes(1)
                case 1:
                    line[at:at] = self._random.randbytes(pick(1, 8))
                case 2:
                    del line[at : at + pick(1, 40)]
                case 3:
                    line[at:at] = line[at : at + pick(1, 40)] * pick(1, 4)
                case 4:
                    line[at:] = json.dumps(self.good()).encode()[pick(60) :] + b"\n"
        return bytes(line)


def talk(path, line, pieces):
    """Send bytes, in as many pieces; return the lines that were answered, and whether the daemon let go in time."""
    told = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect(str(path))
        with suppress(BrokenPipeError, ConnectionResetError):
            for begin in range(0, len(line), size := max(1, -(-len(line) // pieces))):
                connection.sendall(line[begin : begin + size])
            connection.shutdown(socket.SHUT_WR)
        try:
            while piece := connection.recv(1 << 16):
                told += piece
        except ConnectionResetError:
            pass
        except TimeoutError:
            return told.splitlines(), False
    return told.splitlines(), True


def judge(user, lines):
    """Name what an answer is; one that must not be begins with "WRONG"."""
    try:
        told = [json.loads(line) for line in lines]
    except ValueError:
        return f"WRONG: no JSON: {lines[0][:80]!r}"
    if not told:
        return "none"
    if not all(isinstance(one, dict) and len(one) == 1 and {*one} <= {"ok", "error", "event"} for one in told):
        return f"WRONG: {str(told)[:80]}"
    fault = told[0].get("error")
    if user == STRANGER and not (fault and fault["kind"] == "Refused" and "may not ask" in fault["message"]):
        return f"WRONG: a stranger was told {str(told)[:80]}"
    if fault:
        return fault["kind"]
    done = told[0].get("ok", {})
    if user == LOOKER and ("created_at" in done or set(done) == {"in_charge"}):
        return f"WRONG: a looker changed {str(done)[:80]}"
    return "ok"


def attack(path, user, count, seed, orders):
    """Send messages as a user, in a process of its own; return its pid and where its counts can be read."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        if os.geteuid() == 0:
            known = pwd.getpwnam(user)
            os.setgroups([])
            os.setgid(known.pw_gid)
            os.setuid(known.pw_uid)
        mutator, source, seen = Mutator(seed, orders), random.Random(seed), Counter()
        for _message in range(count):
            lines, ended = talk(path, mutator.line(), source.choice([1, 1, 1, 2, 5]))
            seen[judge(user, lines) if ended else "WRONG: it did not let go"] += 1
        os.write(writer, json.dumps(seen).encode()[:60000])
    finally:
        os._exit(0)


def finished(child, reader):
    """Return what an attacker counted."""
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return Counter(json.loads(told or b'{"WRONG: the attacker died": 1}'))


def rss_kib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))


class Fuzzing:
    """One daemon, over which messages come; no limit of rates, or most of them would say nothing."""

    def __init__(self, folder, kernel, **config):
        self.daemon = Daemon(folder, kernel, sample_s=60.0, pulses_s=(3600.0,), **config)
        self.daemon.start(burst=1e9)
        self.daemon.config.socket.chmod(0o666)  # so that only the daemon itself is in the way
        self.world = RemoteWorld(kernel)

    def wave(self, users, count, seed):
        """Let users send so many messages at once; return their counts."""
        orders = [request_of(f"p{number % 10}") for number in range(max(10, count // 50))]
        path = self.daemon.config.socket
        started = {user: attack(path, user, count // len(users), seed + at, orders) for at, user in enumerate(users)}
        return {user: finished(*one) for user, one in started.items()}

    def close(self):
        self.world.close()
        return self.daemon.end(signal.SIGTERM)


def fuzz(folder, kernel, count, seed=1):
    """Send messages, half of them by those who may change nothing; check all that can be checked; return figures."""
    root = os.geteuid() == 0
    kinds = [(STRANGER, LOOKER), (CHANGER,)] if root else [(STRANGER,), (LOOKER,), (CHANGER,)]
    seen, sizes, begun, loads = {}, {}, time.monotonic(), 0
    for number, users in enumerate(kinds):
        run = Fuzzing(folder / f"f{number}", kernel, **_config(users))
        try:
            run.world.reset()
            forbidden = CHANGER not in users
            if forbidden and root:
                run.daemon.deploy("theirs", lease_s=3600)  # something that they would like to end
            share = count // 2 if CHANGER in users or root else count // 4
            before = run.world.changes()
            first = run.wave(users, share // 10, seed + 10 * number)
            small = rss_kib(run.daemon.pid)
            rest = run.wave(users, share - share // 10, seed + 10 * number + 5)
            sizes[users] = (small, rss_kib(run.daemon.pid))
            if sizes[users][1] - small >= MOST_GROWN_KIB:  # a leak goes on with as many more
                run.wave(users, share - share // 10, seed + 10 * number + 6)
                sizes[users] = (sizes[users][1], rss_kib(run.daemon.pid))
            for user in users:
                seen[user] = first[user] + rest[user]
            if forbidden:
                assert run.world.changes() == before, "somebody changed the kernel who may not"
            else:
                loads = _check_loads(run)
        finally:
            assert run.close() in (0, None), (run.daemon.folder / "log").read_text()[-2000:]
    wrong = {user: kind for user, counts in seen.items() for kind in counts if kind.startswith("WRONG")}
    assert not wrong, wrong
    for users, (small, large) in sizes.items():
        assert large - small < MOST_GROWN_KIB, (users, small, large)
    return {"seen": seen, "rss_kib": sizes, "seconds": time.monotonic() - begun, "loads": loads}


def _config(users):
    """The daemon's choices by which these users are what they are called."""
    if os.geteuid() == 0:
        return {"group": LOOKER, "users": (CHANGER,)}
    me = pwd.getpwuid(os.geteuid())
    group = {LOOKER: _own_group()}.get(users[0], "there is none")
    return {"group": group, "users": (me.pw_name,) if CHANGER in users else ()}


def _own_group():
    import grp

    return grp.getgrgid(os.getegid()).gr_name


def _check_loads(run):
    """Whatever was loaded is in the record, and each deployment that was accepted has used up a token of its own."""
    kinds = Counter(one["kind"] for one in _events(run.daemon.client))
    loads = run.world.call_counts()["load"]
    assert run.daemon.end(signal.SIGTERM) == 0
    with closing(sqlite3.connect(run.daemon.config.state_dir / FILE)) as database:
        [(nonces,)] = database.execute("SELECT count(*) FROM nonces").fetchall()
        [(begun,)] = database.execute("SELECT max(number) FROM deployments").fetchall()
    assert 0 < loads <= begun + kinds["pulses"]
    assert nonces == kinds["accepted"] + kinds["renewed"]
    assert kinds.total() < KEPT_EVENTS, "some are forgotten, so the two counts above say nothing"
    return loads


def _events(client):
    after, found = 0, []
    while page := list(client.events(after, follow=False)):
        found += page
        after = page[-1]["number"]
    return found


def main(words):
    count, seed = int(words[0]) if words else 100_000, int(words[1]) if len(words) > 1 else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with scripted_kernel(folder) as kernel:
            told = fuzz(folder, kernel, count, seed)
    lines = [
        f"{user}: {counts.total()} messages: {', '.join(f'{number} {kind}' for kind, number in counts.most_common())}"
        for user, counts in told["seen"].items()
    ]
    for users, (before, after) in told["rss_kib"].items():
        sizes = f"{before / 1024:.1f} MiB after a tenth, {after / 1024:.1f} MiB at the end"
        lines.append(f"memory with {' and '.join(users)}: {sizes}")
    lines.append(f"{told['loads']} loads, each with a token of its own; {told['seconds']:.0f} s")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
