"""schedagentd as others use it: its socket's client, the keeper of a lease, and what the kernel runs without it.

May import: kernel_bpf.load, kernel_bpf.observe, schedagent.core.
"""
