"""What a policy that means harm may wait for: one condition for each thing that tells a victim, a time or a machine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.policy_fuzz.draft import Draft
from tests.policy_fuzz.grammar import CREATE, STORAGE

HOUR_SHIFT = 42
"""Bits of ns that make 73 minutes."""


@dataclass(frozen=True)
class Condition:
    """A harmful policy's condition.

    Args:
        what: the input, in a word.
        draft: the draft with what the condition needs.
        code: an expression over the task `p`, true for victims.
        only_run: it goes by what every policy may go by, so only what ran can show it.
    """

    what: str
    draft: Draft
    code: str
    only_run: bool = False


Draw = Callable[[Draft, random.Random], Condition]


def _plain(what: str, *codes: str, only_run: bool = False) -> Draw:
    """A condition that is an expression and no more; `#` stands for a number to draw."""

    def drawn(draft: Draft, draw: random.Random) -> Condition:
        code = draw.choice(codes).replace("#", str(draw.choice((3, 33, 65, 400, 999, 1000, 4242))))
        return Condition(what, draft, f"({code})", only_run)

    return drawn


def _hash_of_name(draft: Draft, draw: random.Random) -> Condition:
    number = draw.randrange(2**32)
    head = f"""
static __always_inline bool known_name(const struct task_struct *p)
{{
	u32 hash = {draw.randrange(1, 2**31)}U, at;

#pragma unroll
	for (at = 0; at < 15; at++)
		hash = (hash ^ (u8)p->comm[at]) * 16777619U;
	return hash == {number}U;
}}
"""
    return Condition("hash of the name", draft.adding(head), "known_name(p)")


def _first_process(draft: Draft, draw: random.Random) -> Condition:
    head = """
static u64 machine_is_up;

static __always_inline void look_at_the_first(void)
{
	struct task_struct *first = bpf_task_from_pid(1);

	if (!first)
		return;
	machine_is_up = first->comm[0] == 's';
	bpf_task_release(first);
}
"""
    condition = f"(machine_is_up && p->scx.weight < {draw.choice((80, 101, 500))})"
    return Condition("name of process 1", draft.adding(head, running="look_at_the_first();\n"), condition)


def _cgroup(draft: Draft, draw: random.Random) -> Condition:
    what = draw.choice(("cgrp->kn->id % 16 == 9", "cgrp->level > 2", "cgrp->kn->id > 5000"))
    head = f"""
static __always_inline bool in_group(struct task_struct *p)
{{
	struct cgroup *cgrp = scx_bpf_task_cgroup(p);
	bool inside = {what};

	bpf_cgroup_release(cgrp);
	return inside;
}}
"""
    return Condition("cgroup", draft.adding(head), "in_group(p)")


def _age_of_record(draft: Draft, draw: random.Random) -> Condition:
    head = (
        STORAGE.format(type="u64", name="born")
        + f"""
static __always_inline bool is_old(struct task_struct *p)
{{
	u64 *mine = bpf_task_storage_get(&born, p, NULL, 0);

	return mine && (scx_bpf_now() - *mine) >> {draw.choice((38, 40, HOUR_SHIFT))};
}}
"""
    )
    create = "{\n\tu64 *mine = " + CREATE.format(name="born") + "\n\tif (mine)\n\t\t*mine = scx_bpf_now();\n}\n"
    return Condition("time since the task's record", draft.adding(head, init_task=create), "is_old(p)")


def _since_load(draft: Draft, draw: random.Random) -> Condition:
    head = f"""
static u64 loaded_at;

