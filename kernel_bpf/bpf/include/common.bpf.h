/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every policy needs: kernel types, callback macros, enum values
 * of the running kernel, time comparison, exit record and dump.
 *
 * Policies name enum values through the macros below. The numbers behind SCX_*
 * differ from kernel to kernel (SCX_ENQ_HEAD was 16 in 6.16 and is 65536 in
 * 7.3), and the 64-bit ones can be lost without a trace, so a literal from the
 * header of another kernel is a bug that nobody sees.
 */
#ifndef SCHEDAGENT_COMMON_BPF_H
#define SCHEDAGENT_COMMON_BPF_H

/* The BTF dump of kernels built with -fms-extensions has nested tagged structs,
 * which clang warns of; fields are relocated, so it does not matter here. */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wmissing-declarations"
#pragma clang diagnostic ignored "-Wmicrosoft-anon-tag"
#include "vmlinux.h"
#pragma clang diagnostic pop
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"

char _license[] SEC("license") = "GPL";

#define DSQ_LOCAL    bpf_core_enum_value(enum scx_dsq_id_flags, SCX_DSQ_LOCAL)
#define DSQ_GLOBAL   bpf_core_enum_value(enum scx_dsq_id_flags, SCX_DSQ_GLOBAL)
#define ENQ_WAKEUP   bpf_core_enum_value(enum scx_enq_flags, SCX_ENQ_WAKEUP)
#define ENQ_LAST     bpf_core_enum_value(enum scx_enq_flags, SCX_ENQ_LAST)
#define DEQ_SLEEP    bpf_core_enum_value(enum scx_deq_flags, SCX_DEQ_SLEEP)
#define KICK_IDLE    bpf_core_enum_value(enum scx_kick_flags, SCX_KICK_IDLE)
#define KICK_PREEMPT bpf_core_enum_value(enum scx_kick_flags, SCX_KICK_PREEMPT)
#define DSQ_ITER_REV \
	bpf_core_enum_value(enum scx_dsq_iter_flags, SCX_DSQ_ITER_REV)
#define TASK_QUEUED bpf_core_enum_value(enum scx_ent_flags, SCX_TASK_QUEUED)

#define E2BIG 7

#define NSEC_PER_USEC 1000ULL
#define NSEC_PER_MSEC 1000000ULL

/* Bounds that every slice is kept in: below, switching costs more than the
 * work done; above, a CPU is out of the policy's reach for too long. */
#define SLICE_MIN_NS (100 * NSEC_PER_USEC)
#define SLICE_MAX_NS (100 * NSEC_PER_MSEC)

/* The weight of a task at nice 0. */
#define WEIGHT_DEFAULT 100

/* A candidate that leaves a task waiting for longer than this is thrown out. */
#define WATCHDOG_MS 5000

/* For the dump that root may ask the kernel for (SysRq-D); we keep none. */
#define DUMP_BYTES 32768

/* One callback of the ops struct; the sleepable form may allocate. */
#define SCX_CALLBACK(name, args...) \
	SEC("struct_ops/" #name)    \
	BPF_PROG(name, ##args)
#define SCX_CALLBACK_SLEEPABLE(name, args...) \
	SEC("struct_ops.s/" #name)            \
	BPF_PROG(name, ##args)

/* The iterator behind bpf_for_each(), for kfuncs that act on what it shows. */
#define LOOP_ITERATOR (&___it)

static __always_inline bool time_before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

static __always_inline u64 clamp_slice(u64 slice_ns)
{
	if (slice_ns < SLICE_MIN_NS)
		return SLICE_MIN_NS;
	return slice_ns > SLICE_MAX_NS ? SLICE_MAX_NS : slice_ns;
}

/*
 * A slice in proportion to the task's weight: tasks served round robin then
 * share their CPU by weight, without virtual time.
 */
static __always_inline u64 weighted_slice(const struct task_struct *p,
					  u64 slice_ns)
{
	return clamp_slice(slice_ns * p->scx.weight / WEIGHT_DEFAULT);
}

/*
 * Why the policy ended, for the loader, which reads it from .data. @kind is
 * written last: a reader that sees it set finds the rest complete.
 */
struct user_exit_info {
	s32 kind;
	s32 pad;
	s64 exit_code;
	char reason[128];
	char msg[1024];
};

struct user_exit_info uei SEC(".data");

static __always_inline void record_exit(const struct scx_exit_info *ei)
{
	bpf_probe_read_kernel_str(uei.reason, sizeof(uei.reason), ei->reason);
	bpf_probe_read_kernel_str(uei.msg, sizeof(uei.msg), ei->msg);
	uei.exit_code = ei->exit_code;
	__sync_val_compare_and_swap(&uei.kind, 0, (s32)ei->kind);
}

/*
 * Formatted text for the debug dump, and for an error that ends the policy.
 * The format is not const: the kfuncs ask for memory they could write to.
 */
#define scx_format(kfunc, format, args...)                                  \
	({                                                                  \
		static char text[] = format;                                \
		unsigned long long values[___bpf_narg(args) + 1] = {};      \
		___bpf_fill(values, args);                                  \
		kfunc(text, values, ___bpf_narg(args) * sizeof(values[0])); \
	})
#define scx_dump(format, args...) scx_format(scx_bpf_dump_bstr, format, ##args)
#define scx_error(format, args...) \
	scx_format(scx_bpf_error_bstr, format, ##args)

#endif
