"""How long things are kept: the limits, and caches that keep to them.

May import: schedagent.core.errors.
"""
