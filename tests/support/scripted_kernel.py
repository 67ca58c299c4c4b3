"""A kernel that does what a test says, for schedagentd: in this process, or as one of its own that outlives daemons.

It keeps the one promise of the real one that everything rests on: a policy ends with the last process that holds its
link, unless it is pinned. tests/vm/test_schedagentd_in_vm.py shows that the real one keeps it.

python scripted_kernel.py SOCKET
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from kernel_bpf.load.exit_info import ExitInfo
from kernel_bpf.load.sched_ext import KernelState
from kernel_bpf.observe.schedulers import Scheduler
from kernel_bpf.observe.tasks import TaskSample
from schedagent.core import errors
from schedagent.core.deployment import Tree
from schedagent.core.errors import BpfError, KernelRejected
from schedagent.schedagentd.kernel import KernelIdentity
from schedagent.schedagentd.limits import CgroupLimit

CONTROLS = ("reset", "set", "end_policy", "take_over", "truth", "changes", "call_counts", "is_held", "release")
"""What tests call; everything else is a call of the daemon's."""

CHANGES = ("load", "adopt", "pin", "detach", "leave", "remove_pins", "move_in", "move_out")

RELEASE, BUILD_ID = "7.3.4+deb13-amd64", "cd" * 20


class World:
    """The kernel's truth, and what the test wants of it. Every method takes and returns what JSON can say."""

    def __init__(self):
        self.available = True
        self.policy = None
        self.enable_seq = 0
        self.nr_rejected = 0
        self.hotplug_seq = 0
        self.events = {}
        self.moved = []
        self.cgroups = ["/build", "/build/canary", "/other"]
        self.owning = ["/build/canary"]
        self.processes = {"42": 7000}
        self.cgroup_limits_set = []
        self.core = None
        self.live_patches, self.lacking = [], []
        self.others = []
        self.holders = []
        self.refused = []
        self.refuses_pin = ""
        self.refuses_detach = ""
        self.exit_next = None
        self.delay_s, self.pressure, self.ran, self.starved = 0.001, 0.1, 1.0, []
        self.kill_at = -1
        self.hold_at, self.held = "", False
        self.hooks = {}
        self.calls = []
        self._totals = {}

    def reset(self):
        self.__init__()

    def call_counts(self):
        """How many calls of each kind changed something."""
        return {name: self.calls.count(name) for name in CHANGES}

    def is_held(self):
        """Whether a call is done but for its answer, which waits."""
        return self.held

    def release(self):
        self.hold_at = ""

    def changes(self):
        """How many calls changed something."""
        return len(self.calls)

    def set(self, **values):
        for name, value in values.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def end_policy(self, kind=1026, code=0, message="failed to run for 5.1s"):
        """The kernel throws the policy out; its link stays, and its record tells why."""
        words = {1026: "stall", 1024: "error", 64: "unregistered", 66: "unregistered by the kernel"}
        info = ExitInfo(kind, words.get(kind, "kind"), code, "reason", message)
        if self.policy:  # its daemon may have died a moment ago
            self.policy |= {"exit": asdict(info), "enabled": False}

    def take_over(self, ops="scx_other"):
        """Another scheduler is loaded."""
        self.enable_seq += 1
        self.policy = {"seq": self.enable_seq, "ops": ops, "partial": False, "owners": ["else"], "pin": None} | {
            "exit": None,
            "enabled": True,
        }

    def truth(self):
        policy = self.policy
        return {"enabled": bool(policy and policy["enabled"]), "pin": policy and policy["pin"]} | {
            "number": policy and policy.get("number"),
            "partial": policy and policy["partial"],
            "moved": sorted(set(self.moved)),
        }

    # What the daemon calls

    def identity(self, owner):
        return [RELEASE, BUILD_ID, self.live_patches]

    def exposed(self, owner):
        return self.lacking

    def state(self, owner):
        if not self.available:
            return asdict(KernelState(available=False))
        policy = self.policy if self.policy and self.policy["enabled"] else None
        return asdict(
            KernelState(
                True,
                "enabled" if policy else "disabled",
                policy["ops"] if policy else "",
                bool(policy) and not policy["partial"],
                self.nr_rejected,
                self.enable_seq,
                self.hotplug_seq,
                self.events if policy else {},
            )
        )

    def core_scheduled(self, owner):
        return self.core

    def schedulers(self, owner):
        return self.others

    def real_time_holders(self, owner):
        return self.holders

    def load(self, owner, number, ops, partial):
        if ops in self.refused:
            raise KernelRejected(f"the kernel refused {ops}")
        if self.policy and self.policy["enabled"]:
            raise KernelRejected(f"the kernel did not enable {ops}: Device or resource busy")
        self.enable_seq += 1
        self.policy = {"seq": self.enable_seq, "ops": ops, "partial": partial, "owners": [owner], "pin": None} | {
            "exit": None,
            "enabled": True,
            "number": number,
        }
        return self.enable_seq

    def adopt(self, owner, number):
        if not self.policy or self.policy["pin"] != number:
            raise BpfError(f"nothing is pinned for {number}")
        self.policy["owners"].append(owner)
        return True

    def enabled(self, owner, seq):
        return bool(self.available and self.policy and self.policy["enabled"] and self.policy["seq"] == seq)

    def exit_info(self, owner, seq):
        return self.policy["exit"] if self.policy and self.policy["seq"] == seq else None

    def pin(self, owner, number, lease_until):
        if self.refuses_pin:
            raise BpfError(self.refuses_pin)
        self.policy |= {"pin": number, "lease": lease_until}

    def prolong(self, owner, lease_until):
        self.policy["lease"] = lease_until

    def detach(self, owner, seq):
        if not self.policy or self.policy["seq"] != seq:
            return None
        told = self.policy["exit"]
        self.policy["pin"] = None
        self.policy["owners"].remove(owner)
        self._sweep()
        if self.refuses_detach or not self.available:
            raise BpfError(self.refuses_detach or "it cannot be seen whether it detached")
        return told or asdict(ExitInfo(64, "unregistered", 0, "", ""))

    def leave(self, owner, seq):
        if self.policy and self.policy["seq"] == seq and owner in self.policy["owners"]:
            self.policy["owners"].remove(owner)
            self._sweep()

    def pinned(self, owner):
        return [self.policy["pin"]] if self.policy and self.policy["pin"] is not None else []

    def remove_pins(self, owner, number):
        if self.policy and self.policy["pin"] == number:
            self.policy["pin"] = None
            self._sweep()

    def move_in(self, owner, cgroup):
        self.moved.append(cgroup)
        return 1

    def move_out(self, owner):
        count, self.moved = len(self.moved), []
        return count

    def cgroup_limits(self, owner):
        return self.cgroup_limits_set

    def has_cgroup(self, owner, cgroup):
        return cgroup in self.cgroups

    def owns_cpus(self, owner, cgroup):
        return cgroup in self.owning

    def process(self, owner, pid):
        """When a process began."""
        return self.processes.get(f"{pid}")

    def sample(self, owner, cgroup, at):
        before_at, stalled_s, delay_s, runs, ran_s = self._totals.get(cgroup, (at, 0.0, 0.0, 0, 0.0))
        elapsed_s = at - before_at
        new = (at, stalled_s + elapsed_s * self.pressure, delay_s + 1000 * elapsed_s * self.delay_s)
        self._totals[cgroup] = (*new, runs + round(1000 * elapsed_s), ran_s + elapsed_s * self.ran)
        return [*self._totals[cgroup], list(self.starved)]

    def gone(self, owner):
        """A process ended: the kernel closes what it held."""
        if self.policy and owner in self.policy["owners"]:
            self.policy["owners"].remove(owner)
            self._sweep()

    def _sweep(self):
        if self.policy and not self.policy["owners"] and self.policy["pin"] is None:
            self.policy = None


