/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the probe reads of the kernel, and nothing else of it: with these few
 * types the object is compiled without the BTF of any kernel, and libbpf finds
 * each field where the running one has it (CO-RE).
 */
#ifndef SCHEDAGENT_KERNEL_TYPES_H
#define SCHEDAGENT_KERNEL_TYPES_H

#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef _Bool bool;

enum {
	false,
	true
};

#pragma clang attribute push(__attribute__((preserve_access_index)), \
			     apply_to = record)

struct kernfs_node {
	u64 id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct pt_regs {
	unsigned long orig_ax;
};

struct task_struct {
	int pid;
	int tgid;
	char comm[16];
	unsigned int flags;
	unsigned int policy;
	int static_prio;
	/* int, and u8 since 7.3: libbpf fits the loads of unsigned types only */
	u32 on_cpu;
	u32 on_rq;
	u64 start_time; /* CLOCK_MONOTONIC */
	struct task_struct *real_parent;
	struct css_set *cgroups;
};

/* Linux 6.2 to 6.14 keep the count of __preempt_count in here. */
struct pcpu_hot {
	int preempt_count;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

#endif
