/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Cgroup bandwidth: cpu.max, which the kernel leaves to the policy. A cgroup
 * has a budget of CPU time, which every period fills up to its quota, and what
 * was left of it up to its burst. A task takes the slice it is about to run
 * from the budgets of its cgroup and of all above, before it joins a queue, so
 * that many CPUs cannot overdraw one together; when it stops it returns what is
 * left, or owes what it used beyond. A task that finds a budget empty waits in a
 * queue of its own, ordered by the time at which that is filled again.
 *
 * Include it before vtime.bpf.h and queues.bpf.h. The policy enqueues with
 * join_queue(), puts LIMIT_CALLBACKS before its ops struct and LIMIT_OPS
 * into it, instead of those of cgroups.bpf.h, and calls create_limits() in init
 * and return_budget() in quiescent. LIMIT_OPS sets SCX_OPS_ENQ_LAST: a task
 * that is alone on its CPU would otherwise continue without asking.
 */
#ifndef SCHEDAGENT_BANDWIDTH_BPF_H
#define SCHEDAGENT_BANDWIDTH_BPF_H

#include "cgroups.bpf.h"

/* The queue of those that wait for a budget; no class has this number. */
#define LIMIT_QUEUE (1ULL << 32)

/* How late the timer is at most, and how many tasks it looks at at once. */
#define LIMIT_LATE_NS  (10 * NSEC_PER_MSEC)
#define LIMIT_SOON_NS  (100 * NSEC_PER_USEC)
#define LIMIT_RELEASES 32

/* What a cgroup owes is forgotten beyond a second's quota: it bounds the wait. */
#define LIMIT_DEBT_US	 1000000ULL
#define NO_LIMIT_FROM_US (1ULL << 40)
#define MOST_PERIODS	 1000

struct cgroup_limit {
	u64 quota_ns; /* 0: no limit */
	u64 period_ns;
	u64 most_ns;   /* of the budget: quota and burst */
	s64 least_ns;  /* of the budget: minus the debt that is remembered */
	s64 budget_ns; /* what may still be used until @refill */
	u64 refill;    /* scx_bpf_now() when the next period begins */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CGROUPS_MAX);
	__type(key, u32);
	__type(value, struct cgroup_limit);
} cgroup_limits SEC(".maps");

struct limit_timer {
	struct bpf_timer timer;
	u64 due;       /* 0: it is not started */
	s32 nr_limits; /* how many cgroups have a limit */
	bool changed;  /* a limit, since it ran */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct limit_timer);
} limit_timers SEC(".maps");

static __always_inline struct cgroup_limit *cgroup_limit_at(u32 node)
{
	return bpf_map_lookup_elem(&cgroup_limits, &node);
}

static __always_inline struct limit_timer *the_limit_timer(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&limit_timers, &zero);
}

static __always_inline bool any_limits(void)
{
	struct limit_timer *timer = the_limit_timer();

	return timer && timer->nr_limits;
}

/* Begin the period that is due. Of two CPUs that see it, one does. */
static __always_inline void refill_budget(struct cgroup_limit *limit, u64 now)
{
	u64 due = limit->refill, period = limit->period_ns, periods;
	s64 budget, gain;

	if (time_before(now, due) || !period)
		return;
	periods = (now - due) / period + 1;
	if (__sync_val_compare_and_swap(&limit->refill, due,
					due + periods * period) != due)
		return;
	if (periods > MOST_PERIODS)
		periods = MOST_PERIODS;
	gain = periods * limit->quota_ns;
	budget = __sync_fetch_and_add(&limit->budget_ns, gain) + gain;
	if (budget > (s64)limit->most_ns)
		__sync_fetch_and_add(&limit->budget_ns,
				     (s64)limit->most_ns - budget);
	if (budget < limit->least_ns)
		__sync_fetch_and_add(&limit->budget_ns,
				     limit->least_ns - budget);
}

/*
 * When all budgets of a node and those above are filled again. 0: they are not
 * empty now.
 */
KEPT u64 budget_empty_until(u32 index, u64 now)
{
	u64 until = 0, filled, periods;
	struct cgroup_limit *limit;
	struct cgroup_node *node;
	s64 budget;
	u32 level;

	bpf_for(level, 0, CGROUPS_DEPTH) {
		limit = cgroup_limit_at(index);
		node = cgroup_node_at(index);
		if (!limit || !node)
			break;
		if (limit->quota_ns) {
			refill_budget(limit, now);
			budget = limit->budget_ns;
			if (budget <= 0) {
				periods = -budget / limit->quota_ns;
				filled = limit->refill +
					 periods * limit->period_ns;
				if (!until || time_before(until, filled))
					until = filled;
			}
		}
		if (index == ROOT_NODE)
			break;
		index = node->parent;
	}
	return until;
}

