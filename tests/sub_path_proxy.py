"""A proxy on loopback that shows a server below a path, as nginx does with `location /merlina/ { proxy_pass …/; }`."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_BLOCK = 1 << 16


@contextlib.contextmanager
def below(sub_path: str, port: int) -> Iterator[int]:
    """Forward `<sub_path>/…` to the server on `port` as `/…`; other paths are 404. Yields the proxy's port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, sub_path.encode(), port), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket, sub_path: bytes, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, sub_path, port), daemon=True).start()


def _serve(client: socket.socket, sub_path: bytes, port: int) -> None:
    """Forward one request and its response. Only a WebSocket keeps its connection."""
    with client, contextlib.suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            block = client.recv(_BLOCK)
            if not block:
                return
            head += block
        method, _, rest = head.partition(b" ")
        if not rest.startswith(sub_path + b"/"):
            client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        head = method + b" " + rest.removeprefix(sub_path)
        if b"upgrade: websocket" not in head.lower():
            head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1).replace(b"Connection: keep-alive\r\n", b"")
        with socket.create_connection(("127.0.0.1", port)) as server:
            server.sendall(head)
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            _pump(server, client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(_BLOCK):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