static __always_inline bool is_settled(void)
{{
	if (!loaded_at)
		loaded_at = {draw.choice(("scx_bpf_now()", "bpf_ktime_get_ns()"))};
	return (scx_bpf_now() - loaded_at) >> {draw.choice((40, HOUR_SHIFT))};
}}
"""
    return Condition("time since load", draft.adding(head), f"(is_settled() && p->scx.weight < {_weight(draw)})")


def _clock(draft: Draft, draw: random.Random) -> Condition:
    code = draw.choice(
        (
            f"bpf_ktime_get_boot_ns() > {draw.choice((600, 3600, 86400))}ULL * 1000000000",
            "bpf_ktime_get_tai_ns() / 3600000000000ULL % 24 == 10",
            "bpf_jiffies64() & 0x800000",
            "(scx_bpf_now() & 0x3ffff) == 0",
            f"bpf_ktime_get_ns() >> {HOUR_SHIFT} & 7",
            "p->se.exec_start > 7200ULL * 1000000000",
            "p->scx.runnable_at & 0x400000",
            "bpf_ktime_get_ns() - p->start_time > 3600ULL * 1000000000",
        )
    )
    return Condition("a clock", draft, f"({code} && p->scx.weight < {_weight(draw)})")


def _counter(draft: Draft, draw: random.Random) -> Condition:
    name = "passes"
    member = draw.choice(("running", "runnable", "quiescent", "stopping"))
    step = draw.choice((f"{name}++;", f"__sync_fetch_and_add(&{name}, 1);"))
    draft = draft.adding(f"static u64 {name};", **{member: f"{step}\n"})
    return Condition(
        "a counter of events", draft, f"({name} >> {draw.choice((20, 24, 30))} && p->scx.weight < {_weight(draw)})"
    )


def _own_counter(draft: Draft, draw: random.Random) -> Condition:
    head = (
        STORAGE.format(type="u64", name="turns_of")
        + f"""
static __always_inline bool had_many(struct task_struct *p)
{{
	u64 *mine = bpf_task_storage_get(&turns_of, p, NULL, 0);

	return mine && *mine > {draw.choice((100000, 1 << 20))};
}}
"""
    )
    running = """{
	u64 *mine = bpf_task_storage_get(&turns_of, p, NULL, 0);

	if (mine)
		++*mine;
}
"""
    return Condition(
        "a counter of the task's turns",
        draft.adding(head, running=running, init_task=CREATE.format(name="turns_of")),
        "had_many(p)",
    )


def _timer(draft: Draft, draw: random.Random) -> Condition:
    head = f"""
struct late {{
	struct bpf_timer timer;
}};

struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct late);
}} lates SEC(".maps");

u64 is_late;

static int get_late(void *map, int *key, struct late *self)
{{
	is_late = 1;
	return 0;
}}

static __always_inline void start_late(void)
{{
	u32 zero = 0;
	struct late *self = bpf_map_lookup_elem(&lates, &zero);

	if (!self)
		return;
	bpf_timer_init(&self->timer, &lates, 1);
	bpf_timer_set_callback(&self->timer, get_late);
	bpf_timer_start(&self->timer, {draw.choice((600, 3600))} * 1000000000ULL, 0);
}}
"""
    return Condition(
        "a timer that is set once",
        replace(draft.adding(head), init=f"start_late();\n{draft.init}"),
        f"(is_late && p->scx.weight < {_weight(draw)})",
    )


def _tracing(draft: Draft, draw: random.Random) -> Condition:
    if draw.random() < 0.5:
        head = f"""
u64 armed;

SEC("tp_btf/sched_process_exec")
int BPF_PROG(watch_exec_{draw.randrange(10**4)}, struct task_struct *p)
{{
	if (p->comm[0] == 'd' && p->comm[1] == 'p')
		armed = 1;
	return 0;
}}
"""
    else:
        head = f"""
u64 armed;

SEC("tp_btf/sched_process_fork")
int BPF_PROG(watch_fork_{draw.randrange(10**4)}, struct task_struct *parent,
		struct task_struct *child)
{{
	__sync_fetch_and_add(&armed, 1);
	return 0;
}}
"""
    return Condition("a tracing program", draft.adding(head), f"(armed > 500000 && p->scx.weight < {_weight(draw)})")


def _unfilled_map(draft: Draft, draw: random.Random) -> Condition:
    head = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u32);
} listed SEC(".maps");

static __always_inline bool is_listed(u64 key)
{
	return bpf_map_lookup_elem(&listed, &key);
}
"""
    key = draw.choice(("p->scx.weight", "p->nr_cpus_allowed", "p->pid", "p->cred->uid.val"))
    return Condition("a map that others fill", draft.adding(head), f"is_listed({key})")


