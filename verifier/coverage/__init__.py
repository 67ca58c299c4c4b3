"""What ran while a policy was proved: a copy of its object with probes, and its judge.

May import: verifier.lab, verifier.logic, verifier.microvm, verifier.object, kernel_bpf, schedagent.core.
"""
