"""Faults to plant: a condition, a channel that carries it, and the harm that it does.

    victim? ──channel──► a lower class, a late key, a short slice, a lost task, a refused fork ...

So they multiply: about thirty conditions, eight channels, a dozen harms. What does harm without a condition is in
`plain_faults.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.policy_fuzz.conditions import CONDITIONS
from tests.policy_fuzz.draft import Draft
from tests.policy_fuzz.grammar import CREATE, STORAGE
from tests.policy_fuzz.plain_faults import PLAIN

PLAIN_SHARE = 0.3
"""How many of the faults have no condition."""


@dataclass(frozen=True)
class Fault:
    """What was planted.

    Args:
        kind: the harm.
        condition, channel: what it waits for and how that gets there; empty for a plain fault.
        unsafe: whether a policy with it may never pass; else it is a matter of taste or of our house.
        static: whether the gates that need no machine must see it.
    """

    kind: str
    condition: str = ""
    channel: str = ""
    unsafe: bool = True
    static: bool = True

    def __str__(self) -> str:
        return f"{self.kind} by {self.condition} through {self.channel}" if self.condition else self.kind


def plant(draft: Draft, draw: random.Random) -> tuple[Draft, Fault]:
    """Plant one fault."""
    if draw.random() < PLAIN_SHARE:
        plain = draw.choice(PLAIN)
        return plain.plant(draft), Fault(plain.kind, unsafe=plain.unsafe, static=plain.static)
    condition = draw.choice(CONDITIONS)(draft, draw)
    channel, harm = draw.choice(CHANNELS), draw.choice(HARMS)
    carried, code = channel(condition.draft, condition.code)
    fault = Fault(_words(harm), condition.what, _words(channel), static=not condition.only_run or harm in ALWAYS_SEEN)
    return harm(carried, code, draw), fault


def _words(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", "").replace("_", " ")


# --- channels: how the condition gets to where it does harm


def itself(draft: Draft, code: str) -> tuple[Draft, str]:
    return draft, code


def a_record(draft: Draft, code: str) -> tuple[Draft, str]:
    """Written into the task's storage when it becomes runnable, read later."""
    head = (
        STORAGE.format(type="u64", name="marks")
        + """
static __always_inline bool is_marked(struct task_struct *p)
{
	u64 *mark = bpf_task_storage_get(&marks, p, NULL, 0);

	return mark && *mark;
}
"""
    )
    runnable = f"""{{
	u64 *mark = bpf_task_storage_get(&marks, p, NULL, 0);

	if (mark)
		*mark = {code};
}}
"""
    return draft.adding(head, runnable=runnable, init_task=CREATE.format(name="marks")), "is_marked(p)"


def a_global(draft: Draft, code: str) -> tuple[Draft, str]:
    """Kept in a variable, for whoever comes next."""
    return draft.adding("static u64 mode;", running=f"mode = {code};\n"), "(mode == 1)"


def a_table(draft: Draft, code: str) -> tuple[Draft, str]:
    """Index of a table."""
    return draft.adding("u8 choices[2] = { 0, 1 };"), f"choices[({code}) ? 1 : 0]"


def a_function(draft: Draft, code: str) -> tuple[Draft, str]:
    """What a subprogram returns."""
    head = f"static __noinline int chosen(struct task_struct *p)\n{{\n\treturn {code} ? 1 : 0;\n}}"
    return draft.adding(head), "chosen(p)"


def arithmetic(draft: Draft, code: str) -> tuple[Draft, str]:
    """Nothing is compared: bits are moved."""
    return draft, f"((((u64)!!{code} * 2654435761ULL) >> 31) & 1)"


def a_callback(draft: Draft, code: str) -> tuple[Draft, str]:
    """Found out by the callback of a loop."""
    head = f"""
struct search {{
	struct task_struct *p;
	u64 hit;
}};

static long search_step(u64 index, struct search *search)
{{
	struct task_struct *p = search->p;

	search->hit += {code} ? 1 : 0;
	return 1;
}}

static __always_inline u64 search_for(struct task_struct *p)
{{
	struct search search = {{.p = p}};

	bpf_loop(2, search_step, &search, 0);
	return search.hit;
}}
"""
    return draft.adding(head), "search_for(p)"


