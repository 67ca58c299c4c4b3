"""schedagentd as others use it: its socket's client, and the keeper of a lease.

May import: schedagent.core.
"""
