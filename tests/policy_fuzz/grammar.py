"""Correct policies at random, out of the building blocks that the rules know: queues, orders, slices, placement,
measures, timers, tables and loops.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tests.policy_fuzz.draft import Draft

Block = Callable[[Draft, random.Random], Draft]

STORAGE = """
struct {{
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, {type});
}} {name} SEC(".maps");
"""
CREATE = "bpf_task_storage_get(&{name}, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);\n"

PF_KTHREAD = "(p->flags & 0x00200000)"


def draw_policy(name: str, draw: random.Random) -> Draft:
    """One correct policy."""
    draft = Draft(name)
    for blocks in (_QUEUES, _SLICES, _PLACEMENTS, _EXTRAS, _EXTRAS):
        draft = draw.choice(blocks)(draft, draw)
    return draft


def _says(draft: Draft, words: str) -> Draft:
    return replace(draft, about=(*draft.about, words))


# --- queues and their order


def by_arrival(draft: Draft, draw: random.Random) -> Draft:
    """One queue by time of arrival."""
    return replace(_says(draft, "one queue by arrival"), key="scx_bpf_now()", serve=("dispatch_smaller_key(0, cpu)",))


def fifo(draft: Draft, draw: random.Random) -> Draft:
    """One FIFO beside one for each CPU's pinned tasks, in turn."""
    order = "turns++ & 1 ? serve_pinned(cpu) : serve_shared(cpu)"
    head = """
static u32 turns;

static __always_inline bool serve_pinned(s32 cpu)
{
	return dsq_move_to_local(cpu_queue(0, cpu)) ||
		dsq_move_to_local(shared_queue(0));
}

static __always_inline bool serve_shared(s32 cpu)
{
	return dsq_move_to_local(shared_queue(0)) ||
		dsq_move_to_local(cpu_queue(0, cpu));
}
"""
    return replace(_says(draft, "two FIFOs in turn").adding(head), serve=(f"({order})",))


def virtual_time(draft: Draft, draw: random.Random) -> Draft:
    """Weighted virtual time, with the rescue of those that wait long."""
    lag = draw.choice((5, 10, 20))
    draft = _says(draft, f"virtual time, {lag} ms of credit").adding(
        running="vtime_start(p);\n", stopping="vtime_stop(p);\n", init_task="vtask_init(p);\n"
    )
    return replace(
        draft,
        includes=("vtime.bpf.h",),
        key=f"vtime_key(p, task_queue(p, 0), {lag} * NSEC_PER_MSEC, 1000 * NSEC_PER_MSEC)",
        serve=("rescue_starved(1, cpu, 1000 * NSEC_PER_MSEC)", "vtime_dispatch(0, cpu, prev, SLICE_NS)"),
    )


def lanes(draft: Draft, draw: random.Random) -> Draft:
    """Two classes in turn, by something that every task shows."""
    what, condition = draw.choice(
        (
            ("kernel threads", PF_KTHREAD),
            ("tasks that woke", "(enq_flags & ENQ_WAKEUP)"),
            ("light tasks", "p->scx.weight < 80"),
            ("tasks of few CPUs", "p->nr_cpus_allowed * 2 <= nr_cpus"),
        )
    )
    head = """
static u32 turns;

static __always_inline bool serve_lanes(s32 cpu)
{
	if (turns++ & 1)
		return dispatch_smaller_key(1, cpu) ||
			dispatch_smaller_key(0, cpu);
	return dispatch_smaller_key(0, cpu) || dispatch_smaller_key(1, cpu);
}
"""
    return replace(
        _says(draft, f"two lanes in turn, one for {what}").adding(head),
        classes=2,
        queue=f"task_queue(p, {condition} ? 1 : 0)",
        key="scx_bpf_now()",
        serve=("serve_lanes(cpu)",),
    )


