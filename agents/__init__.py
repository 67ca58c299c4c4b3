"""The four agents: observation, planning, execution and learning; one graph node each.

Agents never import each other; what they need from other parts reaches them as Protocols or as arguments.

May import: agents.llm, agents.prompts, verifier.lab, repo_store, kernel_bpf.observe, schedagent.core.
"""
