"""What tasks and the machine do: process events, taskstats, cgroups, pressure, sched_ext state.

May import: kernel_bpf.load, schedagent.core.
"""
