/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which task is which: the kernel side of core/policies/identity.py. A task is
 * known by the hash of its command line, taken when it execs, and by the hash
 * of its command name. The loader fills maps keyed by these hashes.
 *
 * A task that was only forked, or that is older than the policy, has just the
 * hash of its name.
 */
#ifndef SCHEDAGENT_IDENTITY_BPF_H
#define SCHEDAGENT_IDENTITY_BPF_H

#include "common.bpf.h"
#include "cmdline_hash.h"

#define COMM_BYTES 16

struct identity {
	u64 cmdline; /* 0: not known */
	u64 comm;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct identity);
} task_identity SEC(".maps");

/*
 * Too large for the stack; and what the loop reads from a map is any number to
 * the verifier, so it need not follow all 512 rounds with their values.
 */
struct exec_scratch {
	struct cmdline_hash hash;
	unsigned char text[CMDLINE_LIMIT_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct exec_scratch);
} exec_scratch SEC(".maps");

struct walk_context {
	struct exec_scratch *scratch;
};

static long walk_step(u64 index, struct walk_context *walk)
{
	struct exec_scratch *scratch = walk->scratch;

	cmdline_hash_step(&scratch->hash,
			  scratch->text[index % CMDLINE_LIMIT_BYTES]);
	return 0;
}

/* The identity of the command line of current, 0 if it cannot be read. */
static __always_inline u64 current_cmdline_hash(struct task_struct *p)
{
	struct walk_context walk;
	u64 start, length;
	u32 zero = 0;

	walk.scratch = bpf_map_lookup_elem(&exec_scratch, &zero);
	if (!walk.scratch)
		return 0;
	start = BPF_CORE_READ(p, mm, arg_start);
	length = BPF_CORE_READ(p, mm, arg_end) - start;
	if (length > CMDLINE_LIMIT_BYTES)
		length = CMDLINE_LIMIT_BYTES;
	if (bpf_probe_read_user(walk.scratch->text, length, (void *)start))
		return 0;
	cmdline_hash_start(&walk.scratch->hash);
	bpf_loop(length, walk_step, &walk, 0);
	return walk.scratch->hash.sum;
}

static __always_inline u64 task_comm_hash(struct task_struct *p)
{
	char comm[COMM_BYTES] = {};

	bpf_probe_read_kernel_str(comm, sizeof(comm), p->comm);
	return comm_hash(comm, COMM_BYTES - 1);
}

/* For ops.init_task: a task without a record is one that nobody knows. */
static __always_inline void identity_init(struct task_struct *p)
{
	struct identity *id;

	id = bpf_task_storage_get(&task_identity, p, NULL,
				  BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (id)
		id->comm = task_comm_hash(p);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(identify_exec, struct task_struct *p)
{
	struct identity *id;

	id = bpf_task_storage_get(&task_identity, p, NULL,
				  BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!id)
		return 0;
	id->cmdline = current_cmdline_hash(p);
	id->comm = task_comm_hash(p);
	return 0;
}

/*
 * What the loader's @map holds for the task: by command line, else by name.
 * NULL if it holds nothing.
 */
static __always_inline void *identity_lookup(struct task_struct *p, void *map)
{
	struct identity *id = bpf_task_storage_get(&task_identity, p, NULL, 0);
	void *value;

	if (!id)
		return NULL;
	value = bpf_map_lookup_elem(map, &id->cmdline);
	return value ?: bpf_map_lookup_elem(map, &id->comm);
}

#endif
