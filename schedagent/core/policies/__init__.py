"""Policies as data: what one is, how it is proposed, specified, configured, compiled, and how it knows its tasks.

May import: schedagent.core.
"""