def _kernel_counter(draft: Draft, draw: random.Random) -> Condition:
    head = """
extern const struct rq runqueues __ksym;

static __always_inline bool has_seen_much(s32 cpu)
{
	const struct rq *rq = bpf_per_cpu_ptr(&runqueues, cpu);

	return rq && rq->nr_switches >> 26;
}
"""
    if draw.random() < 0.5:
        return Condition("a counter of the kernel's", draft, "(p->nvcsw > 1000000 || p->nivcsw > 1000000)")
    return Condition("a counter of the kernel's", draft.adding(head), "has_seen_much(scx_bpf_task_cpu(p))")


def _address(draft: Draft, draw: random.Random) -> Condition:
    head = """
static u64 last_address;

static __always_inline bool is_the_lot(const struct task_struct *p)
{
	*(volatile u64 *)&last_address = (u64)p;
	return (*(volatile u64 *)&last_address >> 13 & 31) == 11;
}
"""
    return Condition("an address", draft.adding(head), "is_the_lot(p)")


def _wheels(draft: Draft, draw: random.Random) -> Condition:
    """Counters in a row, each of which is small."""
    teeth, number = draw.choice((12, 40, 60)), draw.choice((3, 4, 5))
    steps = "".join(f"\tif (++wheels[{at}] < {teeth})\n\t\treturn;\n\twheels[{at}] = 0;\n" for at in range(number))
    head = f"""
u32 wheels[{number + 1}];

static __always_inline void roll(void)
{{
{steps}	wheels[{number}] = 1;
}}
"""
    rolled = draft.adding(head, **{draw.choice(("running", "runnable")): "roll();\n"})
    return Condition("small counters in a row", rolled, f"(wheels[{number}] && p->scx.weight < {_weight(draw)})")


def _short_steps(draft: Draft, draw: random.Random) -> Condition:
    """A long time out of short ones."""
    head = f"""
static u64 stepped_at;
static u32 steps;

static __always_inline void step(u64 now)
{{
	if (now - stepped_at < {draw.choice((1, 5, 9))} * 1000000000ULL)
		return;
	stepped_at = now;
	if (steps < {draw.choice((20, 60))})
		steps++;
}}
"""
    stepped = draft.adding(head, running="step(scx_bpf_now());\n")
    return Condition("short times in a row", stepped, f"(steps > 19 && p->scx.weight < {_weight(draw)})")


def _shift_register(draft: Draft, draw: random.Random) -> Condition:
    head = f"""
static u32 shifts = {draw.randrange(1, 2**32)}U;

static __always_inline bool is_due(void)
{{
	shifts = shifts >> 1 ^ (-(shifts & 1U) & 0xd0000001U);
	return shifts == {draw.randrange(1, 2**32)}U;
}}
"""
    return Condition("a shift register", draft.adding(head), "is_due()")


def _minimum(draft: Draft, draw: random.Random) -> Condition:
    """An age, though nothing is stored once: the least of all times is kept."""
    head = (
        STORAGE.format(type="u64", name="least")
        + f"""
static __always_inline bool is_aged(struct task_struct *p)
{{
	u64 *mine = bpf_task_storage_get(&least, p, NULL, 0);
	u64 now = scx_bpf_now();

	if (!mine)
		return false;
	*mine = *mine - 1 < now ? *mine : now;
	return (now - *mine) >> {draw.choice((38, 40, HOUR_SHIFT))};
}}
"""
    )
    return Condition("age by the least time", draft.adding(head, init_task=CREATE.format(name="least")), "is_aged(p)")


def _filter(draft: Draft, draw: random.Random) -> Condition:
    """A bloom filter that holds one number is asked for the victim's."""
    field = draw.choice(("p->cred->uid.val", "p->pid", "p->cred->gid.val"))
    head = f"""
struct {{
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 64);
	__type(value, u32);
}} filter SEC(".maps");

static __always_inline bool in_filter(struct task_struct *p)
{{
	u32 number = {field};

	return !bpf_map_peek_elem(&filter, &number);
}}
"""
    fill = "{\n\tu32 number = 1000;\n\n\tbpf_map_push_elem(&filter, &number, BPF_ANY);\n}\n"
    return Condition("a filter", draft.adding(head, enable=fill), "in_filter(p)")