def stealing(draft: Draft, draw: random.Random) -> Draft:
    """A queue per CPU by arrival; a CPU without work looks at the others'."""
    head = """
static __always_inline bool steal(s32 cpu)
{
	s32 step;

	bpf_for(step, 1, nr_cpus) {
		if (dsq_move_to_local(cpu_queue(1, (cpu + step) % nr_cpus)))
			return true;
	}
	return false;
}

static u32 turns;

static __always_inline bool serve_own(s32 cpu)
{
	if (turns++ % 4 == 3 && steal(cpu))
		return true;
	if (turns & 1)
		return dsq_move_to_local(cpu_queue(0, cpu)) ||
			dsq_move_to_local(cpu_queue(1, cpu));
	return dsq_move_to_local(cpu_queue(1, cpu)) ||
		dsq_move_to_local(cpu_queue(0, cpu));
}
"""
    queue = "is_pinned(p) ? task_queue(p, 0) : cpu_queue(1, scx_bpf_task_cpu(p))"
    return replace(
        _says(draft, "a queue per CPU with stealing").adding(head),
        classes=2,
        queue=f"({queue})",
        serve=("serve_own(cpu)", "steal(cpu)"),
    )


def short_bursts(draft: Draft, draw: random.Random) -> Draft:
    """A deadline that is later for those whose last burst was long, within bounds."""
    most = draw.choice((20, 50, 100))
    head = STORAGE.format(type="struct burst", name="bursts").replace(
        "\nstruct {", "\nstruct burst {\n\tu64 start;\n\tu64 last;\n};\n\nstruct {", 1
    )
    head += f"""
static __always_inline u64 deadline(struct task_struct *p)
{{
	struct burst *burst = bpf_task_storage_get(&bursts, p, NULL, 0);
	u64 last = burst ? burst->last : 0;

	if (last > {most} * NSEC_PER_MSEC)
		last = {most} * NSEC_PER_MSEC;
	return scx_bpf_now() + last;
}}
"""
    running = """{
	struct burst *burst = bpf_task_storage_get(&bursts, p, NULL, 0);

	if (burst)
		burst->start = p->se.sum_exec_runtime;
}
"""
    stopping = """{
	struct burst *burst = bpf_task_storage_get(&bursts, p, NULL, 0);

	if (burst)
		burst->last = p->se.sum_exec_runtime - burst->start;
}
"""
    draft = _says(draft, f"deadlines by the last burst, at most {most} ms").adding(
        head, running=running, stopping=stopping, init_task=CREATE.format(name="bursts")
    )
    return replace(draft, key="deadline(p)", serve=("dispatch_smaller_key(0, cpu)",))


# --- slices


def same_slice(draft: Draft, draw: random.Random) -> Draft:
    """One slice for all."""
    return replace(_says(draft, "equal slices"), slice_ns=f"{draw.choice((2, 5, 8, 20))} * NSEC_PER_MSEC")


def slice_by_weight(draft: Draft, draw: random.Random) -> Draft:
    """A slice in proportion to the weight."""
    return replace(_says(draft, "slices by weight"), slice_ns="weighted_slice(p, 60 * NSEC_PER_MSEC)")


def slice_by_length(draft: Draft, draw: random.Random) -> Draft:
    """A shorter slice when many wait, within bounds."""
    head = """
static __always_inline u64 shared_out(void)
{
	u64 nr = scx_bpf_dsq_nr_queued(shared_queue(0));

	if (nr > 100)
		nr = 100;
	return clamp_slice(5 * NSEC_PER_MSEC / (nr + 1));
}
"""
    return replace(_says(draft, "slices by the queue's length").adding(head), slice_ns="shared_out()")


# --- placement


def take_idle(draft: Draft, draw: random.Random) -> Draft:
    """An idle CPU of the mask at once."""
    code = f"return select_idle_cpu(p, prev_cpu, wake_flags, {draft.slice_ns});"
    return replace(_says(draft, "an idle CPU at once"), select_cpu=code)


def kernel_picks(draft: Draft, draw: random.Random) -> Draft:
    """The kernel's own choice."""
    code = f"""bool idle = false;
	s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);

	if (idle)
		dsq_insert(p, DSQ_LOCAL, {draft.slice_ns}, 0);
	return cpu;"""
    return replace(_says(draft, "the kernel's choice of a CPU"), select_cpu=code)


def left_alone(draft: Draft, draw: random.Random) -> Draft:
    """No callback: the kernel selects, and enqueue kicks."""
    return draft


# --- what else there may be


