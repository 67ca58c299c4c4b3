"""What ran while a policy was proved: a copy of its object with a probe on every branch, and what may stay unreached.

May import: verifier.lab, verifier.logic, verifier.microvm, verifier.object, kernel_bpf, schedagent.core.
"""
