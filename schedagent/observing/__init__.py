"""Watching work that already runs: what is watched, how it is sampled and counted, and how a profile is shown.

Changes nothing on the machine. Both the command line and the observer measure with it.

May import: kernel_bpf.observe, schedagent.core.
"""
