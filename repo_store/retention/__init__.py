"""Deleting runs, whole, unless something rests on them.

May import: repo_store, schedagent.core.
"""
