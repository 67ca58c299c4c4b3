/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tasks do, counted where the kernel schedules them: how long each ran,
 * waited for a CPU and slept, in which system call, and who woke it.
 *
 * Every watched task has a record (task storage). It is made where no run
 * queue is locked: by the iterator `seed` for tasks that are there, at their
 * fork for others. The tracing programs only look it up, so a task that is not
 * watched costs two look-ups. A record is written under the lock of its task's
 * run queue, so its counters are plain. `report` writes all records out; what
 * ended is added up by command.
 *
 * All maps are bounded, and what does not fit is counted. Weakness: a kernel
 * before 5.18 has no prev_state, and refuses `on_switch`.
 */
#include "kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "GPL";

#define BUCKETS	      48
#define CALLS	      4
#define COMM	      16
#define MOST_TASKS    16384
#define MOST_COMMANDS 1024
#define MOST_EDGES    16384
#define MOST_EVENTS   131072
#define DEEPEST	      64

/* include/linux/sched.h */
#define TASK_UNINTERRUPTIBLE 0x2
#define TASK_NOLOAD	     0x400
#define PF_KTHREAD	     0x200000

/* Watch the tree that begins with this process, what is in this cgroup, or
 * without both everything. */
const volatile u32 root_tgid = 0;
const volatile u64 cgroup_id = 0;
/* Bits of the preemption count: serving a softirq, in a hardirq, in an NMI.
 * The loader knows where this kernel has them. */
const volatile u32 interrupt_mask = 0xff0100;
/* Keep single switches, too, until `events` is full. */
const volatile u32 tracing = 0;

enum state {
	UNKNOWN,
	RUNNING,
	WOKEN,
	PREEMPTED,
	SLEEPING,
	BLOCKED
};

struct call {
	u32 number; /* of the system call, plus 1; 0: none */
	u32 count;
};

struct figures {
	u64 run_ns;
	u64 wait_ns;
	u64 sleep_ns;
	u64 block_ns;
	u64 longest_wait_ns;
	u64 runs;
	u64 preempted;
	u64 wakeups;
	u64 wakes;
	u64 migrations;
	u32 woken_wait[BUCKETS]; /* from a wake-up to the CPU */
	u32 preempted_wait
		[BUCKETS];	  /* from losing the CPU to having it again */
	u32 run[BUCKETS];	  /* how long it kept the CPU */
	struct call calls[CALLS]; /* in which it slept: space-saving counters */
};

struct record {
	u64 since;
	u32 state;
	s32 cpu;
	struct figures figures;
};

struct command_key {
	char comm[COMM];
	u32 policy;
	u32 kernel_thread;
};

struct command {
	u64 tasks;
	u32 lived_ms[BUCKETS]; /* of processes, not of their further threads */
	struct figures figures;
};

struct edge_key {
	u32 waker; /* 0: an interrupt */
	u32 wakee;
};

struct edge {
	u64 count;
	char waker[COMM];
	char wakee[COMM];
};

/* One switch: from `at` on `cpu` runs `pid`, which waited for it; 0: nobody,
 * or somebody who is not watched. */
struct event {
	u64 at;
	u64 waited_ns;
	u32 pid;
	u32 tgid;
	u32 cpu;
	u32 previous_state;
	char comm[COMM];
};

/* What `report` writes in front of a task's figures. */
struct row {
	u32 pid;
	u32 tgid;
	u32 policy;
	s32 nice;
	u32 kernel_thread;
	u32 state;
	u64 in_state_ns; /* not in the figures yet */
	char comm[COMM];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct record);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MOST_COMMANDS);
	__type(key, struct command_key);
	__type(value, struct command);
} commands SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MOST_EDGES);
	__type(key, struct edge_key);
	__type(value, struct edge);
} edges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MOST_EVENTS);
	__type(key, u32);
	__type(value, struct event);
} events SEC(".maps");

static const struct command no_command;

u64 next_event;
u64 watched;
u64 lost_tasks;
u64 lost_commands;
u64 lost_edges;

extern const int __preempt_count __ksym __weak;
extern const struct pcpu_hot pcpu_hot __ksym __weak;

static __always_inline struct record *record_of(struct task_struct *p)
{
	return bpf_task_storage_get(&records, p, NULL, 0);
}

