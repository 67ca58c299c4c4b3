"""HTML pages that need nothing but themselves: their style, their parts, and the escaping of foreign text.

May import: schedagent.core.
"""
