"""What this machine needs and has: system packages by distribution, what set-up has to do, and `doctor`.

May import: verifier, kernel_bpf, schedagent.core.
"""
