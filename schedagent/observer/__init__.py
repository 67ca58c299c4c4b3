"""schedagent-observer: traces for those who may not; changes nothing.

    messages ─► server ─► schedagent.observing (tier 2)

It loads one object, the probe that the package brings, by its digest; it takes no program, no path and no command.

May import: kernel_bpf.observe, schedagent.observing, schedagent.core.
"""
