"""Experiments on what runs: pulses on this machine, pair by pair.

`spec` is what is asked for, `sources` and `counters` read numbers, `windows` measures one window, `rule` decides, and
`service` is all of it in the role of what a run measures.

May import: schedagent.client, schedagent.hostlab, schedagent.observing, agents.observation, verifier, kernel_bpf,
schedagent.core.
"""
