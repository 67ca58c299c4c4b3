"""The four agents: observation, planning, execution and learning; one graph node each.

May import: verifier, repo_store, kernel_bpf, schedagent.core. Agents never import each other; what they need
from other parts reaches them as Protocols or through the wiring.
"""
