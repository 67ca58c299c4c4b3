"""Small policies that are told apart by what they go by, many in one source: compiled once, looked at one by one.

In a case's code `@` stands for its name, which begins all its functions, maps and variables.
"""

from __future__ import annotations

import functools
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_bpf.build.compile import compile_policy
from tests.support.small_policy import PARTS, START, TARGET, callback
from verifier.object.image import BpfImage
from verifier.object.reader import read_object

TASK = """
struct kuid { u32 val; } __attribute__((preserve_access_index));
struct cred { struct kuid uid; struct kuid gid; } __attribute__((preserve_access_index));
struct kernfs_node { u64 id; const char *name; } __attribute__((preserve_access_index));
struct cgroup { struct kernfs_node *kn; } __attribute__((preserve_access_index));
struct css_set { struct cgroup *dfl_cgrp; } __attribute__((preserve_access_index));
struct mm_struct { u64 arg_start; u64 arg_end; } __attribute__((preserve_access_index));
struct ns_common { u32 inum; } __attribute__((preserve_access_index));
struct pid_namespace { struct ns_common ns; } __attribute__((preserve_access_index));
struct nsproxy { struct pid_namespace *pid_ns_for_children; } __attribute__((preserve_access_index));
struct sched_entity { u64 sum_exec_runtime; u64 exec_start; } __attribute__((preserve_access_index));
struct task_struct___in {
	u32 flags;
	s32 tgid;
	s32 static_prio;
	u64 start_time;
	u64 nvcsw;
	char comm[16];
	const struct cred *cred;
	struct css_set *cgroups;
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	struct task_struct *real_parent;
	struct sched_entity se;
	u64 exit_code;
	u32 in_iowait;
} __attribute__((preserve_access_index));

#define IN(p)  ((struct task_struct___in *)(p))
#define SEC_NS 1000000000ULL
#define HOUR   (3600 * SEC_NS)
#define MS     1000000ULL

extern u32 scx_bpf_nr_node_ids(void) KFUNC;
extern u32 bpf_cpumask_weight(const struct cpumask *mask) KFUNC;
extern struct cgroup *scx_bpf_task_cgroup(struct task_struct *p) KFUNC;
extern void bpf_cgroup_release(struct cgroup *cgrp) KFUNC;
extern int LINUX_KERNEL_VERSION __kconfig;
extern const unsigned long jiffies __ksym;
#define CASE_MAP(name, kind, slots, key_type, value_type)	\\
	struct {						\\
		__uint(type, kind);				\\
		__uint(max_entries, slots);			\\
		__type(key, key_type);				\\
		__type(value, value_type);			\\
	} name SEC(".maps")
#define CASE_STORAGE(name, value_type)				\\
	struct {						\\
		__uint(type, BPF_MAP_TYPE_TASK_STORAGE);	\\
		__uint(map_flags, 1);				\\
		__type(key, int);				\\
		__type(value, value_type);			\\
	} name SEC(".maps")
#define RECORD(map, p) bpf_task_storage_get(&map, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE)
#define INSERT(queue)  scx_bpf_dsq_insert(p, queue, SLICE, enq_flags)
"""


@dataclass(frozen=True)
class Case:
    """One policy.

    Args:
        name: a C identifier.
        reads: an input that it goes by; empty if it goes by none.
        before: code before its callbacks.
        bodies: what its callbacks do.
    """

    name: str
    reads: str
    bodies: tuple[tuple[str, str], ...]
    before: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        parts = [self.before]
        for member, body in self.bodies:
            parts.append(callback(member, body).replace(f"t_{member}", f"@_{member}"))
        return "\n".join(textwrap.dedent(part) for part in parts).replace("@", self.name)


def case(name: str, reads: str = "", enqueue: str = "", *, before: str = "", **bodies: str) -> Case:
    """A case; most need one callback only."""
    return Case(name, reads, ((("enqueue", enqueue),) if enqueue else ()) + tuple(bodies.items()), before)


@functools.cache
def images(cases: tuple[Case, ...]) -> Mapping[str, BpfImage]:
    """Compile them all together; return each by itself."""
    ops = 'SEC(".struct_ops.link")\nstruct sched_ext_ops t = {\n\t.init = (void *)t_init,\n\t.name = "t",\n};\n'
    source = "\n".join((START, TASK, textwrap.dedent(PARTS["init"]), *(each.text for each in cases), ops))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.bpf.c"
        path.write_text(source)
        image = read_object(compile_policy(path, "t", TARGET).object_bytes)
    return {each.name: _only(image, each, cases) for each in cases}


def _only(image: BpfImage, wanted: Case, cases: tuple[Case, ...]) -> BpfImage:
    """The object as if it held one case only."""
    functions = {name: each for name, each in image.functions.items() if _owner(name, cases) == wanted.name}
    callbacks = {member: f"{wanted.name}_{member}" for member, _body in wanted.bodies}
    return replace(image, functions=functions, ops=(replace(image.ops[0], callbacks=callbacks),))


def _owner(function: str, cases: tuple[Case, ...]) -> str:
    return max((each.name for each in cases if function.startswith(f"{each.name}_")), key=len, default="")
