"""What our processes say to each other: messages of MessagePack in frames, over Unix sockets.

A frame is the length of what follows (4 bytes, little-endian) and one message. A request has `v`, the version, and
`op`; its answer `v` and `ok`, which is either true, or false with a `code` and a `message`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgeprofile.errors import LoaderUnavailable

VERSION = 1
# The sockets: of the gateway, in the data folder, and of a workspace's loader, in its own.
GATEWAY = "gateway.sock"
UPDATES = "updates.sock"
FRAME_BYTES_MAX = 64 * 1024 * 1024
LENGTH = struct.Struct("<I")
# What a stream takes in before it has the other side wait.
BUFFER_BYTES = 1024 * 1024
BACKLOG = 256

Message = dict[str, Any]

log = logging.getLogger("edgeprofile")


class Broken(Exception):
    """The other side is gone, or what it sent is no message of ours."""


class Peer:
    """The other end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: object) -> None:
        """Sends a message, be it bytes. Raises Broken, or ValueError for one that no frame holds."""
        await self.send_frame(_framed(message))

    async def send_frame(self, framed: bytearray) -> None:
        """Sends what `frame` made. Raises Broken."""
        try:
            self._writer.write(framed)
            await self._writer.drain()
        except OSError:
            raise Broken("the connection broke off") from None

    async def receive(self) -> Any:
        """The next message. Raises Broken."""
        try:
            (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if size > FRAME_BYTES_MAX:
                raise Broken(f"a frame of {size} bytes")
            return msgspec.msgpack.decode(await self._reader.readexactly(size))
        except (OSError, EOFError):
            raise Broken("the connection broke off") from None
        except msgspec.DecodeError:
            raise Broken("a frame that holds no message") from None

    async def receive_request(self) -> Message:
        """A request of this version. Raises Broken."""
        return _checked(await self.receive(), "op")

    async def receive_answer(self) -> Message:
        """The answer to a request, be it good or not. Raises Broken."""
        return _checked(await self.receive(), "ok")

    def close(self) -> None:
        self._writer.close()


def frame(message: Message) -> bytearray:
    """A request or an answer of this version, ready to be sent. Raises ValueError where no frame holds it."""
    return _framed({"v": VERSION, **message})


def _framed(message: object) -> bytearray:
    content = bytearray(LENGTH.size)
    msgspec.msgpack.Encoder().encode_into(message, content, LENGTH.size)
    if len(content) > FRAME_BYTES_MAX:
        raise ValueError(f"a frame has at most {FRAME_BYTES_MAX} bytes")
    LENGTH.pack_into(content, 0, len(content) - LENGTH.size)
    return content


def _checked(message: Any, key: str) -> Message:
    if isinstance(message, dict) and message.get("v") == VERSION and key in message:
        return message
    # After an upgrade, some are still of the version before.
    log.error("another process of edgeprofile speaks otherwise than version %d: start all of them anew", VERSION)
    raise Broken("a message of another version")


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """An address that is never too long for a socket's, however deep the folder of the path is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@contextlib.asynccontextmanager
async def connect(path: Path) -> AsyncIterator[Peer]:
    """A connection to the process that serves this socket. Raises LoaderUnavailable where there is none, or no room."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with address_of(path) as address:
            connection.connect(address)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=BUFFER_BYTES)
    except OSError:
        connection.close()
        raise LoaderUnavailable() from None
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()


async def ask(path: Path, request: Message, timeout_s: float) -> Message:
    """The answer to one request. Raises LoaderUnavailable where none comes in time, or that is the answer."""
    try:
        async with asyncio.timeout(timeout_s), connect(path) as peer:
            await peer.send({"v": VERSION, **request})
            answer = await peer.receive_answer()
    except (TimeoutError, Broken):
        raise LoaderUnavailable() from None
    if not answer["ok"] and answer.get("code") == "unavailable":
        raise LoaderUnavailable()
    return answer


async def serve(path: Path, talk: Callable[[Peer], Awaitable[None]]) -> asyncio.Server:
    """Serves the socket, for this user alone; `talk` has each connection. One that was left behind is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        with address_of(temporary) as address:
            listener.bind(address)
        temporary.chmod(0o600)  # nobody can connect before it listens
        listener.listen(BACKLOG)
        temporary.rename(path)
    except OSError:
        listener.close()
        raise

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(Peer(reader, writer))
        except asyncio.CancelledError:
            pass  # the process ends; streams of Python 3.11 would log this as a fault
        finally:
            writer.close()

    return await asyncio.start_unix_server(connected, sock=listener, limit=BUFFER_BYTES)