/* The least budget of a node and those above, of @wanted at most. */
KEPT s64 least_budget(u32 index, s64 wanted, u64 now)
{
	struct cgroup_limit *limit;
	struct cgroup_node *node;
	u32 level;

	bpf_for(level, 0, CGROUPS_DEPTH) {
		limit = cgroup_limit_at(index);
		node = cgroup_node_at(index);
		if (!limit || !node)
			break;
		if (limit->quota_ns) {
			refill_budget(limit, now);
			if (limit->budget_ns < wanted)
				wanted = limit->budget_ns;
		}
		if (index == ROOT_NODE)
			break;
		index = node->parent;
	}
	return wanted;
}

/* Add to the budgets of a node and those above. */
KEPT void add_budget(u32 index, s64 ns)
{
	struct cgroup_limit *limit;
	struct cgroup_node *node;
	u32 level;

	bpf_for(level, 0, CGROUPS_DEPTH) {
		limit = cgroup_limit_at(index);
		node = cgroup_node_at(index);
		if (!limit || !node)
			break;
		if (limit->quota_ns)
			__sync_fetch_and_add(&limit->budget_ns, ns);
		if (index == ROOT_NODE)
			break;
		index = node->parent;
	}
}

/* The task used its CPU for @used_ns of what it had taken. */
KEPT void charge_budget(struct task_struct *p, u64 used_ns)
{
	struct cgroup_task *task = cgroup_task_of(p);
	s64 rest;

	if (!task || (!task->taken_ns && !any_limits()))
		return;
	rest = task->taken_ns - used_ns;
	task->taken_ns = 0;
	if (rest)
		add_budget(task->node, rest);
}

/* For ops.quiescent: a task that leaves its queue runs no slice. */
static __always_inline void return_budget(struct task_struct *p)
{
	charge_budget(p, 0);
}

/*
 * Take a slice from the budgets that the task runs on: as much of it as there
 * is. 0: one of them is empty.
 */
KEPT u64 granted_slice(struct task_struct *p, u64 slice_ns)
{
	struct cgroup_task *task = cgroup_task_of(p);
	s64 left;

	if (!task || !any_limits())
		return slice_ns;
	left = least_budget(task->node, slice_ns, scx_bpf_now());
	if (left <= 0)
		return 0;
	slice_ns = clamp_slice(left);
	task->taken_ns += slice_ns;
	add_budget(task->node, -(s64)slice_ns);
	return slice_ns;
}

static __always_inline void start_limit_timer(u64 now, u64 due)
{
	struct limit_timer *timer = the_limit_timer();
	u64 delay = due - now;

	if (!timer || (timer->due && !time_before(due, timer->due)))
		return;
	if (delay > LIMIT_LATE_NS)
		delay = time_before(due, now) ? LIMIT_SOON_NS : LIMIT_LATE_NS;
	if (delay < LIMIT_SOON_NS)
		delay = LIMIT_SOON_NS;
	timer->due = now + delay;
	bpf_timer_start(&timer->timer, delay, 0);
}

/*
 * The task waits until its budgets are filled, and then joins @queue with the
 * key it has now: it waited there, too.
 */
static __always_inline void wait_for_budget(struct task_struct *p, u64 queue,
					    u64 slice_ns, u64 key,
					    u64 enq_flags)
{
	struct cgroup_task *task = cgroup_task_of(p);
	u64 now = scx_bpf_now(), until = now;

	if (task) {
		task->queue = queue;
		task->key = key;
		task->slice_ns = slice_ns;
		until = budget_empty_until(task->node, now) ?: now;
	}
	dsq_insert_vtime(p, LIMIT_QUEUE, slice_ns, until, enq_flags);
	start_limit_timer(now, until);
}

static __always_inline bool kick_idle_cpu(const struct task_struct *p)
{
	s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);

	if (cpu < 0)
		return false;
	scx_bpf_kick_cpu(cpu, KICK_IDLE);
	return true;
}

/*
 * The task joins @queue, or waits until its cgroup has a budget again. Returns
 * whether it still needs a CPU.
 */
KEPT bool join_queue(struct task_struct *p, u64 queue, u64 slice_ns, u64 key,
		     u64 enq_flags)
{
	u64 granted = granted_slice(p, slice_ns);

	if (!granted) {
		wait_for_budget(p, queue, slice_ns, key, enq_flags);
		return false;
	}
	if (enq_flags & ENQ_LAST) {
		dsq_insert(p, DSQ_LOCAL, granted, enq_flags);
		return false;
	}
	dsq_insert_vtime(p, queue, granted, key, enq_flags);
	return !kick_idle_cpu(p);
}

