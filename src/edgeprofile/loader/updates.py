"""Where a workspace's updates are taken: a server on its Unix socket, which has a thread write them one by one.

The thread waits for the disk and for locks, so that the event loop, which others share, goes on. A request that was
read as a whole is done, whether or not its sender is still there for the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from edgeprofile import snapshot, wire
from edgeprofile.errors import InvalidChange, LiveDamaged, NoSnapshot, StoreError
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Erasures, Updates, read
from edgeprofile.loader.export_queue import ExportQueue
from edgeprofile.wire import Broken, Message, Peer

# Requests that wait for the thread, or are with it; more are told to come again.
WAITING_MAX = 64
STOP_SECONDS_MAX = 5.0

log = logging.getLogger("edgeprofile")


class UpdateServer:
    """Takes the updates of the workspace with this home, while the context lasts. Its process holds locks.watching.

    `on_erasure` is called on the loop when profiles were erased, which brings `erasure_due_at` nearer; `on_damage` when
    the live layer is found damaged, once: no updates are taken then until a refresh makes another. Exports are for
    `exports` to take on.
    """

    def __init__(
        self,
        home: Path,
        *,
        exports: ExportQueue,
        on_erasure: Callable[[], None] = lambda: None,
        on_damage: Callable[[], None] = lambda: None,
        at: snapshot.AtStep = snapshot.nothing,
    ) -> None:
        self._home = home
        self._exports = exports
        self._writer = LiveWriter(home, at)
        self._on_erasure = on_erasure
        self._on_damage = on_damage
        self._thread = ThreadPoolExecutor(1, "updates")
        self._talks: set[asyncio.Task[None]] = set()
        self._idle: set[Peer] = set()
        self._waiting = 0
        self._stopping = False
        self._said = ""

    async def __aenter__(self) -> Self:
        snapshot.make_folder(self._home.parent)
        snapshot.make_folder(self._home)
        # Before the first update, so that what an earlier process left undone is seen at once.
        self._loop = asyncio.get_running_loop()
        await self.refreshed()
        self._server = await wire.serve(self._home / wire.UPDATES, self._talk)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Ends what is being written, and tells all others to come again."""
        self._stopping = True
        self._server.close()
        (self._home / wire.UPDATES).unlink(missing_ok=True)
        await asyncio.to_thread(self._thread.shutdown)
        for peer in self._idle:
            peer.close()
        if self._talks:
            _, late = await asyncio.wait(self._talks, timeout=STOP_SECONDS_MAX)
            for talk in late:
                talk.cancel()
        self._writer.close()

    async def refreshed(self) -> None:
        """Has the writer follow a snapshot that was published meanwhile, and let go of the one before."""
        await self._in_thread(lambda: self._done(self._writer.catch_up))

    async def erasure_due_at(self, within_s: float) -> float | None:
        """When to refresh at the latest, in seconds since 1970, so that what was erased is on no disk after `within_s`;
        None where nothing is, or nothing can be told."""

        def ask() -> float | None:
            with contextlib.suppress(StoreError):
                return self._writer.erasure_due_at(within_s)
            return None

        return await asyncio.get_running_loop().run_in_executor(self._thread, ask)

    # --- one connection --------------------------------------------------------------------------------------------

    async def _talk(self, peer: Peer) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            while not self._stopping:
                self._idle.add(peer)
                request = await peer.receive_request()
                self._idle.discard(peer)
                await peer.send_frame(wire.frame(await self._answer(request)))
        except (Broken, ValueError):
            pass  # what it said was no request of ours, or it is gone
        finally:
            self._talks.discard(task)
            self._idle.discard(peer)

    async def _answer(self, request: Message) -> Message:
        if request["op"] == "export":
            return self._exports.take(request)
        operations: dict[str, Callable[[Message], Message]] = {
            "update": self._update,
            "erase": self._erase,
            "ping": self._ping,
        }
        operation = operations.get(str(request["op"]))
        if operation is None:
            return _failed("invalid", "there is no such operation")
        if self._stopping or self._waiting >= WAITING_MAX:
            return _failed("unavailable", "too many requests wait already")
        self._waiting += 1
        try:
            answer = await self._in_thread(lambda: self._done(lambda: operation(request)))
        finally:
            self._waiting -= 1
        if answer["ok"] and operation == self._erase:
            self._on_erasure()
        return answer

    async def _in_thread(self, work: Callable[[], Message]) -> Message:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _done(self, work: Callable[[], Any]) -> Message:
        """Does it, if it may still be done, and says how it ended."""
        if self._stopping:
            return _failed("unavailable", "the loader ends")
        try:
            answer = {"ok": True, **(work() or {})}
        except InvalidChange as error:
            return _failed("invalid", str(error))
        except StoreError as error:
            # That there is no snapshot yet is what the refreshes tell.
            if isinstance(error, LiveDamaged) and str(error) != self._said:
                self._loop.call_soon_threadsafe(self._on_damage)
            if not isinstance(error, NoSnapshot):
                self._say(str(error))
            return _failed("unavailable", str(error))
        except Exception as error:
            # Its text might hold a value.
            where = "".join(traceback.format_tb(error.__traceback__))
            self._say(f"a fault in the loader, {type(error).__name__} at\n{where}")
            return _failed("unavailable", "a fault in the loader")
        self._said = ""
        return answer

    def _update(self, request: Message) -> Message:
        return {"refused": self._writer.update(read(request, Updates))}

    def _erase(self, request: Message) -> Message:
        self._writer.erase(read(request, Erasures))
        return {}

    def _ping(self, request: Message) -> Message:
        self._writer.catch_up()
        return {}

    def _say(self, why: str) -> None:
        """Logs why updates cannot be written, once until they can be again."""
        if why != self._said:
            log.warning("workspace %s: no updates are taken: %s", self._home.name, why)
        self._said = why


def _failed(code: str, message: str) -> Message:
    return {"ok": False, "code": code, "message": message}
