"""The Execution Verifier: ordered gates over a candidate policy, the micro-VM they run in, and the token signer.

May import: kernel_bpf (to compile and read objects) and schedagent.core.
"""
