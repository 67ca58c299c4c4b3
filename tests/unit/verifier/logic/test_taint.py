"""verifier.logic.taint: what a policy goes by, found however it is hidden; and what is none of it, left alone."""

import dataclasses

import pytest

from tests.support.small_policy import compiled
from tests.support.taint_cases import Case, case, images
from verifier.logic.taint.settle import reaches_of
from verifier.logic.taint.values import WITHOUT_BRANCH

SHARED = "INSERT(SHARED);"

ATTACKS = (
    # --- names, users, ids, in all ways to read them
    case("comm_bytes", "comm", "if (IN(p)->comm[0] == 's' && IN(p)->comm[1] == 's') return;" + SHARED),
    case("comm_word", "comm", "if (*(u64 *)IN(p)->comm == 0x64687373) return;" + SHARED),
    case("comm_halves", "comm", """
        u32 low = ((u32 *)IN(p)->comm)[0], high = ((u32 *)IN(p)->comm)[1];

        INSERT(low == 0x64687373 && !high ? 8 : SHARED);
        """),
    case("comm_hash", "comm", """
        char comm[16];
        u64 hash = 14695981039346656037ULL;
        int i;

        bpf_probe_read_kernel(comm, sizeof(comm), IN(p)->comm);
        for (i = 0; i < 16; i++)
            hash = (hash ^ comm[i]) * 1099511628211ULL;
        INSERT(hash == 4711 ? 8 : SHARED);
        """),
    case("comm_of_current", "comm", """
        char comm[16];

        bpf_get_current_comm(comm, sizeof(comm));
        if (comm[3] == 'd')
            return;
        INSERT(SHARED);
        """),
    case("comm_strncmp", "comm", """
        if (!bpf_strncmp(IN(p)->comm, 5, @_victim))
            return;
        INSERT(SHARED);
        """, before='const char @_victim[] = "sshd";'),
    case("uid_field", "uid", "if (IN(p)->cred->uid.val >= 1000) return;" + SHARED),
    case("uid_helper", "uid", "if ((u32)bpf_get_current_uid_gid() == 33) return;" + SHARED),
    case("gid_arithmetic", "gid", """
        u32 late = (IN(p)->cred->gid.val - 1000) >> 31;

        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + (1 - late) * SEC_NS, enq_flags);
        """),
    case("uid_at_a_place_that_varies", "uid", """
        volatile u64 slots[4];

        slots[scx_bpf_task_cpu(p) & 3] = IN(p)->cred->uid.val;
        INSERT(slots[1] == 1000 ? 8 : SHARED);
        """),
    case("uid_met_on_a_long_walk", "uid", """
        u64 total = 0;
        int i;

        @_table[7] = IN(p)->cred->uid.val;
        for (i = 255; i >= 0; i--)
            total ^= @_table[i];
        INSERT(total == 1000 ? 8 : SHARED);
        """, before="volatile u64 @_table[256];"),
    case("pid_range", "pid", "if (p->pid > 30000) return;" + SHARED),
    case("pid_bit", "pid", "INSERT(p->pid & 1 ? 8 : SHARED);"),
    case("pid_main_thread", "pid", "if (p->pid == IN(p)->tgid) return;" + SHARED),
    case("pid_recognised", "pid", """
        struct task_struct *victim = bpf_task_from_pid(4711);

        if (!victim)
            return;
        INSERT(victim == p ? 8 : SHARED);
        bpf_task_release(victim);
        """),
    case("pid_key_of_loader", "pid", """
        u32 key = IN(p)->tgid, *class = bpf_map_lookup_elem(&@_map, &key);

        INSERT(class ? 8 : SHARED);
        """, before="CASE_MAP(@_map, BPF_MAP_TYPE_HASH, 64, u32, u32);"),
    case("pid_current", "pid", "if (bpf_get_current_pid_tgid() >> 32 == 1) return;" + SHARED),
    case("parent_name", "parent", "if (IN(IN(p)->real_parent)->comm[0] == 's') return;" + SHARED),
    case("parent_itself", "parent", "if (IN(p)->real_parent == p) return;" + SHARED),
    case("cgroup_id", "cgroup", "if (BPF_CORE_READ(IN(p), cgroups, dfl_cgrp, kn, id) == 77) return;" + SHARED),
    case("cgroup_name", "cgroup", """
        const char *name = BPF_CORE_READ(IN(p), cgroups, dfl_cgrp, kn, name);
        char text[8] = {};

        bpf_probe_read_kernel_str(text, sizeof(text), name);
        INSERT(text[0] == 'u' ? 8 : SHARED);
        """),
    case("cgroup_of_task", "cgroup", """
        struct cgroup *cgrp = scx_bpf_task_cgroup(p);
        u64 id = cgrp->kn->id;

        bpf_cgroup_release(cgrp);
        INSERT(id > 100 ? 8 : SHARED);
        """),
    case("namespace", "namespace", "if (IN(p)->nsproxy->pid_ns_for_children->ns.inum != 1) return;" + SHARED),
    case("nice", "nice", "INSERT(IN(p)->static_prio > 130 ? 8 : SHARED);"),
    case("arguments", "arguments", """
        char text[16] = {};

        bpf_probe_read_user(text, sizeof(text), (void *)BPF_CORE_READ(IN(p), mm, arg_start));
        if (text[2] == 'x')
            return;
        INSERT(SHARED);
        """),
    case("argument_length", "arguments", """
        u64 length = BPF_CORE_READ(IN(p), mm, arg_end) - BPF_CORE_READ(IN(p), mm, arg_start);

        scx_bpf_dsq_insert(p, SHARED, SLICE + length * 1000, enq_flags);
        """),
    case("kernel_release", "kernel", "if (LINUX_KERNEL_VERSION >= 0x70400) return;" + SHARED),
    case("superuser_flag", "flags", "if (IN(p)->flags & 0x100) return;" + SHARED),
    case("superuser_flag_shifted", "flags", "INSERT(SHARED + ((IN(p)->flags >> 8) & 1));"),
    case("unknown_field", "kernel memory", "if (IN(p)->exit_code) return;" + SHARED),
    case("raw_offset", "kernel memory", "if (*(volatile u32 *)((char *)p + 640) == 5) return;" + SHARED),
    case("random", "random numbers", "if (!(bpf_get_prandom_u32() & 1023)) return;" + SHARED),
    # --- time
    case("uptime", "time since boot", "if (bpf_ktime_get_ns() > HOUR) return;" + SHARED),
    case("uptime_boot", "time since boot", "if (bpf_ktime_get_boot_ns() >> 42) return;" + SHARED),
    case("uptime_divided", "time since boot", "INSERT(SHARED + scx_bpf_now() / HOUR % 2);"),
    case("uptime_bit", "time since boot", "INSERT(SHARED + ((scx_bpf_now() >> 20) & 1));"),
    case("uptime_low_bits", "time since boot", "if ((u32)scx_bpf_now() < 1000) return;" + SHARED),
    case("uptime_shifted_constant", "time since boot", "if ((s64)(scx_bpf_now() - HOUR) > 0) return;" + SHARED),
    case("uptime_twice", "time since boot", """
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, 2 * scx_bpf_now(), enq_flags);
        """),
    case("uptime_in_slice", "time since boot", """
        scx_bpf_dsq_insert(p, SHARED, 20 * MS - (scx_bpf_now() >> 24), enq_flags);
        """),
    case("uptime_of_weight", "time since boot", "if (scx_bpf_now() > p->scx.weight * HOUR) return;" + SHARED),
    case("uptime_of_variable", "time since boot", "if (scx_bpf_now() > @_limit) return;" + SHARED,
         before="u64 @_limit = HOUR;"),
    case("jiffies", "time since boot", "if (jiffies > 500000000) return;" + SHARED),
    case("jiffies_helper", "time since boot", "if (bpf_jiffies64() % 100000 > 50000) return;" + SHARED),
    case("wall_clock", "wall clock", "if (bpf_ktime_get_tai_ns() > 1800000000ULL * SEC_NS) return;" + SHARED),
    case("born_late", "time since boot", "if (IN(p)->start_time > HOUR) return;" + SHARED),
    case("since_load", "time since load", "if (scx_bpf_now() - @_start > HOUR) return;" + SHARED,
         init="@_start = scx_bpf_now(); return 0;", before="u64 @_start;"),
    case("since_load_short", "time since load", "if (scx_bpf_now() - @_start > 2 * SEC_NS) return;" + SHARED,
         init="@_start = scx_bpf_now(); return 0;", before="u64 @_start;"),
    case("since_load_deadline", "time since load", "if ((s64)(@_end - scx_bpf_now()) < 0) return;" + SHARED,
         init="@_end = scx_bpf_now() + HOUR; return 0;", before="u64 @_end;"),
    case("since_first_use", "time since load", """
        if (!@_start)
            @_start = scx_bpf_now();
        if (scx_bpf_now() - @_start > HOUR)
            return;
        INSERT(SHARED);
        """, before="u64 @_start;"),
    case("since_first_use_by_flag", "time since load", """
        if (!@_started) {
            @_started = true;
            @_start = scx_bpf_now();
        }
        scx_bpf_dsq_insert(p, SHARED, 20 * MS - ((scx_bpf_now() - @_start) >> 20), enq_flags);
        """, before="u64 @_start; bool @_started;"),
    case("age_of_task", "time since load", """
        u64 *born = RECORD(@_map, p);

        if (!born)
            return;
        if (scx_bpf_now() - *born > 5 * SEC_NS)
            return;
        INSERT(SHARED);
        """, init_task="u64 *born = RECORD(@_map, p); if (born) *born = scx_bpf_now(); return 0;",
         before="CASE_STORAGE(@_map, u64);"),
    case("age_as_key", "time since load", """
        u64 *born = RECORD(@_map, p);

        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, born ? *born : 0, enq_flags);
        """, init_task="u64 *born = RECORD(@_map, p); if (born) *born = scx_bpf_now(); return 0;",
         before="CASE_STORAGE(@_map, u64);"),
    case("long_duration", "time since load", """
        u64 *last = RECORD(@_map, p), now = scx_bpf_now(), since;

        if (!last)
            return;
        since = now - *last;
        *last = now;
        if (since > 600 * SEC_NS)
            return;
        INSERT(SHARED);
        """, before="CASE_STORAGE(@_map, u64);"),
    case("long_duration_in_units", "time since load", """
        u64 *last = RECORD(@_map, p), now = scx_bpf_now(), since;

        if (!last)
            return;
        since = (now - *last) / 1000000;
        *last = now;
        INSERT(since > 60000 ? 8 : SHARED);
        """, before="CASE_STORAGE(@_map, u64);"),
    case("long_duration_by_weights", "time since load", """
        u64 *last = RECORD(@_map, p), now = scx_bpf_now(), since;

        if (!last)
            return;
        since = (now - *last) * 65536 / p->scx.weight * 65536 / p->scx.weight;
        *last = now;
        if (since > 600 * SEC_NS * 429496)
            return;
        INSERT(SHARED);
        """, before="CASE_STORAGE(@_map, u64);"),
    case("used_in_all", "runtime", "if (IN(p)->se.sum_exec_runtime > 60 * SEC_NS) return;" + SHARED),
    case("used_in_all_summed", "time since load", """
        u64 *total = RECORD(@_map, p);

        if (total && *total > 60 * SEC_NS)
            return;
        INSERT(SHARED);
        """, before="struct @_use { u64 total; u64 start; }; CASE_STORAGE(@_map, struct @_use);",
         running="struct @_use *use = RECORD(@_map, p); if (use) use->start = scx_bpf_now();",
         stopping="struct @_use *use = RECORD(@_map, p); if (use) use->total += scx_bpf_now() - use->start;"),
    case("used_in_all_in_ms", "time since load", """
        struct @_use *use = RECORD(@_map, p);

        INSERT(use && use->total_ms > 60000 ? 8 : SHARED);
        """, before="struct @_use { u64 total_ms; u64 start; }; CASE_STORAGE(@_map, struct @_use);",
         running="struct @_use *use = RECORD(@_map, p); if (use) use->start = scx_bpf_now();",
         stopping="""
         struct @_use *use = RECORD(@_map, p);

         if (use)
             use->total_ms += (scx_bpf_now() - use->start) / MS;
         """),
    # --- counters
    case("events", "counters", "if (@_events++ > 1000000) return;" + SHARED, before="u64 @_events;"),
    case("events_atomic", "counters", """
        if (__sync_fetch_and_add(&@_events, 1) > 1000000)
            return;
        INSERT(SHARED);
        """, before="u64 @_events;"),
    case("events_masked", "counters", "@_events++; INSERT(SHARED + ((@_events >> 20) & 1));", before="u64 @_events;"),
    case("events_of_tasks", "counters", "if (@_tasks > 5000) return;" + SHARED, before="u64 @_tasks;",
         init_task="@_tasks++; return 0;"),
    case("events_back_and_forth", "counters", """
        @_other = @_events + 1;
        @_events = @_other;
        if (@_events > 1000000)
            return;
        INSERT(SHARED);
        """, before="volatile u64 @_events, @_other;"),
    case("events_with_a_limit_in_data", "counters", "if (@_events++ > @_limit) return;" + SHARED,
         before="u64 @_events; u64 @_limit = 1000000;"),
    case("events_hidden_in_a_sum", "counters", """
        @_sum++;
        if (!p->scx.weight)
            @_sum += scx_bpf_now() - @_last;
        @_last = scx_bpf_now();
        if (@_sum > 1000000)
            return;
        INSERT(SHARED);
        """, before="volatile u64 @_sum, @_last;"),
    case("slice_shrinks", "counters", """
        u64 *count = RECORD(@_map, p);

        scx_bpf_dsq_insert(p, SHARED, count ? 20 * MS - (*count)++ * 1000 : SLICE, enq_flags);
        """, before="CASE_STORAGE(@_map, u64);"),
    case("penalty_grows", "counters", """
        u64 *count = RECORD(@_map, p);

        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + (count ? (*count)++ * MS : 0), enq_flags);
        """, before="CASE_STORAGE(@_map, u64);"),
    case("switches", "counters", "if (IN(p)->nvcsw > 100000) return;" + SHARED),
    # --- machines
    case("more_than_two_cpus", "cpus", "if (scx_bpf_nr_cpu_ids() > 2) return;" + SHARED),
    case("cpus_stored_in_init", "cpus", "if (@_many) return;" + SHARED, before="bool @_many;",
         init="@_many = scx_bpf_nr_cpu_ids() > 2; return 0;"),
    case("cpus_by_early_return", "cpus", "if (@_many) return;" + SHARED, before="bool @_many;",
         init="if (scx_bpf_nr_cpu_ids() < 3) return 0; @_many = true; return 0;"),
    case("cpus_divided", "cpus", "INSERT(SHARED + scx_bpf_nr_cpu_ids() / 4);"),
    case("cpus_less_two", "cpus", "@_rest = scx_bpf_nr_cpu_ids() - 2; if (@_rest) return;" + SHARED,
         before="u32 @_rest;"),
    case("number_of_a_cpu", "cpus", "if (scx_bpf_task_cpu(p) >= 2) return;" + SHARED),
    case("number_of_a_cpu_halved", "cpus", "if (scx_bpf_task_cpu(p) >> 1) return;" + SHARED),
    case("cpus_allowed", "cpus", "if (p->nr_cpus_allowed > 2) return;" + SHARED),
    case("cpus_allowed_weighed", "cpus", "if (bpf_cpumask_weight(p->cpus_ptr) > 2) return;" + SHARED),
    case("nodes", "nodes", "if (scx_bpf_nr_node_ids() > 1) return;" + SHARED),
    # --- channels: what is decided
    case("by_slice", "uid", "scx_bpf_dsq_insert(p, SHARED, IN(p)->cred->uid.val ? MS : SLICE, enq_flags);"),
    case("by_key", "uid", """
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + IN(p)->cred->uid.val, enq_flags);
        """),
    case("by_struct_of_arguments", "uid", """
        struct dsq_insert_vtime_args args = { .dsq_id = SHARED, .slice = SLICE, .vtime = IN(p)->cred->uid.val };

        __scx_bpf_dsq_insert_vtime(p, &args);
        """),
    case("by_flags", "uid", "scx_bpf_dsq_insert(p, SHARED, SLICE, IN(p)->cred->uid.val ? 1 : 0);"),
    case("by_kick", "uid", "INSERT(SHARED); if (IN(p)->cred->uid.val) scx_bpf_kick_cpu(0, PREEMPT);"),
    case("by_kicked_cpu", "uid", "INSERT(SHARED); scx_bpf_kick_cpu(IN(p)->cred->uid.val & 1, PREEMPT);"),
    case("by_error", "uid", """
        static char text[] = "enough";
        unsigned long long none[1] = {};

        if (IN(p)->cred->uid.val == 1000)
            scx_bpf_error_bstr(text, none, 0);
        INSERT(SHARED);
        """),
    case("by_select_cpu", "uid", select_cpu="return IN(p)->cred->uid.val ? 0 : prev_cpu;"),
    case("by_direct_insert", "uid", select_cpu="""
        if (!IN(p)->cred->uid.val)
            scx_bpf_dsq_insert(p, LOCAL, SLICE, 0);
        return prev_cpu;
        """),
    case("by_fork", "uid", init_task="return IN(p)->cred->uid.val == 1000 ? -1 : 0;"),
    case("by_tick", "uid", tick="if (IN(p)->cred->uid.val) p->scx.slice = 0;"),
    case("by_stored_key", "uid", stopping="p->scx.dsq_vtime += IN(p)->cred->uid.val * MS;"),
    case("by_loop", "uid", """
        u32 step, sum = 0;

        for (step = 0; step < (IN(p)->cred->uid.val & 0xfff); step++)
            barrier_var(sum);
        INSERT(SHARED);
        """),
    case("by_iterator", "uid", """
        int step;

        bpf_for(step, 0, IN(p)->cred->uid.val & 0xfff)
            @_sink += step;
        INSERT(SHARED);
        """, before="int @_sink;"),
    case("by_bpf_loop", "uid", "bpf_loop(IN(p)->cred->uid.val & 0xfff, @_step, NULL, 0);" + SHARED,
         before="static long @_step(u64 index, void *context) { return 0; }"),
    # --- channels: how it gets there
    case("via_storage", "uid", "u32 *class = RECORD(@_map, p); INSERT(class && *class ? 8 : SHARED);",
         running="u32 *class = RECORD(@_map, p); if (class) *class = IN(p)->cred->uid.val == 1000;",
         before="CASE_STORAGE(@_map, u32);"),
    case("via_storage_of_a_constant", "uid", "u32 *class = RECORD(@_map, p); INSERT(class && *class ? 8 : SHARED);",
         running="u32 *class = RECORD(@_map, p); if (class && IN(p)->cred->uid.val) *class = 1;",
         before="CASE_STORAGE(@_map, u32);"),
    case("via_presence", "uid", "INSERT(bpf_task_storage_get(&@_map, p, NULL, 0) ? 8 : SHARED);",
         running="if (IN(p)->cred->uid.val) RECORD(@_map, p);", before="CASE_STORAGE(@_map, u32);"),
    case("via_deletion", "uid", "INSERT(bpf_task_storage_get(&@_map, p, NULL, 0) ? 8 : SHARED);",
         running="RECORD(@_map, p);", stopping="if (IN(p)->cred->uid.val) bpf_task_storage_delete(&@_map, p);",
         before="CASE_STORAGE(@_map, u32);"),
    case("via_hash", "uid", """
        u32 key = p->pid;

        INSERT(bpf_map_lookup_elem(&@_map, &key) ? 8 : SHARED);
        """, running="""
        u32 key = p->pid, value = 1;

        if (IN(p)->cred->uid.val)
            bpf_map_update_elem(&@_map, &key, &value, 0);
        """, before="CASE_MAP(@_map, BPF_MAP_TYPE_HASH, 64, u32, u32);"),
    case("via_key", "uid", """
        u32 key = IN(p)->cred->uid.val, *class = bpf_map_lookup_elem(&@_map, &key);

        INSERT(class && *class ? 8 : SHARED);
        """, init="u32 key = 1000, value = 1; bpf_map_update_elem(&@_map, &key, &value, 0); return 0;",
         before="CASE_MAP(@_map, BPF_MAP_TYPE_HASH, 64, u32, u32);"),
    case("via_index", "uid", """
        u32 key = IN(p)->cred->uid.val & 15, *queue = bpf_map_lookup_elem(&@_map, &key);

        INSERT(queue ? *queue : SHARED);
        """, before="CASE_MAP(@_map, BPF_MAP_TYPE_ARRAY, 16, u32, u32);"),
    case("via_table", "uid", "INSERT(@_table[IN(p)->cred->uid.val & 7]);",
         before="const volatile u64 @_table[8] = { 7, 7, 7, 8, 7, 7, 7, 7 };"),
    case("via_global", "uid", "INSERT(@_queue);", running="@_queue = IN(p)->cred->uid.val ? 8 : SHARED;",
         before="u64 @_queue;"),
    case("via_queue", "uid", """
        u32 class = 0;

        bpf_map_pop_elem(&@_map, &class);
        INSERT(class ? 8 : SHARED);
        """, running="u32 class = IN(p)->cred->uid.val; bpf_map_push_elem(&@_map, &class, 0);", before="""
        struct {
            __uint(type, BPF_MAP_TYPE_QUEUE);
            __uint(max_entries, 64);
            __type(value, u32);
        } @_map SEC(".maps");
        """),
    case("via_subprogram", "uid", "INSERT(@_queue(p));", before="""
        static __noinline u64 @_queue(struct task_struct *p)
        {
            return IN(p)->cred->uid.val == 1000 ? 8 : SHARED;
        }
        """),
    case("via_subprogram_called", "uid", "if (IN(p)->cred->uid.val) @_put(p, 8); else @_put(p, SHARED);", before="""
        static __noinline void @_put(struct task_struct *p, u64 queue)
        {
            scx_bpf_dsq_insert(p, queue, SLICE, 0);
        }
        """),
    case("via_pointer", "uid", "u64 queue = SHARED; @_fill(p, &queue); INSERT(queue);", before="""
        static __noinline void @_fill(struct task_struct *p, u64 *queue)
        {
            if (IN(p)->cred->uid.val == 1000)
                *queue = 8;
        }
        """),
    case("via_context_of_a_loop", "uid", "u64 queue = SHARED; bpf_loop(2, @_step, &queue, 0); INSERT(queue);",
         before="""
        static long @_step(u64 index, u64 *queue)
        {
            if ((u32)bpf_get_current_uid_gid())
                *queue = 8;
            return 0;
        }
        """),
    case("via_spill", "uid", """
        volatile u64 queue = IN(p)->cred->uid.val;

        scx_bpf_kick_cpu(0, IDLE);
        INSERT(queue);
        """),
    case("via_bytes_of_the_stack", "uid", """
        u32 uid = IN(p)->cred->uid.val;
        volatile u8 bytes[4];

        bytes[0] = uid;
        bytes[1] = uid >> 8;
        INSERT(bytes[1] ? 8 : SHARED);
        """),
    case("via_tracing", "map values", "if (@_armed) return;" + SHARED, before="""
        bool @_armed;

        SEC("tp_btf/sched_process_exec")
        int BPF_PROG(@_exec, struct task_struct *p)
        {
            @_armed = true;
            return 0;
        }
        """),
    case("via_syscall", "map values", "if (@_armed) return;" + SHARED, before="""
        bool @_armed;

        SEC("syscall")
        int @_arm(void *context)
        {
            @_armed = true;
            return 0;
        }
        """),
    case("via_map_of_another", "map values", """
        u32 zero = 0, *armed = bpf_map_lookup_elem(&@_map, &zero);

        if (armed && *armed)
            return;
        INSERT(SHARED);
        """, before="CASE_MAP(@_map, BPF_MAP_TYPE_ARRAY, 1, u32, u32);"),
    case("via_timer", "time since load", "if (@_armed) return;" + SHARED, init="""
        u32 zero = 0;
        struct @_beat *beat = bpf_map_lookup_elem(&@_map, &zero);

        if (!beat)
            return 0;
        bpf_timer_init(&beat->timer, &@_map, 1);
        bpf_timer_set_callback(&beat->timer, @_ring);
        bpf_timer_start(&beat->timer, HOUR, 0);
        return 0;
        """, before="""
        struct @_beat { struct bpf_timer timer; };
        CASE_MAP(@_map, BPF_MAP_TYPE_ARRAY, 1, u32, struct @_beat);
        bool @_armed;

        static int @_ring(void *map, int *key, struct bpf_timer *timer)
        {
            @_armed = true;
            return 0;
        }
        """),
    case("via_timer_that_counts", "counters", "if (@_rings > 3600) return;" + SHARED, init="""
        u32 zero = 0;
        struct @_beat *beat = bpf_map_lookup_elem(&@_map, &zero);

        if (!beat)
            return 0;
        bpf_timer_init(&beat->timer, &@_map, 1);
        bpf_timer_set_callback(&beat->timer, @_ring);
        bpf_timer_start(&beat->timer, SEC_NS, 0);
        return 0;
        """, before="""
        struct @_beat { struct bpf_timer timer; };
        CASE_MAP(@_map, BPF_MAP_TYPE_ARRAY, 1, u32, struct @_beat);
        u64 @_rings;

        static int @_ring(void *map, int *key, struct bpf_timer *timer)
        {
            @_rings++;
            bpf_timer_start(timer, SEC_NS, 0);
            return 0;
        }
        """),
    case("via_atomic_exchange", "uid", "INSERT(@_queue);",
         running="__sync_val_compare_and_swap(&@_queue, 0, (u64)IN(p)->cred->uid.val);", before="u64 @_queue;"),
    # --- counters that do not look like any
    case("register_of_bits", "counters", """
        u32 bit = (@_bits ^ (@_bits >> 2)) & 1;

        @_bits = (@_bits >> 1) | (bit << 15);
        INSERT(@_bits & 0x100 ? 8 : SHARED);
        """, before="volatile u32 @_bits = 1;"),
    case("congruential_generator", "counters", """
        @_seed = @_seed * 1103515245 + 12345;
        INSERT(@_seed >> 30 ? 8 : SHARED);
        """, before="u32 @_seed = 1;"),
    case("odometer", "counters", "if (@_armed) return;" + SHARED, running="""
        if (++@_first < 48)
            return;
        @_first = 0;
        if (++@_second < 48)
            return;
        @_second = 0;
        if (++@_third >= 48)
            @_armed = true;
        """, before="u32 @_first, @_second, @_third; bool @_armed;"),
    case("nine_seconds_at_a_time", "counters", "if (@_rounds > 50) return;" + SHARED, running="""
        u64 now = scx_bpf_now();

        if (now - @_last < 9 * SEC_NS)
            return;
        @_last = now;
        @_rounds++;
        """, before="u64 @_last; u32 @_rounds;"),
    case("forgotten", "counters", """
        u32 key = 0, value = 1;

        if (!bpf_map_lookup_elem(&@_map, &key))
            return;
        key = p->pid;
        bpf_map_update_elem(&@_map, &key, &value, 0);
        INSERT(SHARED);
        """, before="CASE_MAP(@_map, 9 /* BPF_MAP_TYPE_LRU_HASH */, 4096, u32, u32);"),
    case("earliest_time", "time since load", """
        u64 *mine = RECORD(@_map, p), now = scx_bpf_now();

        if (!mine)
            return;
        *mine = *mine - 1 < now ? *mine : now;
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, now + (now - *mine) / 2, enq_flags);
        """, before="CASE_STORAGE(@_map, u64);"),
    # --- identities
    case("address_of_a_task", "kernel memory", "@_at = (u64)p; INSERT((@_at >> 13) & 31 ? 8 : SHARED);",
         before="volatile u64 @_at;"),
    case("credentials_by_address", "kernel memory", """
        if (IN(p)->cred != IN(bpf_get_current_task_btf())->cred)
            return;
        INSERT(SHARED);
        """),
    case("constant_cpu", "cpus", "INSERT(bpf_cpumask_test_cpu(5, p->cpus_ptr) ? 8 : SHARED);"),
    case("cpu_that_idles", "cpus", "INSERT(scx_bpf_test_and_clear_cpu_idle(4) ? 8 : SHARED);"),
    # --- what no branch shows, and what happens while no oracle looks
    case("flag_by_arithmetic", WITHOUT_BRANCH, """
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + (enq_flags >> 40 & 1) * SEC_NS, enq_flags);
        """),
    case("flag_of_the_task_by_arithmetic", WITHOUT_BRANCH, """
        u64 late = (u64)IN(p)->in_iowait << 33;

        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + late, enq_flags);
        """),
    case("table_that_is_full", WITHOUT_BRANCH, """
        u32 pid = IN(p)->tgid, one = 1;
        long error = bpf_map_update_elem(&@_seen, &pid, &one, 1);

        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + ((u64)error >> 4 & 1) * SEC_NS, enq_flags);
        """, before="CASE_MAP(@_seen, BPF_MAP_TYPE_HASH, 20000, u32, u32);"),
    case("error_kept_for_later", WITHOUT_BRANCH, """
        u32 pid = IN(p)->tgid, one = 1;

        INSERT(SHARED + (@_error & 1));
        @_error = bpf_map_update_elem(&@_seen, &pid, &one, 1);
        """, before="CASE_MAP(@_seen, BPF_MAP_TYPE_HASH, 20000, u32, u32);\nlong @_error;"),
    case("armed_by_a_dump", "a debug dump", """
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + @_armed * SEC_NS, enq_flags);
        """, before="u64 @_armed;", dump="@_armed = 1;"),
    case("armed_by_a_cpu_that_goes", "cpus", """
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now() + @_armed * SEC_NS, enq_flags);
        """, before="u64 @_armed;", cpu_offline="@_armed = 1;"),
)  # fmt: skip

