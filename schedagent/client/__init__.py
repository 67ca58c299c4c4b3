"""schedagentd as others use it: its client, the keeper of a lease, and the kernel without it.

May import: kernel_bpf.load, kernel_bpf.observe, schedagent.core.
"""
