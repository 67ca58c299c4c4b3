/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The cgroup of a task, known by the hash of its name: the last part of its
 * path. Only the task's own cgroup counts, not its ancestors. The kernel side
 * of cgroup_identity() in schedagent/core/policies/identity.py.
 */
#ifndef SCHEDAGENT_CGROUP_NAME_BPF_H
#define SCHEDAGENT_CGROUP_NAME_BPF_H

#include "common.bpf.h"
#include "cmdline_hash.h"

#define CGROUP_NAME_BYTES 64

/* A task keeps the hash until it moves to another cgroup. */
struct cgroup_name {
	u64 cgroup; /* id of the cgroup that was hashed; 0: none yet */
	u64 hash;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct cgroup_name);
} cgroup_names SEC(".maps");

/* For ops.init_task: a task without a record is in no known cgroup. */
static __always_inline void cgroup_name_init(struct task_struct *p)
{
	bpf_task_storage_get(&cgroup_names, p, NULL,
			     BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline u64 hash_cgroup_name(struct task_struct *p)
{
	const char *name = BPF_CORE_READ(p, cgroups, dfl_cgrp, kn, name);
	char text[CGROUP_NAME_BYTES] = {};
	u64 hash = FNV_OFFSET;
	u32 i;

	bpf_probe_read_kernel_str(text, sizeof(text), name);
	bpf_for(i, 0, CGROUP_NAME_BYTES) {
		if (!text[i])
			break;
		hash = fnv1a_step(hash, text[i]);
	}
	return hash;
}

/* The hash of the name of the task's cgroup, 0 if it is not known. */
static __always_inline u64 cgroup_name_hash(struct task_struct *p)
{
	u64 cgroup = BPF_CORE_READ(p, cgroups, dfl_cgrp, kn, id);
	struct cgroup_name *known;

	known = bpf_task_storage_get(&cgroup_names, p, NULL, 0);
	if (!known)
		return 0;
	if (known->cgroup != cgroup) {
		known->hash = hash_cgroup_name(p);
		known->cgroup = cgroup;
	}
	return known->hash;
}

#endif
