"""Versions of schedagentd's record: each file makes one of the version before it.

A change of a table, or of what a deployment's body holds, is a new file here, its line in `versions`, and a test that
opens a record of the version before (tests/unit/schedagentd/test_migrations.py).

May import: schedagent.core.errors.
"""
