"""schedagentd: the one privileged process. Rolls out, watches and reverts sched_ext loads; decides nothing else.

    messages ─► server ─► rollout ─► driver ─► kernel (sched_ext, tasks, /proc)
                            │          └─────► record (SQLite: intent before, confirmation after)
                            ├─ admission: what is refused (token, scope, machine)
                            └─ decisions: what follows from what is so, as values; breaker: when to stop; pulses

No model, no compiler, no network, no shell, no process of its own; a test holds the list of its modules.

May import: kernel_bpf.load, kernel_bpf.observe, schedagent.core.
"""
