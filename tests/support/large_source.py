"""A policy of thousands of lines: what a person who knows no limit might write, generated.

It keeps a record of each task and grades it in dozens of small functions, each of which branches a few times and keeps
what it saw: the paths through one callback are more than anybody could follow one by one.
"""

from __future__ import annotations

import textwrap

from tests.support.small_policy import source_of

GRADES = 104
"""With so many the source has 3,000 lines."""

_MEMBERS = ("enqueue", "running")
_BEFORE = """
struct record {
	u64 began;
	u64 used;
	u64 waited;
	u64 score;
	u64 seen[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, 1);
	__type(key, int);
	__type(value, struct record);
} records SEC(".maps");

u64 graded[128];
u64 fell[128];
"""
_GRADE = """
/*
 * Grade {number}: how long ago the task was last seen here, and what of its score is left.
 */
static __always_inline u64 grade_{number}(struct record *held, u64 now, u64 sum)
{{
	u64 gone = now - held->seen[{slot}];
	u64 points = 0;

	if (gone > {long}ULL) {{
		held->score >>= 1;
		fell[{number}]++;
	}} else if (gone > {short}ULL) {{
		points = gone >> {shift};
	}}
	if (sum > held->waited) {{
		points >>= 1;
		graded[{number}]++;
	}}
	if (points > sum)
		sum = points + (held->used >> {shift});
	else if (held->began == 0)
		held->began = now;
	held->seen[{slot}] = now;
	held->used += gone >> {shift};
	return sum + points;
}}
"""
_INSERT = "scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);"
_ENDS = {"enqueue": (f"{_INSERT}\n\tscx_bpf_kick_cpu(scx_bpf_task_cpu(p), IDLE);", _INSERT)}


def large_source(grades: int = GRADES) -> str:
    """Return a policy whose callbacks share this many functions; each is called in one of them."""
    functions = [
        _GRADE.format(number=number, slot=number % 16, shift=3 + number % 5, long=(2 + number) * 1_000_000,
                      short=(1 + number) * 500_000)
        for number in range(grades)
    ]  # fmt: skip
    bodies = {member: _body(member, range(first, grades, len(_MEMBERS))) for first, member in enumerate(_MEMBERS)}
    return source_of(before=_BEFORE + "".join(functions), **bodies)


def _body(member: str, numbers: range) -> str:
    calls = "".join(f"\tsum = grade_{number}(held, now, sum);\n" for number in numbers)
    end, otherwise = _ENDS.get(member, ("held->score++;", "fell[0]++;"))
    return textwrap.dedent(f"""\
        struct record *held = bpf_task_storage_get(&records, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
        u64 now = scx_bpf_now(), sum = 0;

        if (!held) {{
            {otherwise}
            return;
        }}
        """) + calls + f"\theld->waited = sum;\n\t{end}\n"  # fmt: skip
