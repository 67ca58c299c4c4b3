"""How long things are kept: the table of limits, and cache folders that keep what was used last.

May import: schedagent.core.errors.
"""