static __always_inline bool in_interrupt(void)
{
	u32 count = 0;

	if (bpf_ksym_exists(&__preempt_count))
		count = *(const u32 *)bpf_this_cpu_ptr(&__preempt_count);
	else if (bpf_ksym_exists(&pcpu_hot))
		count = ((const struct pcpu_hot *)bpf_this_cpu_ptr(&pcpu_hot))
				->preempt_count;
	return count & interrupt_mask;
}

/*
 * The bucket of a time: two for each power of two of microseconds, [2^n,
 * 1.5 * 2^n) and the rest; the last one holds all that is longer.
 */
static __always_inline u32 bucket_of(u64 ns)
{
	u64 us = ns / 1000, rest = us;
	u32 power = 0, bucket;

	if (us < 2)
		return us;
	if (rest >> 32)
		return BUCKETS - 1;
	if (rest >> 16) {
		power += 16;
		rest >>= 16;
	}
	if (rest >> 8) {
		power += 8;
		rest >>= 8;
	}
	if (rest >> 4) {
		power += 4;
		rest >>= 4;
	}
	if (rest >> 2) {
		power += 2;
		rest >>= 2;
	}
	power += rest >> 1;
	bucket = 2 * power + ((us >> (power - 1)) & 1);
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static __always_inline void count_in(u32 *buckets, u64 ns)
{
	u64 bucket = bucket_of(ns);

	barrier_var(bucket); /* or the kernel's verifier sees a copy checked */
	if (bucket < BUCKETS)
		buckets[bucket]++;
}

static __always_inline u64 since(u64 now, u64 then)
{
	return now > then ? now - then : 0;
}

/*
 * Count the system call that a task sleeps in. With more calls than counters
 * the rarest makes room, and its successor inherits its count: frequent ones
 * stay (Metwally, Agrawal, El Abbadi, 2005: the space-saving algorithm).
 */
static __always_inline void count_call(struct figures *figures, u32 number)
{
	u32 rarest = 0;

#pragma unroll
	for (u32 i = 0; i < CALLS; i++) {
		if (figures->calls[i].number == number) {
			figures->calls[i].count++;
			return;
		}
		if (figures->calls[i].count < figures->calls[rarest & 3].count)
			rarest = i;
	}
	figures->calls[rarest & 3].number = number;
	figures->calls[rarest & 3].count++;
}

/* The system call that a task of user space is in; 0: none, a page fault. */
static __always_inline u32 call_of(struct task_struct *p)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(p);
	long number = BPF_CORE_READ(regs, orig_ax);

	return number >= 0 && number < 4096 ? number + 1 : 0;
}

static __always_inline bool in_tree(struct task_struct *p)
{
	for (int depth = 0; depth < DEEPEST && p; depth++) {
		u32 tgid = BPF_CORE_READ(p, tgid);

		if (tgid == root_tgid)
			return true;
		if (tgid <= 1)
			return false;
		p = BPF_CORE_READ(p, real_parent);
	}
	return false;
}

static __always_inline bool below(struct cgroup *cgroup)
{
	for (int depth = 0; depth < DEEPEST && cgroup; depth++) {
		struct cgroup_subsys_state *parent;

		if (BPF_CORE_READ(cgroup, kn, id) == cgroup_id)
			return true;
		parent = BPF_CORE_READ(cgroup, self.parent);
		if (!parent)
			return false;
		cgroup = BPF_CORE_READ(parent, cgroup);
	}
	return false;
}

static __always_inline bool in_scope(struct task_struct *p)
{
	if (root_tgid)
		return in_tree(p);
	return !cgroup_id || below(BPF_CORE_READ(p, cgroups, dfl_cgrp));
}

/* Where run queues are locked this must not be called: it may allocate. */
static __always_inline void watch(struct task_struct *p)
{
	struct record *record;

	if (record_of(p))
		return;
	if (watched >= MOST_TASKS) {
		__sync_fetch_and_add(&lost_tasks, 1);
		return;
	}
	record = bpf_task_storage_get(&records, p, NULL,
				      BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!record) {
		__sync_fetch_and_add(&lost_tasks, 1);
		return;
	}
	__sync_fetch_and_add(&watched, 1);
	record->cpu = -1;
	record->since = bpf_ktime_get_ns();
	if (p->on_cpu)
		record->state = RUNNING;
	else if (p->on_rq)
		record->state = PREEMPTED;
	else
		record->state = SLEEPING;
}

