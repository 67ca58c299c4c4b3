"""Faults without a condition: what is wrong, or may not be, in every policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.policy_fuzz.draft import Draft


@dataclass(frozen=True)
class Plain:
    """One fault.

    Args:
        kind: what is wrong, in words.
        plant: writes it into a draft.
        unsafe, static: see faults.Fault.
    """

    kind: str
    plant: Callable[[Draft], Draft]
    unsafe: bool = True
    static: bool = True


def _before(code: str, head: str = "") -> Callable[[Draft], Draft]:
    """Statements at the top of enqueue."""

    def plant(draft: Draft) -> Draft:
        return replace(draft.adding(head), before=f"{code}\n{draft.before}")

    return plant


def _with(head: str = "", ops: str = "", **callbacks: str) -> Callable[[Draft], Draft]:
    """A declaration, a line of the ops struct, statements of callbacks."""

    def plant(draft: Draft) -> Draft:
        return replace(draft.adding(head, **callbacks), ops=(*draft.ops, ops) if ops else draft.ops)

    return plant


def _unserved(draft: Draft) -> Draft:
    """Dispatch looks at nothing of what enqueue fills."""
    return replace(draft, classes=4, serve=("dsq_move_to_local(shared_queue(3))",))


def _timer_storm(draft: Draft) -> Draft:
    head = """
struct storm {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct storm);
} storms SEC(".maps");

static int storm(void *map, int *key, struct storm *self)
{
	bpf_timer_start(&self->timer, 1000, 0);
	return 0;
}
"""
    code = """{
	u32 zero = 0;
	struct storm *self = bpf_map_lookup_elem(&storms, &zero);

	if (!self)
		return -E2BIG;
	bpf_timer_init(&self->timer, &storms, 1);
	bpf_timer_set_callback(&self->timer, storm);
	bpf_timer_start(&self->timer, 1000, 0);
}
"""
    return replace(draft.adding(head), init=code + draft.init)


_NESTED = """u32 i, j;

	bpf_for(i, 0, 1 << 14) {
		bpf_for(j, 0, 1 << 14)
			wasted += i ^ j;
	}"""

_CALLBACK_LOOP = """
static u64 wasted;

static long waste(u64 index, void *context)
{
	u32 i;

	bpf_for(i, 0, 1 << 14)
		wasted += i;
	return 0;
}
"""

_PUSHED = """
struct kept_node {
	struct bpf_list_node node;
	u64 padding[60];
};

struct {
	struct bpf_spin_lock lock;
	struct bpf_list_head
		__attribute__((btf_decl_tag("contains:kept_node:node"))) nodes;
} kept SEC(".data.kept") __hidden __attribute__((aligned(8)));

static __always_inline void keep_one(void)
{
	struct kept_node *node;

	node = bpf_obj_new_impl(bpf_core_type_id_local(struct kept_node), NULL);
	if (!node)
		return;
	bpf_spin_lock(&kept.lock);
	bpf_list_push_back_impl(&kept.nodes, &node->node, NULL, 0);
	bpf_spin_unlock(&kept.lock);
}
"""

_ALL_PAIRS = """
static u64 pairs;

static __always_inline void compare_all(u64 queue)
{
	struct task_struct *a, *b;

	bpf_for_each(scx_dsq, a, queue, 0) {
		bpf_for_each(scx_dsq, b, queue, 0) {
			pairs += a->scx.weight < b->scx.weight;
		}
	}
}
"""

_LARGE_MAP = """
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 26);
	__type(key, u32);
	__type(value, u64);
} large SEC(".maps");
"""

_SEARCHED = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__type(key, u32);
	__type(value, u64);
} searched SEC(".maps");

static long look_at(void *map, u32 *key, u64 *value, void *context)
{
	return 0;
}
"""

_READ_USER = """
static char text[64];

static __always_inline void read_words(struct task_struct *p)
{
	u64 at = BPF_CORE_READ(p, mm, arg_start);

	bpf_probe_read_user(text, sizeof(text), (void *)at);
}
"""

_READ_KERNEL = """
static char text[64];

static __always_inline void read_words(struct task_struct *p)
{
	struct dentry *dentry = BPF_CORE_READ(p, fs, pwd.dentry);

	bpf_probe_read_kernel_str(text, sizeof(text),
					BPF_CORE_READ(dentry, d_name.name));
}
"""

_RING = """
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");
"""

_KEYS = """
SEC("tp_btf/sys_enter")
int BPF_PROG(listen, struct pt_regs *regs, long id)
{
	heard += id;
	return 0;
}
"""

_INFINITE = "bpf_core_enum_value(enum scx_public_consts, SCX_SLICE_INF)"

PLAIN: tuple[Plain, ...] = (
    Plain("nested loops", _before(_NESTED, "static u64 wasted;")),
    Plain("loop in a callback of a loop", _before("bpf_loop(1 << 14, waste, NULL, 0);", _CALLBACK_LOOP)),
    Plain("all pairs of a queue", _with(_ALL_PAIRS, tick="compare_all(shared_queue(0));\n")),
    Plain("search of a large map", _before("bpf_for_each_map_elem(&searched, look_at, NULL, 0);", _SEARCHED)),
    Plain("timer that storms", _timer_storm),
    Plain("list that only grows", _with(_PUSHED, running="keep_one();\n")),
    Plain("map of half a gigabyte", _with(_LARGE_MAP)),
    Plain("100 MiB of .bss", _with("char huge[100 << 20];", tick="huge[p->scx.weight & 63] = 1;\n")),
    Plain("read of user memory", _with(_READ_USER, tick="read_words(p);\n")),
    Plain("read of kernel memory", _with(_READ_KERNEL, tick="read_words(p);\n")),
    Plain("words in the kernel's trace", _before('bpf_printk("%d", p->pid);')),
    Plain("ring buffer that nobody reads", _before("bpf_ringbuf_output(&ring, &enq_flags, 8, 0);", _RING)),
    Plain("listens to system calls", _with("u64 heard;\n" + _KEYS)),
    Plain("only a part of the tasks", _with(ops=".flags = SCX_OPS_SWITCH_PARTIAL,")),
    Plain("slowest CPU", _with(tick="scx_bpf_cpuperf_set(scx_bpf_task_cpu(p), 0);\n")),
    Plain("more than full speed", _with(tick="scx_bpf_cpuperf_set(scx_bpf_task_cpu(p), 2048);\n")),
    Plain("inline assembly", _before('asm volatile("r0 = 0" ::: "r0");')),
    Plain("inserted twice", _before("dsq_insert(p, DSQ_GLOBAL, SLICE_NS, enq_flags);")),
    Plain("nothing is served", _unserved),
    Plain("queue that was not created", lambda draft: replace(draft, queue="(77777 + p->scx.weight % 2)")),
    Plain("infinite slice", lambda draft: replace(draft, slice_ns=_INFINITE, select_cpu="")),
    Plain("slice of a second", lambda draft: replace(draft, slice_ns="1000 * NSEC_PER_MSEC"), unsafe=False),
    Plain("CPU that does not exist", lambda draft: replace(draft, select_cpu="return prev_cpu + 4096;")),
)
