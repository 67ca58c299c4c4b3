"""What this machine needs and has: Debian packages, and `doctor`.

May import: verifier, kernel_bpf, schedagent.core.
"""
