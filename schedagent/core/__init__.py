"""The ground floor: the frozen types that flow between stages, the errors, and the pure statistics.

May import: the standard library (and, lazily inside functions, numpy, scipy, cryptography). Nothing of ours.
Everything else may import it. `identity`, `errors`, `policy` and `trial` also run inside the micro-VM,
so their import must stay cheap.
"""
