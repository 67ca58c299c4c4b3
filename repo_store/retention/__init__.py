"""What leaves the repository: whole runs, unless something rests on them.

May import: repo_store, schedagent.core.
"""
