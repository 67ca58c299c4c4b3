"""What this machine needs and has: system packages, set-up, and `doctor`.

May import: verifier, kernel_bpf, schedagent.core.
"""
