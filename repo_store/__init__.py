"""The Scheduler Policy Repository: everything measured, in SQLite through SQLAlchemy.

May import: schedagent.core. No other package may import SQLAlchemy.
"""
