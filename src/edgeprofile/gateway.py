"""The process between workers and loaders: it reads what updates say, so that what answers lookups never has to.

A worker sends who asks and the body, piece by piece. Here it is parsed, held against the rules and the limits, and
handed to the loader of its workspace; only when that has it on disk is it acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Final

import msgspec

from edgeprofile import limiter, snapshot, wire
from edgeprofile._exchange import log_fault
from edgeprofile._limiter import Policy, SharedMap
from edgeprofile.errors import LoaderUnavailable
from edgeprofile.metrics import limited_slot
from edgeprofile.settings import Settings, Workspace
from edgeprofile.updates import Problem, Reading, Rules
from edgeprofile.wire import Broken, Message, Peer

NICENESS: Final = 10
REQUESTS_MAX: Final = 64
HELD_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of bodies, of all requests together."""
READ_AT_ONCE: Final = 4
"""Calls whose updates are taken apart, which takes more memory than their bodies."""
BODY_SECONDS_MAX: Final = 90
"""More than a worker waits for one: it is the worker that tells the caller."""
LOADER_SECONDS_MAX: Final = 30
DRAIN_SECONDS_MAX: Final = 10
LOOK_INTERVAL_S: Final = 1.0
# After so many updates, another request has its turn.
TURN_UPDATES: Final = 250
GZIP: Final = 31
"""What zlib calls its format."""


class Kind(msgspec.Struct, frozen=True):
    """A kind of call: how many updates it may have, and how many a second a key may send in such."""

    updates_max: int
    limit: Policy


KINDS = {
    "update": Kind(200, Policy(limiter.policy(300, 1_000, 0).pairs)),
    "mass-update": Kind(10_000, Policy(limiter.policy(10_000, 10_000, 0).pairs)),
}


