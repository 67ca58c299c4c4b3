"""Mutation: break correct policies in systematic ways and see which gate notices.

`python -m tests.mutation --sample 150 --seed 1` takes the bundled policies and the correct corpus, makes mutants with
the operators of `operators.py`, lets `judge.py` take each through the gates, and prints the kill rate. A part of the
tests: may import kernel_bpf, verifier and schedagent.core.
"""
