"""Watching work that already runs: scopes, counters, the profile and its faces.

Changes nothing on the machine. Both the command line and the observer measure with it.

May import: kernel_bpf.observe, schedagent.core.
"""