def counts(draft: Draft, draw: random.Random) -> Draft:
    """Counters that decide nothing; their names are drawn, so that two of them may stand in one policy."""
    name = f"seen_{draw.randrange(10**6)}"
    member = draw.choice(("running", "runnable", "quiescent"))
    return _says(draft, f"{member} is counted").adding(
        f"u64 {name};", **{member: f"__sync_fetch_and_add(&{name}, 1);\n"}
    )


def table_per_cpu(draft: Draft, draw: random.Random) -> Draft:
    """A per-CPU table of how often each CPU ran something."""
    name = f"runs_{draw.randrange(10**6)}"
    head = f"""
struct {{
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, {draw.choice((1, 4, 64))});
	__type(key, u32);
	__type(value, u64);
}} {name} SEC(".maps");
"""
    running = f"""{{
	u32 zero = 0;
	u64 *runs = bpf_map_lookup_elem(&{name}, &zero);

	if (runs)
		(*runs)++;
}}
"""
    return _says(draft, "a count for each CPU").adding(head, running=running)


def longest_wait(draft: Draft, draw: random.Random) -> Draft:
    """How long tasks waited is measured, for whoever looks."""
    name = f"waits_{draw.randrange(10**6)}"
    head = STORAGE.format(type="u64", name=name) + f"\nu64 longest_{name};\n"
    runnable = f"""{{
	u64 *since = bpf_task_storage_get(&{name}, p, NULL, 0);

	if (since)
		*since = scx_bpf_now();
}}
"""
    running = f"""{{
	u64 *since = bpf_task_storage_get(&{name}, p, NULL, 0);
	u64 waited = since ? scx_bpf_now() - *since : 0;

	if (waited > longest_{name})
		longest_{name} = waited;
}}
"""
    return _says(draft, "waits are measured").adding(
        head, runnable=runnable, running=running, init_task=CREATE.format(name=name)
    )


def timer(draft: Draft, draw: random.Random) -> Draft:
    """A timer that notes how many wait, and decides nothing."""
    if any("bpf_timer" in declaration for declaration in draft.head):
        return draft
    period = draw.choice((20, 50, 200))
    head = f"""
#define CLOCK_MONOTONIC 1

struct beat {{
	struct bpf_timer timer;
	u64 waiting;
}};

struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct beat);
}} beats SEC(".maps");

static int beat(void *map, int *key, struct beat *self)
{{
	self->waiting = scx_bpf_dsq_nr_queued(shared_queue(0));
	bpf_timer_start(&self->timer, {period} * NSEC_PER_MSEC, 0);
	return 0;
}}
"""
    code = f"""{{
	u32 zero = 0;
	struct beat *self = bpf_map_lookup_elem(&beats, &zero);

	if (!self)
		return -E2BIG;
	bpf_timer_init(&self->timer, &beats, CLOCK_MONOTONIC);
	bpf_timer_set_callback(&self->timer, beat);
	bpf_timer_start(&self->timer, {period} * NSEC_PER_MSEC, 0);
}}
"""
    return replace(_says(draft, f"a timer of {period} ms").adding(head), init=draft.init + code)


def small_loop(draft: Draft, draw: random.Random) -> Draft:
    """A short loop over a small table in running."""
    name = f"bins_{draw.randrange(10**6)}"
    running = f"""{{
	u32 at;

	bpf_for(at, 0, {draw.choice((4, 8, 16))}) {{
		{name}[at & 15] -= {name}[at & 15] >> 3;
	}}
	{name}[p->scx.weight & 15] += 64;
}}
"""
    return _says(draft, "weights in bins").adding(f"static u64 {name}[16];", running=running)


def nothing(draft: Draft, draw: random.Random) -> Draft:
    """No more."""
    return draft


_QUEUES: tuple[Block, ...] = (by_arrival, fifo, virtual_time, lanes, stealing, short_bursts)
_SLICES: tuple[Block, ...] = (same_slice, slice_by_weight, slice_by_length)
_PLACEMENTS: tuple[Block, ...] = (take_idle, kernel_picks, left_alone)
_EXTRAS: tuple[Block, ...] = (counts, table_per_cpu, longest_wait, timer, small_loop, nothing)
