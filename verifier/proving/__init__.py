"""The proving ground: work of many kinds under a policy, with oracles that read kernel truth.

Runs inside the sealed guest. May import: the standard library, schedagent.core.errors and kernel_bpf.sched_ext.
"""
