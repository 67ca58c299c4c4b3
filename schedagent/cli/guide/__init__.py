"""How the program explains itself: topics of `schedagent help`, exit statuses, its settings, and what Tab offers.

May import: schedagent.cli, repo_store, kernel_bpf, schedagent.core.
"""
