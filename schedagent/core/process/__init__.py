"""Processes and sockets: the only door to subprocesses, forked children, listening sockets, systemd.

May import: schedagent.core.
"""
