"""The kernel side: libbpf over ctypes, sched_ext control, compiling BPF, process events, and the policy library.

May import: schedagent.core. No other package may use ctypes for BPF.
"""
