"""An HTTP server that answers as no server should: the first part of the path picks how."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.patience import PATIENCE_S

Send = Callable[[bytes], None]

OK: Final = b"HTTP/1.1 200 OK\r\n"
LAST: Final = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
EMPTY: Final = OK + b"Content-Length: 0\r\n\r\n"
EVENTS: Final = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS_EVENTS: Final = OK + b"Content-Type: text/event-stream\r\n\r\n"
ENDLESS_JSON: Final = OK + b"Content-Type: application/json\r\n\r\n"
# More than any limit of the tests, and less than would trouble a machine.
ENOUGH: Final = 64 * 2**20


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(record: Any) -> bytes:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    return chunk(b"data: " + data + b"\n\n")


def answer(record: Any) -> bytes:
    """Return a whole answer of one event."""
    return EVENTS + event(record) + b"0\r\n\r\n"


def text(**more: Any) -> bytes:
    return answer({"text_output": "x", **more})


def plain(body: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
    return OK + head + body


def dripped(data: bytes, delay_s: float) -> Callable[[Send], None]:
    def send_slowly(send: Send) -> None:
        for at in range(len(data)):
            send(data[at : at + 1])
            time.sleep(delay_s)

    return send_slowly


def endless(head: bytes, unit: bytes, delay_s: float = 0) -> Callable[[Send], None]:
    def send_on(send: Send) -> None:
        send(head)
        for _ in range(ENOUGH // len(unit)):
            send(unit)
            if delay_s:
                time.sleep(delay_s)

    return send_on


def held(data: bytes) -> Callable[[Send], None]:
    """Send something, and then neither more nor the end."""

    def send_and_wait(send: Send) -> None:
        send(data)
        time.sleep(PATIENCE_S)

    return send_and_wait


def gzipped(head: bytes) -> bytes:
    """Return 20 MB of an answer in 20 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(head) + packer.compress(b"a" * 20_000_000) + packer.flush()


def redirect(location: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: %s\r\n%s" % (location, LAST)


CASES: Final[dict[str, bytes | Callable[[Send], None]]] = {
    "headers_slow": dripped(OK + b"X-A: " + b"a" * 20_000, 0.1),
    "headers_endless": endless(OK, b"X-A: " + b"a" * 1000 + b"\r\n"),
    "header_noline": endless(OK + b"X: ", b"a" * 10_000),
    "sse_no_newline": endless(ENDLESS_EVENTS + b"data: ", b"a" * 100_000),
    "sse_newlines_noevent": endless(ENDLESS_EVENTS, b"data: x\n" * 10_000),
    "sse_slow": endless(ENDLESS_EVENTS, b":", 0.1),
    "sse_forever_good": endless(EVENTS, event({"text_output": "x "}), 0.01),
    "plain_endless": endless(ENDLESS_JSON + b"{", b"a" * 100_000),
    "bad_utf8": answer(b'{"text_output":"\xff\xfe\xc3"}'),
    "bad_json": answer(b"{oops"),
    "deep_json": answer(b"[" * 200_000),
    "deep_json_obj": answer(b'{"text_output":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "seq_str": text(sequence_index="y"),
    "seq_list": text(sequence_index=[[1]]),
    "seq_neg": text(sequence_index=-5),
    "seq_huge": text(sequence_index=10**18),
    "seq_float": text(sequence_index=1.5),
    "reason_obj": text(finish_reason={"a": 1}),
    "outputs_weird": text(output_log_probs={"a": 1}, cum_log_probs="zz"),
    "text_num": answer({"text_output": 5}),
    "text_many": answer({"text_output": ["a"] * 100_000}),
    "text_none": answer({"text_output": []}),
    "no_event": EVENTS + b"0\r\n\r\n",
    "surrogate": answer(b'{"text_output":"a\\ud800b"}'),
    "nan": answer(b'{"text_output":"a","x":NaN}'),
    "digits": answer(b'{"text_output":"a","x":' + b"9" * 5000 + b"}"),
    "error_obj": answer({"error": {"a": ["b"]}}),
    "error_esc": answer({"error": "bad\x1b]0;pwned\x07\x1b[2Jthing"}),
    "text_esc": answer({"text_output": "hi\x1b]0;pwned\x07\x1b[2Jred\x9b31m\r\b"}),
    "big_chunk_hdr": held(EVENTS + b"FFFFFFFFFFFFFFFF\r\nabc"),
    "neg_chunk": EVENTS + b"-5\r\nabc\r\n0\r\n\r\n",
    "trunc": EVENTS + event({"text_output": "x"}),
    "redirect_file": redirect(b"file:///etc/passwd"),
    "redirect_http": redirect(b"http://127.0.0.1:1/"),
    "gzip_bomb": OK
    + b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n"
    + gzipped(b'{"text_output": "'),
    "gzip_bad": OK + b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\nnotgzip",
    "enc_unknown": OK
    + b"Content-Type: text/event-stream\r\nContent-Encoding: br, zstd\r\n"
    + b"Content-Length: 3\r\n\r\nabc",
    "status_999": b"HTTP/1.1 999 \xff\xfe\r\n" + LAST,
    "status_100s": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "http09": b"hello there\n",
    "charset": plain(b'{"text_output":"aaa"}', b"application/json; charset=zlib_codec"),
    "busy_page": b"HTTP/1.1 503 Busy\r\nContent-Type: text/html\r\n" + LAST,
    "web_page": plain(b"<html>", b"text/html"),
    "silent": held(b""),
    "close": b"",
}
LIVE_CASES: Final = (
    "headers_slow",
    "headers_endless",
    "header_noline",
    "plain_endless",
    "silent",
    "close",
    "redirect_file",
    "http09",
    "status_100s",
    "gzip_bomb",
    "status_999",
)
"""Cases that the health path answers with, too."""
LIVE: Final = "live_"


@dataclass
class HostileServer:
    """What a test may know: where it is, and how much each case could send."""

    url: str
    sent: dict[str, int] = field(default_factory=dict)


def _serve(connection: socket.socket, server: HostileServer) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(PATIENCE_S)
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                data = connection.recv(65536)
                if not data:
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            method, target, *_ = head.split(b" ")
            name = target.decode().split("/")[1]
            if method == b"GET" and not name.startswith(LIVE):
                # Tells nothing of its model, and lives.
                connection.sendall(EMPTY)
                continue
            _misbehave(connection, name, server)
            # What is closed while something is unread is reset, and not ended.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
            return


def _misbehave(connection: socket.socket, name: str, server: HostileServer) -> None:
    def send(data: bytes) -> None:
        connection.sendall(data)
        server.sent[name] = server.sent.get(name, 0) + len(data)

    case = CASES[name.removeprefix(LIVE)]
    if isinstance(case, bytes):
        send(case)
    else:
        case(send)


@contextlib.contextmanager
def hostile_http() -> Iterator[HostileServer]:
    """Run the server; its threads end with their connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        server = HostileServer(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=_serve, args=(connection, server), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
