"""The ground floor: the frozen types that flow between stages, settings, errors, tokens, and the door to processes.

`errors` and what `policies` and `trials` hold also run inside the micro-VM, so their import must stay cheap; numpy,
scipy and cryptography are imported inside functions.

May import: nothing of ours.
"""
