"""BPF objects in the kernel: libbpf over ctypes, BTF, attaching a sched_ext policy and reading why it ended.

May import: schedagent.core.
"""
