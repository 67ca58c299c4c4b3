"""What verifier.object.reader promises of any bytes whatsoever; the fuzzer and the unit tests hold it to that."""

from __future__ import annotations

from schedagent.core.errors import PolicyError
from verifier.object.image import BpfImage
from verifier.object.instructions import jump_distance
from verifier.object.reader import read_object

_MESSAGE_LIMIT = 2000


def read_or_refuse(object_bytes: bytes) -> str:
    """Read an object; return why it was refused, empty if it was not. Anything but a PolicyError is a failure."""
    try:
        image = read_object(object_bytes)
    except PolicyError as error:
        refused = error
    else:
        _check(image)
        return ""
    assert refused.hint
    assert len(refused.message) < _MESSAGE_LIMIT
    assert refused.message.isprintable(), refused.message
    return refused.message


def _check(image: BpfImage) -> None:
    """Names can be printed, and what refers to something in the object refers to something that is there."""
    names = [*image.functions, *image.maps, *image.variables, *image.enums, *image.other_struct_ops, image.license]
    assert all(name.isprintable() for name in names)
    for function in image.functions.values():
        slots = {instruction.slot for instruction in function.instructions}
        for instruction in function.instructions:
            distance = jump_distance(instruction)
            assert distance is None or instruction.slot + 1 + distance in slots
            assert instruction.line is None or (instruction.line.file + instruction.line.text).isprintable()
            ref = instruction.ref
            assert ref is None or (ref.name + ref.symbol).isprintable()
            known = {"function": image.functions, "map": image.maps}.get(ref.kind.value) if ref else None
            assert ref is None or known is None or ref.name in known
    for ops in image.ops:
        assert set(ops.callbacks.values()) <= set(image.functions)
        assert ops.name.isprintable()
