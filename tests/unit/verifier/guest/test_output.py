"""What a workload prints: all of it if it is short, its beginning and its end otherwise, and always counted."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from verifier.guest import output as guest_output
from verifier.guest.output import CUT, Output


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[Output]:
    """One that keeps 100 bytes of the beginning and 1000 of the end."""
    monkeypatch.setattr(guest_output, "HEAD_BYTES", 100)
    monkeypatch.setattr(guest_output, "TAIL_BYTES", 1000)
    output = Output(os.getuid(), os.getgid())
    yield output
    output.close()


def test_a_short_output_is_kept_whole(output: Output) -> None:
    for piece in (b"one\n", b"two\n"):
        os.write(output.writer, piece)
        output.drain()
    printed = output.printed()
    assert (printed.content, printed.total_bytes) == (b"one\ntwo\n", 8)
    assert output.printed().content == b""


def test_what_just_fits_is_not_cut(output: Output) -> None:
    content = bytes(range(220)) * 5
    os.write(output.writer, content)
    output.drain()
    assert output.printed().content == content


@pytest.mark.parametrize("drained_every", [1, 3, 1000])
def test_of_a_long_output_the_beginning_and_the_end_are_kept(output: Output, drained_every: int) -> None:
    pieces = [f"line {number}\n".encode() for number in range(3000)]
    for number, piece in enumerate(pieces):
        os.write(output.writer, piece)
        if number % drained_every == 0:
            output.drain()
    content = b"".join(pieces)
    printed = output.printed()
    assert printed.content == content[:100] + CUT + content[-1000:]
    assert printed.total_bytes == len(content)


def test_small_pieces_that_fill_every_slot_of_the_pipe_stop_nobody(output: Output) -> None:
    """Spliced bytes take a slot each: the pipe is full long before it holds what is kept of the end."""
    content = bytes(range(256)) * 40
    source, writer = os.pipe()
    os.write(writer, content)

    def splice_byte_by_byte() -> None:
        for _byte in content:
            os.splice(source, output.writer, 1)

    thread = threading.Thread(target=splice_byte_by_byte)
    thread.start()
    while thread.is_alive():
        output.drain()
    thread.join()
    printed = output.printed()
    assert printed.content == content[:100] + CUT + content[-1000:]
    assert printed.total_bytes == len(content)
    os.close(source)
    os.close(writer)


def test_the_pipe_is_looked_at_more_often_while_much_comes(output: Output) -> None:
    for _look in range(20):
        output.drain()
    assert output.pause_s == guest_output.LONGEST_PAUSE_S
    os.write(output.writer, bytes(output._size))
    output.drain()
    assert output.pause_s < guest_output.LONGEST_PAUSE_S


def test_bytes_that_are_no_text_survive(output: Output) -> None:
    content = b"\x00\x1b[31m\xff\xc3\xa9\xe2\x82"
    os.write(output.writer, content)
    text = output.printed().text
    assert text.encode("utf-8", "surrogateescape") == content


def test_programs_that_open_their_output_again_add_to_it(output: Output) -> None:
    os.write(output.writer, b"first ")
    with open(f"/proc/self/fd/{output.writer}", "wb") as file:  # noqa: PTH123  as `> /dev/stderr` does
        file.write(b"second")
    assert output.printed().content == b"first second"
