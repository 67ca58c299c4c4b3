"""The verifier over a unix socket: server, messages, worker processes, and the client that agents use.

May import: schedagent.core.
"""