class ScriptedLoaded:
    def __init__(self, kernel, number, seq):
        self._kernel, self._number, self._seq = kernel, number, seq

    @property
    def enable_seq(self):
        return self._seq

    def enabled(self):
        return self._kernel.call("enabled", self._seq)

    def exit_info(self):
        told = self._kernel.call("exit_info", self._seq)
        return ExitInfo(**told) if told else None

    def pin(self, lease_until):
        self._kernel.call("pin", self._number, lease_until)

    def prolong(self, lease_until):
        self._kernel.call("prolong", lease_until)

    def end_within(self, seconds):
        self._kernel.end_within(seconds)

    def detach(self):
        self.end_within(0)
        told = self._kernel.call("detach", self._seq)
        return ExitInfo(**told) if told else None

    def leave(self):
        self.end_within(0)
        self._kernel.call("leave", self._seq)


class ScriptedKernel:
    """schedagentd's Kernel over a World."""

    def __init__(self, world, clock, owner="daemon"):
        self.world, self._clock, self._owner = world, clock, owner
        self.limits_s = []

    def end_within(self, seconds):
        """Keep what the real one would give to setitimer()."""
        self.limits_s.append(seconds)

    def call(self, name, *values):
        hooks = self.world.hooks if isinstance(self.world, World) else {}
        hooks.pop(f"before {name}", bool)()
        try:
            return getattr(self.world, name)(self._owner, *values)
        finally:
            hooks.pop(name, bool)()

    def identity(self):
        release, build_id, patches = self.call("identity")
        return KernelIdentity(release, build_id, tuple(patches))

    def exposed(self):
        return tuple(self.call("exposed"))

    def state(self):
        return KernelState(**self.call("state"))

    def core_scheduled(self):
        return self.call("core_scheduled")

    def core_scheduled_in_turn(self):
        return self.call("core_scheduled")

    def schedulers(self):
        return tuple(Scheduler(*one) for one in self.call("schedulers"))

    def real_time_holders(self):
        return tuple(self.call("real_time_holders"))

    def load(self, number, order, content, partial):
        return ScriptedLoaded(self, number, self.call("load", number, order.policy, partial))

    def adopt(self, number, order, content, enable_seq):
        self.call("adopt", number)
        return ScriptedLoaded(self, number, enable_seq)

    def pinned(self):
        return tuple(self.call("pinned"))

    def remove_pins(self, number):
        self.call("remove_pins", number)

    def move_in(self, where):
        return self.call("move_in", f"{where}")

    def move_out(self):
        return self.call("move_out")

    def cgroup_limits(self):
        return tuple(CgroupLimit(*limit) for limit in self.call("cgroup_limits"))

    def has_cgroup(self, cgroup):
        return self.call("has_cgroup", cgroup)

    def owns_cpus(self, cgroup):
        return self.call("owns_cpus", cgroup)

    def tree_of(self, pid):
        began = self.call("process", pid)
        return Tree(pid, began) if began else None

    def watch(self, where, starvation_s, brief=False):
        kernel = self

        class Watching:
            def sample(self):
                *told, starved = kernel.call("sample", f"{where}", kernel._clock.monotonic())
                return TaskSample(*told, tuple(starved))

        return Watching()


