"""The reader of compiled objects: from the bytes of an ELF file to a `BpfImage` in which everything has its name.

May import: schedagent.core.
"""
