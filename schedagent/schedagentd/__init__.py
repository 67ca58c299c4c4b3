"""schedagentd: the one privileged process. Canaries, watches and reverts sched_ext loads; decides nothing else.

    messages ─► server ─► rollout ─► kernel (sched_ext, tasks, /proc)
                            │  └──► record (SQLite: intent before, confirmation after)
                            └─ admission (token, refusals), breaker (when to stop)

No model, no compiler, no network, no shell, no process of its own; a test holds the list of its modules.

May import: kernel_bpf.load, kernel_bpf.observe, schedagent.core.
"""
