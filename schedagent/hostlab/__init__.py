"""This machine as a lab: its real files, and trials by schedagentd.

`lab` stands where the micro-VM's does, `machine` runs the commands, `command` one of them.

May import: verifier, schedagent.client, kernel_bpf, schedagent.core.
"""