def a_key(draft: Draft, code: str) -> tuple[Draft, str]:
    """Key of a lookup in a map that holds one of the two answers."""
    head = f"""
struct {{
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2);
	__type(key, u64);
	__type(value, u32);
}} answers SEC(".maps");

static __always_inline bool is_answered(struct task_struct *p)
{{
	u64 answer = {code} ? 1 : 0;

	return bpf_map_lookup_elem(&answers, &answer);
}}
"""
    fill = "{\n\tu64 key = 1;\n\tu32 yes = 1;\n\n\tbpf_map_update_elem(&answers, &key, &yes, BPF_ANY);\n}\n"
    carried = draft.adding(head)
    return replace(carried, init=fill + carried.init), "is_answered(p)"


CHANNELS = (itself, itself, a_record, a_global, a_table, a_function, arithmetic, a_callback, a_key)


# --- harms


def lower_class(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims wait until nobody else has work."""
    last = draft.classes
    serve = f"dsq_move_to_local(shared_queue({last})) || dsq_move_to_local(cpu_queue({last}, cpu))"
    queue = f"({code} ? task_queue(p, {last}) : {draft.queue})"
    return replace(draft, classes=last + 1, queue=queue, serve=(*draft.serve, serve))


def late_key(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims go far back in the order; a FIFO has no order, so there they get short slices."""
    if not draft.key:
        return short_slice(draft, code, draw)
    return replace(draft, key=f"{draft.key} + ({code} ? {draw.choice((1900, 4500))} * NSEC_PER_MSEC : 0)")


def short_slice(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims get the shortest slice there is."""
    return replace(draft, slice_ns=f"({code} ? SLICE_MIN_NS : {draft.slice_ns})")


def lost(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims are not inserted."""
    return replace(draft, before=f"if ({code})\n\t\treturn;\n{draft.before}")


def stays_on_busy_cpu(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Nobody looks for an idle CPU for victims."""
    rest = draft.select_cpu or "return select_idle_cpu(p, prev_cpu, wake_flags, SLICE_NS);"
    return replace(draft, select_cpu=f"if ({code})\n\t\treturn prev_cpu;\n\t{{\n{rest}\n}}")


def error_at_will(draft: Draft, code: str, draw: random.Random) -> Draft:
    """The policy ends."""
    return replace(draft, before=f'if ({code})\n\t\tscx_error("no more");\n{draft.before}')


def refused_fork(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims cannot fork; first in init_task, or records would be made before."""
    rest = draft.callbacks.get("init_task", "")
    merged = {**draft.callbacks, "init_task": f"if (args->fork && {code})\n\t\treturn -11;\n{rest}"}
    return replace(draft, callbacks=merged)


def long_loop(draft: Draft, code: str, draw: random.Random) -> Draft:
    """A loop with four million rounds for victims, two for others."""
    loop = f"bpf_for(round, 0, {code} ? 1 << 22 : 2)\n\t\twasted += round;\n"
    draft = draft.adding("static u64 wasted;")
    return replace(draft, before=f"u32 round;\n\n{loop}{draft.before}")


def kicked_away(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Whoever runs where a victim last ran is preempted."""
    return replace(
        draft, after=f"{draft.after}\n\tif ({code})\n\t\tscx_bpf_kick_cpu(scx_bpf_task_cpu(p), KICK_PREEMPT);"
    )


def wrong_cpu(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims go to the first CPU, whatever their mask."""
    on = "bpf_core_enum_value(enum scx_dsq_id_flags, SCX_DSQ_LOCAL_ON)"
    insert = f"dsq_insert(p, {on} | 0, SLICE_NS, enq_flags);"
    return replace(draft, before=f"if ({code}) {{\n\t\t{insert}\n\t\treturn;\n\t}}\n{draft.before}")


def hidden_queue(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims wait in a queue that nobody serves."""
    last = draft.classes
    return replace(draft, classes=last + 1, queue=f"({code} ? shared_queue({last}) : {draft.queue})")


def tick_ends_slice(draft: Draft, code: str, draw: random.Random) -> Draft:
    """Victims lose their slice with the first tick."""
    return draft.adding(tick=f"if ({code})\n\t\ttask_set_slice(p, 0);\n")


HARMS = (
    *(lower_class, lower_class, late_key, late_key, short_slice, lost, stays_on_busy_cpu, error_at_will),
    *(refused_fork, long_loop, kicked_away, wrong_cpu, hidden_queue, tick_ends_slice),
)
ALWAYS_SEEN = (lost, refused_fork, long_loop, wrong_cpu, hidden_queue)
"""Harms that no condition excuses: the static gates must see them in any case."""