INNOCENT = (
    case("fifo", "", "scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now(), enq_flags);"),
    case("sequence", "", "scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, @_next++, enq_flags);", before="u64 @_next;"),
    case("pinned", "", "INSERT(p->nr_cpus_allowed == 1 ? bpf_cpumask_first(p->cpus_ptr) : SHARED);"),
    case("kernel_threads", "", "INSERT(IN(p)->flags & 0x200000 ? LOCAL : SHARED);"),
    case("weight", "", "scx_bpf_dsq_insert(p, SHARED, SLICE * p->scx.weight / 100, enq_flags);"),
    case("heavy", "", "INSERT(p->scx.weight > 100 ? 8 : SHARED);"),
    case("wakers_first", "", "INSERT(enq_flags & 1 ? 8 : SHARED);"),
    case("queue_length", "", """
        scx_bpf_dsq_insert(p, SHARED, 20 * MS / (1 + scx_bpf_dsq_nr_queued(SHARED)), enq_flags);
        """),
    case("idle_cpu", "", """
        s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);

        INSERT(SHARED);
        if (cpu >= 0)
            scx_bpf_kick_cpu(cpu, IDLE);
        """),
    case("queue_of_cpu", "", "INSERT(scx_bpf_task_cpu(p));"),
    case("turns", "", dispatch="""
        u32 zero = 0, *turn = bpf_map_lookup_elem(&@_map, &zero);

        if (turn && ++*turn % 4 == 0 && scx_bpf_dsq_move_to_local(8))
            return;
        scx_bpf_dsq_move_to_local(SHARED);
        """, before="CASE_MAP(@_map, BPF_MAP_TYPE_ARRAY, 1, u32, u32);"),
    case("steals", "", dispatch="""
        int step;

        if (scx_bpf_dsq_move_to_local(cpu))
            return;
        bpf_for(step, 1, scx_bpf_nr_cpu_ids())
            if (scx_bpf_dsq_move_to_local((cpu + step) % scx_bpf_nr_cpu_ids()))
                return;
        """),
    case("too_many_cpus", "", SHARED, init="return scx_bpf_nr_cpu_ids() > 512 ? -7 : scx_bpf_create_dsq(SHARED, -1);"),
    case("burst", "", "struct @_use *use = RECORD(@_map, p); INSERT(use && use->burst > 3 * MS ? 8 : SHARED);",
         running="struct @_use *use = RECORD(@_map, p); if (use) use->start = IN(p)->se.sum_exec_runtime;",
         stopping="""
         struct @_use *use = RECORD(@_map, p);

         if (!use)
             return;
         use->burst += IN(p)->se.sum_exec_runtime - use->start;
         if (!runnable)
             use->burst = 0;
         """, before="struct @_use { u64 burst; u64 start; }; CASE_STORAGE(@_map, struct @_use);"),
    case("average", "", "u64 *average = RECORD(@_map, p); INSERT(average && *average > 50 * MS ? 8 : SHARED);",
         running="struct @_use *use = RECORD(@_map, p); if (use) use->start = scx_bpf_now();",
         stopping="""
         struct @_use *use = RECORD(@_map, p);

         if (use)
             use->average = (3 * use->average + scx_bpf_now() - use->start) / 4;
         """, before="struct @_use { u64 average; u64 start; }; CASE_STORAGE(@_map, struct @_use);"),
    case("waited_too_long", "", """
        u64 *since = RECORD(@_map, p);

        if (since)
            *since = scx_bpf_now();
        INSERT(SHARED);
        """, before="CASE_STORAGE(@_map, u64);",
         tick="u64 *since = RECORD(@_map, p); if (since && scx_bpf_now() - *since > SEC_NS) p->scx.slice = 0;"),
    case("vtime", "", """
        u64 vtime = p->scx.dsq_vtime;

        if ((s64)(vtime - (@_clock - SLICE)) < 0)
            vtime = @_clock - SLICE;
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, vtime, enq_flags);
        """, running="if ((s64)(@_clock - p->scx.dsq_vtime) < 0) @_clock = p->scx.dsq_vtime;",
         stopping="p->scx.dsq_vtime += (SLICE - p->scx.slice) * 100 / p->scx.weight;", before="u64 @_clock;"),
    case("pid_as_a_handle", "", """
        s32 pid = p->pid;

        if (bpf_map_push_elem(&@_map, &pid, 0))
            scx_bpf_dsq_insert(p, GLOBAL, SLICE, enq_flags);
        """, dispatch="""
        struct task_struct *p;
        s32 pid;

        if (bpf_map_pop_elem(&@_map, &pid))
            return;
        p = bpf_task_from_pid(pid);
        if (!p)
            return;
        scx_bpf_dsq_insert(p, GLOBAL, SLICE, 0);
        bpf_task_release(p);
        """, before="""
        struct {
            __uint(type, BPF_MAP_TYPE_QUEUE);
            __uint(max_entries, 64);
            __type(value, s32);
        } @_map SEC(".maps");
        """),
    case("records_by_pid", "", """
        u32 pid = p->pid;
        u64 *last = bpf_map_lookup_elem(&@_map, &pid);

        scx_bpf_dsq_insert(p, SHARED, last && *last < MS ? 2 * SLICE : SLICE, enq_flags);
        """, stopping="""
        u32 pid = p->pid;
        u64 used = SLICE - p->scx.slice;

        bpf_map_update_elem(&@_map, &pid, &used, 0);
        """, before="CASE_MAP(@_map, BPF_MAP_TYPE_HASH, 4096, u32, u64);"),
    case("statistics", "", "__sync_fetch_and_add(&@_inserted, 1);" + SHARED, before="u64 @_inserted;"),
    case("name_in_the_dump_only", "", SHARED, exit="@_name = *(u64 *)IN((void *)info)->comm;", before="u64 @_name;"),
    case("beat", "", SHARED, init="""
        u32 zero = 0;
        struct @_beat *beat = bpf_map_lookup_elem(&@_map, &zero);

        if (!beat)
            return 0;
        bpf_timer_init(&beat->timer, &@_map, 1);
        bpf_timer_set_callback(&beat->timer, @_ring);
        bpf_timer_start(&beat->timer, 5 * MS, 0);
        return 0;
        """, before="""
        struct @_beat { struct bpf_timer timer; };
        CASE_MAP(@_map, BPF_MAP_TYPE_ARRAY, 1, u32, struct @_beat);

        static int @_ring(void *map, int *key, struct bpf_timer *timer)
        {
            if (scx_bpf_dsq_nr_queued(SHARED))
                scx_bpf_kick_cpu(0, PREEMPT);
            bpf_timer_start(timer, 5 * MS, 0);
            return 0;
        }
        """),
    case("average_of_lengths", "", """
        @_average = (7 * @_average + scx_bpf_dsq_nr_queued(SHARED)) / 8;
        INSERT(@_average > 100 ? 8 : SHARED);
        """, before="u64 @_average;"),
    case("migration_disabled", "", "INSERT(p->cpus_ptr != &p->cpus_mask ? LOCAL : SHARED);"),
    case("three_of_one_then_the_other", "", dispatch="""
        if (@_turn < 3 && scx_bpf_dsq_move_to_local(SHARED)) {
            @_turn++;
            return;
        }
        @_turn = 0;
        scx_bpf_dsq_move_to_local(8);
        """, before="u32 @_turn;"),
    case("rescue", "", dispatch="""
        u64 now = scx_bpf_now();

        if ((s64)(now - @_next) >= 0) {
            scx_bpf_dsq_move_to_local(8);
            @_next = now + 50 * MS;
            return;
        }
        scx_bpf_dsq_move_to_local(SHARED);
        """, before="u64 @_next;"),
    case("branch_on_a_flag", "", "INSERT(enq_flags & 1ULL << 40 ? 8 : SHARED);"),
    case("flags_handed_on", "", "scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags & ~1ULL);"),
    case("branch_on_an_error", "", """
        u32 zero = 0, one = 1;

        if (bpf_map_update_elem(&@_seen, &zero, &one, 0))
            scx_bpf_kick_cpu(0, 0);
        INSERT(SHARED);
        """, before="CASE_MAP(@_seen, BPF_MAP_TYPE_HASH, 20, u32, u32);"),
    case("weight_of_a_cgroup", "", "scx_bpf_dsq_insert(p, SHARED, @_weight * MS, enq_flags);",
         before="u64 @_weight;", cgroup_set_weight="@_weight = weight;"),
    case("kfunc_of_a_newer_kernel", "", "if (bpf_ksym_exists(scx_bpf_newer_thing)) scx_bpf_newer_thing();" + SHARED),
)  # fmt: skip

