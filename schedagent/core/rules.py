"""The rules that every sched_ext policy must keep, numbered as in the design, and which checks hold them.

Sources: kernel/sched/ext.c and include/linux/sched/ext.h (6.16 to 7.x), tools/testing/selftests/sched_ext, and what
broke in practice. A finding of any gate names one of these numbers; VERIFIER.md's table is generated from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

SOURCE = "source"
COMPILE = "compile"
LOGIC = "scheduling logic"
KERNEL = "kernel verifier"
ATTACH = "attach"
PROVING = "proving ground"
OVERHEAD = "overhead"

GATES = (SOURCE, COMPILE, LOGIC, KERNEL, ATTACH, PROVING, OVERHEAD)
"""In the order they are passed."""


class FindingClass(StrEnum):
    """What a broken rule means for whoever wants to run the policy."""

    UNSAFE = "unsafe"
    """It can hang, lose or misplace a task, be ejected, leak, escape, or behave otherwise than it was proved."""
    UNFAIR = "unfair"
    """It costs somebody something: measured, and a matter of taste or goal."""
    HOUSE = "house"
    """Our own policies are not written like that."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        number: 1 to 33.
        text: what must hold.
        why: what happens otherwise.
        repair: how a policy is usually fixed.
        gates: which gates check it.
        checks: names of the oracles of the proving ground that check it, if any do.
        finding_class: of a finding on it, unless the finding itself is of another one.
        classed_for: why it is of this class; empty: `why` says it.
    """

    number: int
    text: str
    why: str
    repair: str
    gates: tuple[str, ...]
    checks: tuple[str, ...] = ()
    finding_class: FindingClass = FindingClass.UNSAFE
    classed_for: str = ""

    @property
    def class_text(self) -> str:
        """Its class and the reason for it, in a line."""
        return f"{self.finding_class}: {self.classed_for or self.why}"


_RULES = (
    Rule(1, "select_cpu returns a possible CPU that the task may use",
         "the kernel ejects a policy that returns a CPU that does not exist",
         "return prev_cpu, or what a select_cpu kfunc found, never a number computed without a check",
         (LOGIC, PROVING), ("affinity", "fork storm")),
    Rule(2, "every DSQ is created in init before it is used; its id leaves bit 63 clear",
         "an insert into a DSQ that does not exist ejects the policy",
         "call scx_bpf_create_dsq() for the id in init and return its error",
         (SOURCE, LOGIC, PROVING), ("starvation",)),
    Rule(3, "no vtime insert into a built-in DSQ",
         "the kernel ejects a policy that orders SCX_DSQ_LOCAL or SCX_DSQ_GLOBAL by vtime",
         "insert by vtime into a DSQ of your own, and move from it in dispatch",
         (LOGIC,)),
    Rule(4, "FIFO and vtime inserts never share one DSQ",
         "the kernel ejects a policy that mixes both in one DSQ",
         "use two DSQs, or give every insert a vtime",
         (LOGIC,)),
    Rule(5, "at most one insert per task on any path through select_cpu and enqueue, and only of that task",
         "a second insert of the same task ejects the policy; one of another task is refused",
         "return after the insert; in enqueue act on the task of the callback only",
         (LOGIC,)),
    Rule(6, "SCX_DSQ_LOCAL_ON | cpu only names a CPU in the task's mask",
         "the kernel ejects a policy that sends a task to a CPU it may not use",
         "test bpf_cpumask_test_cpu(cpu, p->cpus_ptr) first, else use a shared DSQ",
         (LOGIC, PROVING), ("affinity",)),
    Rule(7, "cpus_ptr and migration-disabled tasks are honoured",
         "no other CPU takes a task that may run on one CPU only: it waits indefinitely",
         "queue such tasks where their CPU looks: SCX_DSQ_LOCAL or a DSQ of that CPU",
         (LOGIC, PROVING), ("affinity", "starvation", "migration disabled", "pinned kernel workers")),
    Rule(8, "move_to_local only from user DSQs that exist",
         "moving from SCX_DSQ_LOCAL, or from a DSQ that was never created, ejects the policy",
         "move from the DSQs that init created; the kernel serves the built-in ones by itself",
         (LOGIC,)),
    Rule(9, "inserts of one dispatch stay within dispatch_max_batch",
         "the kernel ejects a policy whose dispatch buffer overflows",
         "stop when scx_bpf_dispatch_nr_slots() is 0, or move tasks instead of inserting them",
         (LOGIC,)),
    Rule(10, "SCX_KICK_IDLE is not combined with SCX_KICK_PREEMPT or SCX_KICK_WAIT",
         "the kernel ejects a policy that combines them",
         "kick with one of them: IDLE to wake an idle CPU, PREEMPT to interrupt a busy one",
         (LOGIC,)),
    Rule(11, "cpuperf values are at most SCX_CPUPERF_ONE (1024), and at least a quarter of it",
         "the kernel ejects a policy that asks for more than full performance; a CPU that crawls starves all",
         "clamp the value to SCX_CPUPERF_ONE / 4 .. SCX_CPUPERF_ONE",
         (LOGIC,)),
    Rule(12, "update_idle without SCX_OPS_KEEP_BUILTIN_IDLE forbids the idle kfuncs and needs an own select_cpu",
         "the built-in idle tracking is off then, and every idle kfunc ejects the policy",
         "set SCX_OPS_KEEP_BUILTIN_IDLE, or leave update_idle out",
         (LOGIC,)),
    Rule(13, "flat and per-node idle kfuncs are not mixed",
         "with SCX_OPS_BUILTIN_IDLE_PER_NODE the flat ones eject the policy, without it the per-node ones do",
         "use the kfuncs of one kind, and set the flag if it is the per-node kind",
         (LOGIC,)),
    Rule(14, "select_cpu kfuncs act on the callback's task only",
         "they read state that is only stable for that task, and newer kernels eject the policy",
         "pass the task that the callback was given",
         (LOGIC,)),
    Rule(15, "SCX_OPS_ENQ_LAST needs an enqueue, and a later scheduling event for the task",
         "the last task of a CPU goes to enqueue although nothing will ever dispatch it, and the CPU idles",
         "leave the flag out, or insert such a task into SCX_DSQ_LOCAL",
         (LOGIC, ATTACH, PROVING), ("work conservation",)),
    Rule(16, "sleepable programs only for init, exit, init_task, cgroup and cpu_online/cpu_offline callbacks",
         "the other callbacks run with the run queue locked and must not sleep",
         "put the callback into section struct_ops/ instead of struct_ops.s/",
         (LOGIC, KERNEL)),
    Rule(17, "init_task never fails the fork: it falls back",
         "once loaded, an error of init_task makes fork() fail for the whole machine",
         "return 0, and let the other callbacks cope with a task that has no record",
         (LOGIC, PROVING), ("fork storm",)),
    Rule(18, "every path through enqueue inserts the task or stores it where dispatch finds it",
         "a task on the other path is lost: it never runs again until the watchdog ejects the policy",
         "end such a path with an insert, for example into SCX_DSQ_GLOBAL when a map is full",
         (LOGIC, PROVING), ("starvation",)),
    Rule(19, "every DSQ that is pushed to is drained by dispatch on every CPU its tasks may use",
         "tasks in a DSQ that no CPU dispatches from wait indefinitely",
         "call scx_bpf_dsq_move_to_local() for that DSQ in dispatch, on every CPU",
         (LOGIC, PROVING), ("starvation", "affinity")),
    Rule(20, "work left in a user DSQ kicks an idle CPU, and an idle CPU that is claimed is used",
         "a CPU that went idle before the insert does not look again, and the task waits for the next tick or longer",
         "after the insert, pick an idle CPU of the task's mask and scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE)",
         (LOGIC, PROVING), ("work conservation",), finding_class=FindingClass.UNFAIR,
         classed_for="the task is served, only later than it could be"),
    Rule(21, "an infinite slice needs a preemption source",
         "a task with SCX_SLICE_INF keeps its CPU for as long as it likes",
         "use a finite slice, or kick the CPU with SCX_KICK_PREEMPT from a timer or from enqueue",
         (LOGIC, PROVING), ("starvation",)),
    Rule(22, "vtime lag is clamped, compared wrap-safe and charged by weight",
         "a long sleeper otherwise starves everybody when it wakes, and weights mean nothing",
         "clamp to the queue's clock minus one slice, compare as (s64)(a - b) < 0, charge used * 100 / weight",
         (LOGIC, PROVING), ("weights", "starvation", "sleeper's return"), finding_class=FindingClass.UNFAIR,
         classed_for="everybody is served, but not by weight, and some schedulers mean that"),
    Rule(23, "no shared DSQ full of pinned tasks",
         "every CPU then scans the tasks it may not run, under the DSQ's lock",
         "queue tasks with one allowed CPU in a DSQ of that CPU",
         (PROVING,), ("pinned crowd",), finding_class=FindingClass.UNFAIR,
         classed_for="it costs time where many tasks are pinned, and nothing elsewhere"),
    Rule(24, "slices are explicit and between 100 us and 100 ms",
         "shorter ones switch more than they run, longer ones make everybody else wait",
         "clamp the slice to 100 us .. 100 ms before the insert",
         (SOURCE, LOGIC), finding_class=FindingClass.HOUSE,
         classed_for="the proving ground measures what a slice does; bounds beforehand are for our own planners"),
    Rule(25, "CPU hotplug is handled, or the kernel ends the policy with a restart code",
         "a task left on a CPU that went away is lost",
         "leave cpu_online and cpu_offline out (the kernel then asks for a restart), or requeue in them",
         (PROVING,), ("CPU hotplug", "reload loop")),
    Rule(26, "timeout_ms is set, at most 5000 for a candidate; exit information is recorded",
         "without a short timeout a lost task waits for half a minute; without exit info nobody learns why it ended",
         "set .timeout_ms = 5000, and .exit to a callback that records struct scx_exit_info",
         (LOGIC, PROVING), ("provoked stall",), finding_class=FindingClass.HOUSE,
         classed_for="our loader sets a timeout and reads the kernel's log where a policy does neither"),
    Rule(27, "only programs, helpers, kfuncs, maps, ops flags and kernel fields that are on a list; no assembler",
         "a scheduler has no business in user memory, signals, packets or anybody's secrets, and is proved as it runs",
         "remove the program, map, flag or call; read task fields by their names, print numbers only",
         (SOURCE, LOGIC)),
    Rule(28, "the work of a callback is bounded, loops within loops and calls included, and so is all memory",
         "what can loop for long, cannot be followed or grows stalls the machine or eats its memory",
         "use bpf_for() with a constant bound, loop less within loops, give every map max_entries",
         (LOGIC, KERNEL, PROVING), ("memory growth", "kernel memory growth")),
    Rule(29, "no task waits longer than the starvation bound; weights are respected unless declared otherwise",
         "somebody's task stands still although the machine works",
         "serve the task that waits longest after a bounded time, whatever the order says",
         (SOURCE, LOGIC, PROVING), ("starvation", "weights", "wake-ups", "yield", "priority changes",
                                    "real-time interference", "memory pressure", "cgroup moves", "migration disabled",
                                    "pinned kernel workers", "groups", "moved clock", "soak")),
    Rule(30, "the machine keeps the default scheduler's throughput within 10 % unless declared otherwise",
         "a policy that costs more than it can gain is none to keep",
         "do less in the hot callbacks, and kick fewer CPUs",
         (OVERHEAD,), ("idle machine", "saturated machine"), finding_class=FindingClass.UNFAIR,
         classed_for="it costs throughput, which whoever gains by it may want to pay"),
    Rule(32, "no order, slice, CPU or loop bound depends on an input that the policy does not declare",
         "what looks at names, users, clocks or counters can behave otherwise than it was proved",
         "go by weights, masks, queues and measured bursts, or declare the input in a comment: Reads: comm, uid",
         (LOGIC,)),
    Rule(33, "every queue, branch and class of the policy was reached while it was proved",
         "what never ran is not proved: a policy can wait for an hour, a name or a user, and then starve somebody",
         "remove the branch, or make it depend on what the proving ground can bring about",
         (PROVING,)),
)  # fmt: skip

NEVER_RAN = 33
"""The rule of what never ran while a policy was proved."""

RULES: Mapping[int, Rule] = {rule.number: rule for rule in _RULES}
