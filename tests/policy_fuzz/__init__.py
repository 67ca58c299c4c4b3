"""Random policies in C, half of them with a known fault: what do the gates let pass, and what do they refuse?

`python -m tests.policy_fuzz --seconds 900 --seed 1` draws policies out of the building blocks of `grammar.py`, plants
one of the faults of `faults.py` (or `plain_faults.py`) in every second one, takes them through the gates, and prints a
table. A part of the tests: may import kernel_bpf, verifier and schedagent.core.
"""
