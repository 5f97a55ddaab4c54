"""HTTP/2 frame by frame, as a client that heeds GOAWAY, which the library behind httpx takes for the end of all."""

from __future__ import annotations

import json
import socket
import ssl
import time
from typing import Any, NamedTuple

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from service import ANSWER_SECONDS_MAX, HOST

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES_MAX = 16_384
REFUSED_STREAM = 7


class StreamReset(ConnectionError):
    """The server gave one request up, and says by `code` why. Only after REFUSED_STREAM has it not begun with it."""

    def __init__(self, stream: int, code: int) -> None:
        super().__init__(f"stream {stream} was reset with error code {code}")
        self.code = code


class Answered(NamedTuple):
    """The answer to one request, as far as it has come."""

    headers: dict[str, str]
    body: bytearray

    @property
    def status(self) -> int:
        return int(self.headers[":status"])

    def json(self) -> Any:
        return json.loads(self.body)


class Http2:
    """A connection. `is_leaving` once the server has said that it takes no further requests.

    `streams_max` requests may be under way at once. The server says how many, so it is none before that was read.
    """

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        connection = socket.create_connection((HOST, port), ANSWER_SECONDS_MAX)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(connection, server_hostname=HOST)
        assert self._socket.selected_alpn_protocol() == "h2"
        self._encoder, self._decoder = Encoder(), Decoder()
        self._stream = -1
        self.streams_max = 0
        self.is_leaving = False
        self._socket.sendall(PREFACE + SettingsFrame(0).serialize())

    def ask(self, path: str, key: str, *headers: tuple[str, str]) -> Answered:
        """One request. Raises ConnectionError where no whole answer comes."""
        return self.ask_all([path], key, *headers)[0]

    def ask_all(self, paths: list[str], key: str, *headers: tuple[str, str]) -> list[Answered]:
        """Requests, as many at once as may be, and their answers in the same order. Raises ConnectionError where a
        whole one does not come, and TimeoutError where they take too long.
        """
        asked: dict[int, Answered] = {}
        waiting: set[int] = set()
        give_up = time.monotonic() + ANSWER_SECONDS_MAX
        try:
            while waiting or len(asked) < len(paths):
                # Of all: pings come on a connection on which no answer does.
                self._socket.settimeout(max(give_up - time.monotonic(), 0.001))
                if self.is_leaving and len(asked) < len(paths):
                    raise ConnectionResetError("leaving before all was asked")
                requests = b""
                for path in paths[len(asked) :][: max(self.streams_max - len(waiting), 0)]:
                    requests += self._request(path, key, *headers)
                    asked[self._stream] = Answered({}, bytearray())
                    waiting.add(self._stream)
                self._socket.sendall(requests)
                self._take(self._frame(), asked, waiting)
        except TimeoutError:
            raise TimeoutError(f"no whole answer by streams {sorted(waiting)}") from None
        return list(asked.values())

    def _take(self, frame: Frame, asked: dict[int, Answered], waiting: set[int]) -> None:
        """Adds what a frame has of an answer."""
        if isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags
            fields = self._decoder.decode(frame.data)
            asked[frame.stream_id].headers.update({str(name): str(value) for name, value in fields})
        elif isinstance(frame, DataFrame) and frame.data:
            asked[frame.stream_id].body.extend(frame.data)
            # A server that is leaving closes when it has answered; what is sent then meets nobody.
            if not self.is_leaving:
                self._send(WindowUpdateFrame(0, window_increment=len(frame.data)))
        elif isinstance(frame, RstStreamFrame) and frame.stream_id in waiting:  # one may follow a whole answer
            raise StreamReset(frame.stream_id, frame.error_code)
        if "END_STREAM" in frame.flags:
            waiting.remove(frame.stream_id)

    def _request(self, path: str, key: str, *headers: tuple[str, str]) -> bytes:
        """A request by the next stream, as frames."""
        self._stream += 2
        pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", path)]
        head = self._encoder.encode([*pseudo, ("authorization", f"Bearer {key}"), *headers])
        first, *others = (head[at : at + FRAME_BYTES_MAX] for at in range(0, len(head), FRAME_BYTES_MAX))
        frames: list[HeadersFrame | ContinuationFrame] = [HeadersFrame(self._stream, first, flags=["END_STREAM"])]
        frames += [ContinuationFrame(self._stream, other) for other in others]
        frames[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in frames)

    def _frame(self) -> Frame:
        """The next frame; what the connection itself is asked by it is done."""
        frame, length = Frame.parse_frame_header(memoryview(self._read(9)))
        frame.parse_body(memoryview(self._read(length)))
        if isinstance(frame, GoAwayFrame):
            assert frame.error_code == 0, frame.additional_data
            assert frame.last_stream_id >= self._stream, "what was asked before is answered"
            self.is_leaving = True
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self._send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.streams_max = frame.settings.get(SettingsFrame.MAX_CONCURRENT_STREAMS, self.streams_max)
            self._send(SettingsFrame(0, flags=["ACK"]))
        return frame

    def _send(self, frame: Frame) -> None:
        self._socket.sendall(frame.serialize())

    def _read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self._socket.recv(size - len(content))
            if not piece:
                raise ConnectionResetError("closed without an answer")
            content += piece
        return content

    def close(self) -> None:
        self._socket.close()
