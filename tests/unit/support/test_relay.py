"""Connections through the relay, both of whose ends are here."""

import socket
import threading

import pytest

from tests.support.relay import Relay


@pytest.fixture
def path(tmp_path):
    """A socket behind which a service answers with what it was sent, doubled, once that has ended."""
    near, far = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as service, socket.socket(socket.AF_UNIX) as listener, near, far:
        for end, name in ((service, "service"), (listener, "here")):
            end.bind(str(tmp_path / name))
            end.listen()
        relay = Relay(near.makefile("rwb", buffering=0))
        works = [
            (_answer, service), (relay.serve,), (relay.listen, listener),
            (Relay(far.makefile("rwb", buffering=0), lambda: _connected(tmp_path / "service")).serve,),
        ]  # fmt: skip
        for work, *arguments in works:
            threading.Thread(target=work, args=arguments, daemon=True).start()
        yield tmp_path / "here"
        near.shutdown(socket.SHUT_RDWR)


def _connected(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def _read(connection):
    content = b""
    while piece := connection.recv(1 << 20):
        content += piece
    return content


def _answer(service):
    while True:
        try:
            connection, _address = service.accept()
        except OSError:
            return
        threading.Thread(target=_double, args=(connection,), daemon=True).start()


def _double(connection):
    with connection:
        connection.sendall(2 * _read(connection))


def test_connections_side_by_side_and_large_answers(path):
    connections = [_connected(path) for _ in range(3)]
    for number, connection in enumerate(connections):
        connection.sendall(bytes([number]) * 100_000 * number)
    for number, connection in reversed(list(enumerate(connections))):
        with connection:
            connection.shutdown(socket.SHUT_WR)
            assert _read(connection) == bytes([number]) * 200_000 * number
