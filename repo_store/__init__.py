"""The Scheduler Policy Repository: everything measured, in SQLite through SQLAlchemy.

No other package may import SQLAlchemy.

May import: schedagent.core.
"""
