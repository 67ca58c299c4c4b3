"""Inside the micro-VM, as its PID 1: runs workloads and proofs, and counts what they use.

`agent` answers the host's jobs, `loader` puts schedulers in charge, `recorder` and `usage` count, `tree` lays a
throw-away layer over the host's files.

May import: verifier.microvm, verifier.proving, kernel_bpf, schedagent.core.
"""