static __always_inline void switch_out(struct task_struct *p, u64 now,
				       bool runnable, u32 state)
{
	struct record *record = record_of(p);
	u64 ran;

	if (!record)
		return;
	if (record->state == RUNNING) {
		ran = since(now, record->since);
		record->figures.run_ns += ran;
		count_in(record->figures.run, ran);
	}
	record->since = now;
	if (runnable) {
		record->figures.preempted++;
		record->state = PREEMPTED;
		return;
	}
	record->state = (state & TASK_UNINTERRUPTIBLE) && !(state & TASK_NOLOAD)
				? BLOCKED
				: SLEEPING;
	if (!(p->flags & PF_KTHREAD))
		count_call(&record->figures, call_of(p));
}

/* Return how long it waited, if it is watched. */
static __always_inline u64 switch_in(struct task_struct *p, u64 now)
{
	struct record *record = record_of(p);
	s32 cpu = bpf_get_smp_processor_id();
	u64 waited = 0;

	if (!record)
		return 0;
	if (record->state == WOKEN || record->state == PREEMPTED) {
		waited = since(now, record->since);
		record->figures.wait_ns += waited;
		if (waited > record->figures.longest_wait_ns)
			record->figures.longest_wait_ns = waited;
		if (record->state == WOKEN)
			count_in(record->figures.woken_wait, waited);
		else
			count_in(record->figures.preempted_wait, waited);
	}
	if (record->cpu >= 0 && record->cpu != cpu)
		record->figures.migrations++;
	record->figures.runs++;
	record->cpu = cpu;
	record->since = now;
	record->state = RUNNING;
	return waited;
}

static __always_inline void keep_event(struct task_struct *next, u64 now,
				       u64 waited, u32 previous_state)
{
	u64 number = __sync_fetch_and_add(&next_event, 1);
	u32 place = number;
	struct event *event;

	if (number >= MOST_EVENTS)
		return;
	event = bpf_map_lookup_elem(&events, &place);
	if (!event)
		return;
	event->waited_ns = waited;
	event->pid = record_of(next) ? next->pid : 0;
	event->tgid = event->pid ? next->tgid : 0;
	event->cpu = bpf_get_smp_processor_id();
	event->previous_state = previous_state;
	__builtin_memcpy(event->comm, next->comm, COMM);
	event->at = now;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev,
	     struct task_struct *next, unsigned int prev_state)
{
	u64 now = bpf_ktime_get_ns(), waited;
	bool runnable = preempt || !prev_state;

	switch_out(prev, now, runnable, prev_state);
	waited = switch_in(next, now);
	if (tracing && (record_of(prev) || record_of(next)))
		keep_event(next, now, waited, runnable ? 0 : prev_state);
	return 0;
}

