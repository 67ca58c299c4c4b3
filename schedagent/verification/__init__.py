"""`verify` outside a run: one policy through every gate, its report, its keys, and the verifier service.

May import: schedagent.page, schedagent.run, verifier, kernel_bpf, schedagent.core.
"""
