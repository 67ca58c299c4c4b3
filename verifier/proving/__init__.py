"""The proving ground: work of many kinds under a policy, with oracles that read kernel truth.

`prove` holds the table of phases and runs them; `mix`, `conservation`, `shares` and `crowd` are the phases under load,
`lifecycle` and `overhead` those that load the policy themselves; `crew` starts and watches tasks, `work` is what they
do. Runs inside the sealed guest; the host imports the tables.

May import: kernel_bpf, schedagent.core.
"""