class RemoteWorld:
    """A World in another process; a daemon that is killed is seen there as the kernel would see it."""

    def __init__(self, path):
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(path))
        self._stream = self._connection.makefile("rwb")

    def close(self):
        self._stream.close()
        self._connection.close()

    def __getattr__(self, name):
        def call(*values, **named):
            self._stream.write(json.dumps([name, values[1:] if values else [], named]).encode() + b"\n")
            self._stream.flush()
            answer = json.loads(self._stream.readline())
            if "error" in answer:
                raise getattr(errors, answer["error"])(answer["message"])
            return answer["result"]

        return call


class _Served(socketserver.StreamRequestHandler):
    """Calls of one process. The first word of a call is the peer, so that nobody can take another's name."""

    def handle(self):
        ucred = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = struct.unpack("=iII", ucred)[0]
        try:
            for line in self.rfile:
                self.wfile.write(json.dumps(self._answer(pid, *json.loads(line))).encode() + b"\n")
        except OSError:
            pass  # it was killed
        with self.server.lock:
            self.server.world.gone(f"{pid}")

    def _answer(self, pid, name, values, named):
        world = self.server.world
        with self.server.lock:
            if name in CHANGES:
                world.calls.append(name)
                self._maybe_kill(world, pid, before=True)
            try:
                method = getattr(world, name)
                answer = {"result": method(**named) if name in CONTROLS else method(f"{pid}", *values)}
            except errors.SchedagentError as error:
                answer = {"error": type(error).__name__, "message": error.message}
            if name in CHANGES:
                self._maybe_kill(world, pid, before=False)
                self._hold(world, name)
            return answer

    def _hold(self, world, name):
        """Let the caller wait for its answer until it is released, or the world is reset."""
        world.held = bool(world.hold_at) and world.hold_at == name
        while world.held and world.hold_at == name:
            self.server.lock.release()
            time.sleep(0.002)
            self.server.lock.acquire()
        world.held = False

    def _maybe_kill(self, world, pid, before):
        """kill_at counts the halves of calls that change something: 2n is before the n-th, 2n + 1 after it."""
        if world.kill_at >= 0 and world.kill_at == 2 * (len(world.calls) - 1) + (not before):
            world.kill_at = -1
            os.kill(pid, signal.SIGKILL)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def serve(path):
    with _Server(str(path), _Served) as server:
        server.world, server.lock = World(), threading.Lock()
        server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
