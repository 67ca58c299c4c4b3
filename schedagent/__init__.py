"""schedagent: finds, proves and runs a better CPU scheduling policy for the work a Linux machine really does.

This package holds the thin outer layer (command line, graph, wiring) and `schedagent.core`, the ground floor.
May import: agents, verifier, repo_store, kernel_bpf and schedagent.core.
"""

__version__ = "0.1.0"
