"""schedagentd: the one privileged process. Canaries, watches and reverts sched_ext loads; decides nothing else.

    messages ─► server ─► rollout ─► kernel (sched_ext, tasks, /proc)
                            │  └──► record (SQLite: intent before, confirmation after)
                            └─ admission (token, refusals), breaker (when to stop)

May import: schedagent.core, kernel_bpf.sched_ext, kernel_bpf.running and the standard library. No model, no compiler,
no network, no shell, no process of its own; a test holds the list of its modules.
"""