class Refusal(Exception):
    """A call that is refused as a whole; `code` is the dialect's word for why."""

    def __init__(self, code: str, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class Served(msgspec.Struct, frozen=True):
    """A workspace to which updates may come. `namespace` is None for updates by primary ids."""

    loader: Path
    rules: Rules
    namespace: str | None
    body_bytes_max: int
    limited_counter: int


def served(settings: Settings) -> dict[str, Served]:
    """The workspaces that the Batch dialect is on for."""

    def one(number: int, name: str, workspace: Workspace) -> Served | None:
        if workspace.batch is None:
            return None
        declared = workspace.profiles
        identifiers = [identifier.column for identifier in declared.identifiers]
        by = workspace.batch.custom_id or declared.id
        return Served(
            snapshot.home(settings.data_dir, name) / wire.UPDATES,
            Rules(declared.id, declared.audiences, identifiers, by),
            None if by == declared.id else by,
            workspace.batch.request_bytes_max,
            limited_slot(number),
        )

    made = {name: one(number, name, each) for number, (name, each) in enumerate(settings.workspaces.items())}
    return {name: each for name, each in made.items() if each}


class Gateway:
    """Answers workers."""

    def __init__(self, workspaces: dict[str, Served], shared: SharedMap) -> None:
        self._workspaces = workspaces
        self._shared = shared
        self._held_bytes = 0
        self._turns = asyncio.Semaphore(READ_AT_ONCE)
        self.requests = 0

    async def talk(self, peer: Peer) -> None:
        """Answers one request, or breaks off where its other end does."""
        self.requests += 1
        try:
            await peer.send({"v": wire.VERSION, **await self._outcome(peer)})
        except (Broken, TimeoutError):
            pass  # who asked has gone, or did not send all
        finally:
            self.requests -= 1

    async def _outcome(self, peer: Peer) -> Message:
        """The answer, whatever happens. Raises Broken, TimeoutError."""
        body, request_id = bytearray(), b"-"
        try:
            if self.requests > REQUESTS_MAX:
                raise _busy()
            async with asyncio.timeout(BODY_SECONDS_MAX):
                request = await peer.receive_request()
                request_id = request["id"]
                await self._receive(peer, body)
            return {"ok": True, "body": await self._update(request, body)}
        except LoaderUnavailable as error:
            return _refused(Refusal("MAINTENANCE_ERROR", error.detail, error.retry_after_s))
        except Refusal as refusal:
            return _refused(refusal)
        except (Broken, TimeoutError):
            raise
        except Exception as error:
            log_fault(request_id, error)
            return _refused(Refusal("SERVER_ERROR", "The server's log has the reason."))
        finally:
            self._held_bytes -= len(body)

    async def _receive(self, peer: Peer, body: bytearray) -> None:
        """Takes in pieces until an empty one comes. There is one bound for the bodies of all requests."""
        while piece := await peer.receive():
            if not isinstance(piece, bytes):
                raise Broken("a piece of a body that is none")
            body += piece
            self._held_bytes += len(piece)
            if self._held_bytes > HELD_BYTES_MAX:
                raise _busy()

    async def _update(self, request: Message, body: bytearray) -> bytes:
        """The dialect's answer to a call. Raises Refusal, LoaderUnavailable, Broken."""
        workspace, kind = self._workspaces[request["workspace"]], KINDS[request["op"]]
        reading = Reading(workspace.rules, time.time_ns() // 1_000)
        updates = _parse(body, request["gzip"], workspace.body_bytes_max, kind.updates_max)
        async with wire.connect(workspace.loader) as loader:
            self._take_tokens(workspace, request, len(updates))
            async with self._turns:
                for number, update in enumerate(updates):
                    reading.take(number, update)
                    if number % TURN_UPDATES == TURN_UPDATES - 1:
                        await asyncio.sleep(0)
                message = _message(workspace, reading)
            if reading.numbers:
                await _write(loader, message, reading)
        return _success(reading.problems())

    def _take_tokens(self, workspace: Served, request: Message, cost: int) -> None:
        cell = self._shared.cell(f"{request['key']}:batch-{request['op']}".encode())
        wait_ns = self._shared.take(cell, KINDS[request["op"]].limit, cost)
        if wait_ns:
            self._shared.add(workspace.limited_counter, 1)
            wait_s = limiter.retry_after_s(wait_ns)
            raise Refusal("TOO_MANY_REQUESTS", f"So many updates fit the limit of this key in {wait_s} s.", wait_s)


def _refused(refusal: Refusal) -> Message:
    return {"ok": False, "code": refusal.code, "message": str(refusal), "retry_after": refusal.retry_after_s}


def _busy() -> Refusal:
    return Refusal("MAINTENANCE_ERROR", "Too much is being read already.", 1)


def _parse(body: bytearray, is_gzip: bool, bytes_max: int, updates_max: int) -> list[msgspec.Raw]:
    """The updates, of which each is still to be read. Raises Refusal."""
    content = _unpacked(body, bytes_max) if is_gzip else body
    try:
        updates = msgspec.json.decode(content, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise Refusal("MALFORMED_PARAMETER", "The body is an array of updates.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise Refusal("MALFORMED_JSON_BODY", f"The body is no JSON that can be read: {why}.") from None
    if not 0 < len(updates) <= updates_max:
        raise Refusal("MALFORMED_PARAMETER", f"A call has 1 to {updates_max} updates.")
    return updates


def _unpacked(body: bytearray, bytes_max: int) -> bytes:
    unpacker = zlib.decompressobj(GZIP)
    try:
        content = unpacker.decompress(body, bytes_max + 1)
    except zlib.error:
        raise Refusal("MALFORMED_JSON_BODY", "The body is no gzip.") from None
    if len(content) > bytes_max:
        raise Refusal("BODY_TOO_LARGE", f"A request body may have {bytes_max} bytes, unpacked too.")
    if not unpacker.eof or unpacker.unused_data:
        raise Refusal("MALFORMED_JSON_BODY", "The body is no whole gzip, or more than one.")
    return content


def _message(workspace: Served, reading: Reading) -> bytearray:
    """What the loader is to do, in a frame; in its place, what was kept is let go of. Raises Refusal."""
    try:
        return wire.frame({"op": "update", "namespace": workspace.namespace, "updates": reading.kept})
    except ValueError:
        raise Refusal("BODY_TOO_LARGE", "So much is to be sent in several calls.") from None
    finally:
        reading.kept.clear()


async def _write(loader: Peer, message: bytearray, reading: Reading) -> None:
    """Has the loader write, and notes what it leaves out.

    Raises LoaderUnavailable where it did not say that it wrote; it may have, all the same.
    """
    try:
        async with asyncio.timeout(LOADER_SECONDS_MAX):
            await loader.send_frame(message)
            answer = await loader.receive_answer()
    except (Broken, TimeoutError):
        raise LoaderUnavailable("The updates may have been written, or not.") from None
    if not answer["ok"]:
        if answer.get("code") == "unavailable":
            raise LoaderUnavailable()
        raise RuntimeError("the loader refused a request")
    for index, reason, attribute in answer["refused"]:
        reading.note("attribute" if attribute else "update", reading.numbers[index], reason, attribute)


def _success(problems: list[Problem]) -> bytes:
    if not problems:
        return b'{"code":"SUCCESS"}'
    return msgspec.json.encode({"code": "SUCCESS_WITH_PARTIAL_ERRORS", "errors": problems})


def run(settings: Settings, shared: SharedMap) -> None:
    """Serves until SIGTERM, then finishes what is under way."""
    os.nice(NICENESS)
    asyncio.run(_run(settings.data_dir / wire.GATEWAY, Gateway(served(settings), shared)))
    os.kill(os.getpid(), signal.SIGTERM)  # now by the default, which tells whoever keeps this process why it ended


async def _is_left_behind(path: Path, own: int) -> bool:
    """Whether another server of this folder has put its socket in the place of our own, and has ended since."""
    if path.exists() and path.stat().st_ino == own:
        return False
    try:
        async with wire.connect(path):
            return False
    except LoaderUnavailable:
        return True


async def _run(path: Path, gateway: Gateway) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    server = await wire.serve(path, gateway.talk)
    own = path.stat().st_ino
    while not told.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), LOOK_INTERVAL_S)
        if await _is_left_behind(path, own):
            server.close()
            server = await wire.serve(path, gateway.talk)
            own = path.stat().st_ino
    server.close()
    give_up = loop.time() + DRAIN_SECONDS_MAX
    while gateway.requests and loop.time() < give_up:
        await asyncio.sleep(0.01)
    loop.remove_signal_handler(signal.SIGTERM)