/* The timer: whoever has a budget again joins its queue, the others wait on. */
KEPT int release_waiting(void *map, u32 *zero, struct limit_timer *timer)
{
	u64 now = scx_bpf_now(), due = now, slice;
	struct bpf_iter_scx_dsq waiting;
	bool changed = timer->changed;
	struct cgroup_task *task;
	struct task_struct *p;
	u32 round;

	timer->due = 0;
	timer->changed = false;
	bpf_iter_scx_dsq_new(&waiting, LIMIT_QUEUE, 0);
	bpf_for(round, 0, LIMIT_RELEASES) {
		p = bpf_iter_scx_dsq_next(&waiting);
		if (!p) {
			due = now + LIMIT_LATE_NS;
			break;
		}
		if (!changed && time_before(now, p->scx.dsq_vtime)) {
			due = p->scx.dsq_vtime;
			break;
		}
		task = cgroup_task_of(p);
		if (!task)
			continue;
		slice = granted_slice(p, task->slice_ns);
		if (slice) {
			scx_bpf_dsq_move_set_slice(&waiting, slice);
			scx_bpf_dsq_move_set_vtime(&waiting, task->key);
			scx_bpf_dsq_move_vtime(&waiting, p, task->queue, 0);
			kick_idle_cpu(p);
			continue;
		}
		scx_bpf_dsq_move_set_vtime(
			&waiting, budget_empty_until(task->node, now) ?: now);
		scx_bpf_dsq_move_vtime(&waiting, p, LIMIT_QUEUE, 0);
	}
	bpf_iter_scx_dsq_destroy(&waiting);
	if (scx_bpf_dsq_nr_queued(LIMIT_QUEUE))
		start_limit_timer(now, due);
	return 0;
}

/* For ops.init. */
KEPT s32 create_limits(void)
{
	struct limit_timer *timer = the_limit_timer();
	s32 error = scx_bpf_create_dsq(LIMIT_QUEUE, -1);

	if (error || !timer)
		return error;
	bpf_timer_init(&timer->timer, &limit_timers, 1 /* CLOCK_MONOTONIC */);
	bpf_timer_set_callback(&timer->timer, release_waiting);
	return 0;
}

#if defined(HAVE_CGROUP_OPS) && defined(HAVE_CGROUP_SET_BANDWIDTH)

/* For ops.cgroup_init, after cgroup_enter(), and ops.cgroup_set_bandwidth. */
static __always_inline void cgroup_limit(struct cgroup *cgrp, u64 period_us,
					 u64 quota_us, u64 burst_us)
{
	u32 index = own_cgroup_node(cgrp);
	struct cgroup_limit *limit = cgroup_limit_at(index);
	struct limit_timer *timer = the_limit_timer();
	u64 now = scx_bpf_now(), quota_ns, debt_us;
	bool limited;

	if (!limit || !timer || index == ROOT_NODE)
		return;
	limited = quota_us && quota_us < NO_LIMIT_FROM_US && period_us;
	__sync_fetch_and_add(&timer->nr_limits, limited - !!limit->quota_ns);
	limit->quota_ns = 0;
	if (limited) {
		quota_ns = quota_us * NSEC_PER_USEC;
		debt_us = period_us < LIMIT_DEBT_US ? LIMIT_DEBT_US : period_us;
		limit->period_ns = period_us * NSEC_PER_USEC;
		limit->most_ns = quota_ns + burst_us * NSEC_PER_USEC;
		limit->least_ns = -(s64)(quota_ns * (debt_us / period_us));
		limit->budget_ns = quota_ns;
		limit->refill = now + limit->period_ns;
		limit->quota_ns = quota_ns;
	}
	if (scx_bpf_dsq_nr_queued(LIMIT_QUEUE) > 0) {
		timer->changed = true;
		start_limit_timer(now, now);
	}
}

/* For ops.cgroup_exit, before cgroup_leave(). */
static __always_inline void cgroup_unlimit(struct cgroup *cgrp)
{
	u32 index = own_cgroup_node(cgrp);
	struct cgroup_limit *limit = cgroup_limit_at(index);
	struct limit_timer *timer = the_limit_timer();

	if (!limit || !timer || index == ROOT_NODE || !limit->quota_ns)
		return;
	limit->quota_ns = 0;
	__sync_fetch_and_add(&timer->nr_limits, -1);
}

#define LIMIT_CALLBACKS                                                     \
	s32 SCX_CALLBACK_SLEEPABLE(limits_cgroup_init, struct cgroup *cgrp, \
				   struct scx_cgroup_init_args *args)       \
	{                                                                   \
		cgroup_enter(cgrp, args->weight, INIT_IDLE(args));          \
		cgroup_limit(cgrp, args->bw_period_us, args->bw_quota_us,   \
			     args->bw_burst_us);                            \
		return 0;                                                   \
	}                                                                   \
	void SCX_CALLBACK(limits_cgroup_exit, struct cgroup *cgrp)          \
	{                                                                   \
		cgroup_unlimit(cgrp);                                       \
		cgroup_leave(cgrp);                                         \
	}                                                                   \
	void SCX_CALLBACK(limits_cgroup_set_bandwidth, struct cgroup *cgrp, \
			  u64 period_us, u64 quota_us, u64 burst_us)        \
	{                                                                   \
		cgroup_limit(cgrp, period_us, quota_us, burst_us);          \
	}                                                                   \
	CGROUP_WEIGHT_CALLBACKS

#define LIMIT_OPS                                                            \
	CGROUP_OPS,                                                          \
		.cgroup_set_bandwidth = (void *)limits_cgroup_set_bandwidth, \
		.flags = SCX_OPS_ENQ_LAST

#else
#define LIMIT_CALLBACKS CGROUP_CALLBACKS
#define LIMIT_OPS	CGROUP_OPS
#endif

#endif
