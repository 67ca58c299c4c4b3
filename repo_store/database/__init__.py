"""The database under the repository: connections, tables, and how our types stand in columns.

May import: repo_store.records, schedagent.core.
"""
