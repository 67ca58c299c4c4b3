"""How the program explains itself: topics, exit statuses, settings, completion.

May import: schedagent.cli, repo_store, kernel_bpf, schedagent.core.
"""