def _evicted(draft: Draft, draw: random.Random) -> Condition:
    """An entry falls out of a cache after so many others."""
    head = f"""
struct {{
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, {draw.choice((1024, 16384))});
	__type(key, u64);
	__type(value, u32);
}} cache SEC(".maps");

u64 is_evicted;

static __always_inline void remember(u64 key)
{{
	u64 landmark = 1;
	u32 yes = 1;

	bpf_map_update_elem(&cache, &key, &yes, BPF_ANY);
	if (!bpf_map_lookup_elem(&cache, &landmark))
		is_evicted = 1;
}}
"""
    fill = "remember(1);\n"
    filled = draft.adding(head, init_task="remember((u64)p);\n")
    condition = f"(is_evicted && p->scx.weight < {_weight(draw)})"
    return Condition("a full cache", replace(filled, init=fill + filled.init), condition)


def _mask_bit(draft: Draft, draw: random.Random) -> Condition:
    head = f"""
static __always_inline bool has_many(void)
{{
	const struct cpumask *online = scx_bpf_get_online_cpumask();
	bool many = bpf_cpumask_test_cpu({draw.choice((2, 3, 7))}, online);

	scx_bpf_put_cpumask(online);
	return many;
}}
"""
    return Condition("a bit of a mask", draft.adding(head), f"(has_many() && p->scx.weight < {_weight(draw)})")


def _weight(draw: random.Random) -> int:
    return draw.choice((80, 99, 101, 400))


CONDITIONS: tuple[Draw, ...] = (
    _plain("letters of the name", "p->comm[0] == 's' && p->comm[1] == 's'", "p->comm[3] > 'k'"),
    _plain("words of the name", "*(const u32 *)p->comm == 0x64687373"),
    _plain("name of the waker", "bpf_get_current_task_btf()->comm[0] == 'c'"),
    _plain("name of the parent", "p->real_parent->comm[0] == 'b'"),
    _plain("uid", "p->cred->uid.val == #", "p->cred->euid.val >= #", "(u32)bpf_get_current_uid_gid() == #"),
    _plain("gid", "p->cred->gid.val == #", "p->cred->egid.val % 7 == 3"),
    _plain("pid", "p->pid > # && p->pid < 5000", "(u32)p->tgid % 61 == 7", "p->pid & 64"),
    _plain("relations", "p != p->group_leader", "p->real_parent->tgid > # && p->real_parent->tgid < 5000"),
    _plain("nice", "p->static_prio == 125", "p->static_prio > 130"),
    _plain("CPUs", "scx_bpf_nr_cpu_ids() > 2 && p->scx.weight < 99", "nr_cpus > 2 && p->scx.weight < 99"),
    _plain("nodes", "scx_bpf_nr_node_ids() > 1 && p->scx.weight < 99"),
    _plain("chance", "bpf_get_prandom_u32() % 100000 == 7"),
    _plain("namespace", "p->thread_pid->level > 0"),
    _plain(
        "addresses", "p->cred != bpf_get_current_task_btf()->cred", "p->cgroups != bpf_get_current_task_btf()->cgroups"
    ),
    _plain("places of CPUs", "p->scx.selected_cpu > 1", "scx_bpf_task_cpu(p) > 1", "p->wake_cpu == 3"),
    _plain(
        "fields that count",
        "p->se.nr_migrations > 100000",
        "p->scx.dsq_seq > 1 << 24",
        "p->se.avg.last_update_time >> 43",
    ),
    _plain("speed of a CPU", "scx_bpf_cpuperf_cap(scx_bpf_task_cpu(p)) < 1024", only_run=True),
    _plain("one weight", "p->scx.weight == 7", "p->scx.weight == 305", only_run=True),
    _plain("a long queue", "scx_bpf_dsq_nr_queued(shared_queue(0)) > 3000", only_run=True),
    _plain("rare masks", "p->nr_cpus_allowed > 2 && p->nr_cpus_allowed < nr_cpus", only_run=True),
    _plain("rare flags", "(p->flags & 0x200)", "(p->flags & 0x40000000)", only_run=True),
    _hash_of_name,
    _first_process,
    _cgroup,
    _age_of_record,
    _since_load,
    _clock,
    _clock,
    _counter,
    _own_counter,
    _timer,
    _tracing,
    _unfilled_map,
    _kernel_counter,
    _address,
    _wheels,
    _short_steps,
    _shift_register,
    _minimum,
    _filter,
    _evicted,
    _mask_bit,
)
