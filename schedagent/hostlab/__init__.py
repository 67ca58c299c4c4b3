"""This machine as a lab: a workload runs on its real files, under policies that schedagentd puts in charge for a trial.

`lab` stands where the micro-VM's does, `machine` runs the commands, `command` one of them.

May import: verifier.lab, verifier.guest, verifier.microvm, schedagent.client, kernel_bpf, schedagent.core.
"""
