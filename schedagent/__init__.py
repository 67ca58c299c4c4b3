"""schedagent: finds, proves and runs a better CPU scheduling policy for the work a Linux machine really does.

May import: agents, verifier, repo_store, kernel_bpf.
"""

__version__ = "0.1.0"