ALL = (*ATTACKS, *INNOCENT)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_an_input_is_found_however_it_is_hidden(attack: Case) -> None:
    reaches = reaches_of(images(ALL)[attack.name])
    assert attack.reads in {reach.input for reach in reaches}
    assert all(reach.line and reach.decision for reach in reaches)


@pytest.mark.parametrize("policy", INNOCENT, ids=str)
def test_what_goes_by_none_is_left_alone(policy: Case) -> None:
    assert [(reach.input, reach.decision, reach.source_line) for reach in reaches_of(images(ALL)[policy.name])] == []


def test_a_variable_of_any_size_takes_none_of_our_memory(tmp_path):
    """A file holds nothing of the zeros that it asks for."""
    looks = "scx_bpf_dsq_insert(p, seen[p->pid & 63] ? SHARED : GLOBAL, SLICE, enq_flags);"
    image = compiled(tmp_path, before="u64 seen[64];", enqueue=looks, tick="seen[p->pid & 63] = bpf_get_prandom_u32();")
    vast = dataclasses.replace(image.variables["seen"], size=1 << 44)
    large = dataclasses.replace(image, variables={**image.variables, "seen": vast})
    inputs = [{reach.input for reach in reaches_of(each)} for each in (image, large)]
    assert inputs[0] == inputs[1] >= {"random numbers"}
