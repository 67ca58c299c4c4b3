"""Where workloads are measured and policies are proved.

May import: verifier.microvm, verifier.proving, schedagent.core.
"""