static __always_inline void woken(struct task_struct *p)
{
	struct record *record = record_of(p);
	u64 now;

	if (!record || record->state < SLEEPING)
		return;
	now = bpf_ktime_get_ns();
	if (record->state == BLOCKED)
		record->figures.block_ns += since(now, record->since);
	else
		record->figures.sleep_ns += since(now, record->since);
	record->figures.wakeups++;
	record->since = now;
	record->state = WOKEN;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(on_wakeup, struct task_struct *p)
{
	woken(p);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_wakeup_new, struct task_struct *p)
{
	struct record *record = record_of(p);

	if (record) {
		record->since = bpf_ktime_get_ns();
		record->state = WOKEN;
	}
	return 0;
}

static __always_inline void count_wakeup(struct task_struct *waker,
					 struct task_struct *wakee,
					 bool interrupt)
{
	struct edge_key key = {.wakee = wakee->pid};
	struct edge *edge, fresh = {.count = 1};
	struct record *by;

	if (!interrupt) {
		key.waker = waker->pid;
		by = record_of(waker);
		if (by)
			by->figures.wakes++;
	}
	if (!record_of(wakee))
		return;
	edge = bpf_map_lookup_elem(&edges, &key);
	if (edge) {
		__sync_fetch_and_add(&edge->count, 1);
		return;
	}
	if (!interrupt)
		__builtin_memcpy(fresh.waker, waker->comm, COMM);
	__builtin_memcpy(fresh.wakee, wakee->comm, COMM);
	if (bpf_map_update_elem(&edges, &key, &fresh, BPF_NOEXIST))
		__sync_fetch_and_add(&lost_edges, 1);
}

/* Raised where the waker runs; sched_wakeup may be raised on the other CPU. */
SEC("?tp_btf/sched_waking")
int BPF_PROG(on_waking, struct task_struct *p)
{
	count_wakeup(bpf_get_current_task_btf(), p, in_interrupt());
	return 0;
}

/*
 * For kernels that hide where the count is (without CONFIG_KALLSYMS_ALL): only
 * what interrupts an idle CPU is known to be an interrupt.
 */
SEC("?tp_btf/sched_waking")
int BPF_PROG(on_waking_guessed, struct task_struct *p)
{
	struct task_struct *waker = bpf_get_current_task_btf();

	count_wakeup(waker, p, waker->pid == 0);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	if (root_tgid ? !!record_of(parent) : in_scope(child))
		watch(child);
	return 0;
}

static __always_inline void fill_key(struct command_key *key,
				     struct task_struct *p)
{
	__builtin_memcpy(key->comm, p->comm, COMM);
	key->policy = p->policy;
	key->kernel_thread = !!(p->flags & PF_KTHREAD);
}

static __always_inline void add_buckets(u32 *sum, const u32 *part)
{
	for (int i = 0; i < BUCKETS; i++)
		if (part[i])
			__sync_fetch_and_add(&sum[i], part[i]);
}

static __always_inline void add_figures(struct figures *sum,
					const struct figures *part)
{
	__sync_fetch_and_add(&sum->run_ns, part->run_ns);
	__sync_fetch_and_add(&sum->wait_ns, part->wait_ns);
	__sync_fetch_and_add(&sum->sleep_ns, part->sleep_ns);
	__sync_fetch_and_add(&sum->block_ns, part->block_ns);
	__sync_fetch_and_add(&sum->runs, part->runs);
	__sync_fetch_and_add(&sum->preempted, part->preempted);
	__sync_fetch_and_add(&sum->wakeups, part->wakeups);
	__sync_fetch_and_add(&sum->wakes, part->wakes);
	__sync_fetch_and_add(&sum->migrations, part->migrations);
	if (part->longest_wait_ns > sum->longest_wait_ns)
		sum->longest_wait_ns = part->longest_wait_ns;
	add_buckets(sum->woken_wait, part->woken_wait);
	add_buckets(sum->preempted_wait, part->preempted_wait);
	add_buckets(sum->run, part->run);
}

static __always_inline void count_life(struct command *command,
				       struct task_struct *p)
{
	u64 lived_ns = since(bpf_ktime_get_ns(), p->start_time);
	u64 bucket = bucket_of(lived_ns / 1000);

	barrier_var(bucket);
	if (bucket < BUCKETS)
		__sync_fetch_and_add(&command->lived_ms[bucket], 1);
}

/* Add what a task did to its command, and watch it no longer. */
static __always_inline void dismiss(struct task_struct *p)
{
	struct record *record = record_of(p);
	struct command_key key = {};
	struct command *command;

	if (!record)
		return;
	if (record->state == RUNNING)
		record->figures.run_ns +=
			since(bpf_ktime_get_ns(), record->since);
	fill_key(&key, p);
	command = bpf_map_lookup_elem(&commands, &key);
	if (!command) {
		bpf_map_update_elem(&commands, &key, &no_command, BPF_NOEXIST);
		command = bpf_map_lookup_elem(&commands, &key);
	}
	if (command) {
		__sync_fetch_and_add(&command->tasks, 1);
		if (p->pid == p->tgid)
			count_life(command, p);
		add_figures(&command->figures, &record->figures);
	} else {
		__sync_fetch_and_add(&lost_commands, 1);
	}
	bpf_task_storage_delete(&records, p);
	__sync_fetch_and_add(&watched, -1);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *p)
{
	dismiss(p);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_attach, struct cgroup *to, const char *path,
	     struct task_struct *p)
{
	if (!cgroup_id)
		return 0;
	if (below(to))
		watch(p);
	else
		dismiss(p);
	return 0;
}

SEC("iter/task")
int seed(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task;

	if (p && in_scope(p))
		watch(p);
	return 0;
}

SEC("iter/task")
int report(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task;
	struct seq_file *seq = ctx->meta->seq;
	struct record *record;
	struct row row = {};

	if (!p)
		return 0;
	record = record_of(p);
	if (!record)
		return 0;
	row.pid = p->pid;
	row.tgid = p->tgid;
	row.policy = p->policy;
	row.nice = p->static_prio - 120;
	row.kernel_thread = !!(p->flags & PF_KTHREAD);
	row.state = record->state;
	row.in_state_ns = since(bpf_ktime_get_ns(), record->since);
	__builtin_memcpy(row.comm, p->comm, COMM);
	bpf_seq_write(seq, &row, sizeof(row));
	bpf_seq_write(seq, &record->figures, sizeof(record->figures));
	return 0;
}
