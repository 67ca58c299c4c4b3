"""The Execution Verifier: the ordered gates a candidate passes (`pipeline`), cached reports and the token signer.

May import: kernel_bpf, schedagent.core.
"""
