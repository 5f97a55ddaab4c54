"""The exports of a workspace, as its watcher keeps them: taken on, written one behind the other, removed in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, structs

from edgeprofile import exports
from edgeprofile.errors import StoreError
from edgeprofile.exports import ATTRIBUTES_MAX, KEPT_MAX, NAME_CHARS_MAX, Export

CHILD = (sys.executable, "-P", "-m", "edgeprofile.loader.export")
EXPORT_SECONDS_MAX = 2 * 3_600
PRUNE_INTERVAL_S = 600

log = logging.getLogger("edgeprofile")


class Wanted(msgspec.Struct):
    """What an export is asked for with. `namespace` is None for the primary one."""

    attributes: Annotated[tuple[Annotated[str, Meta(max_length=NAME_CHARS_MAX)], ...], Meta(max_length=ATTRIBUTES_MAX)]
    identifiers: tuple[Literal["custom_id"], ...]
    namespace: str | None = None


class ExportQueue:
    """One workspace's. `slots` bounds how many exports a process has written at once, of all its workspaces."""

    def __init__(self, home: Path, slots: asyncio.Semaphore) -> None:
        self._home = home
        self._slots = slots
        self._is_new = asyncio.Event()

    def take(self, request: dict[str, Any]) -> dict[str, Any]:
        """Takes an export on; the answer to who asked for it."""
        try:
            wanted = msgspec.convert(request, Wanted)
            exports.prune(self._home, time.time())
            if len(exports.listing(self._home)) >= KEPT_MAX:
                return {"ok": False, "code": "refused", "message": f"{KEPT_MAX} exports are kept, each for a day."}
            export = Export(
                id=exports.new_id(),
                status="PENDING",
                attributes=wanted.attributes,
                identifiers=wanted.identifiers,
                namespace=wanted.namespace,
                requested_at=time.time(),
            )
            exports.write(self._home, export)
        except msgspec.ValidationError:
            return {"ok": False, "code": "invalid", "message": "That is no export."}
        except (OSError, StoreError) as error:
            log.error("workspace %s: no export can be kept: %s", self._home.name, error)
            return {"ok": False, "code": "unavailable", "message": "No export can be kept."}
        self._is_new.set()
        return {"ok": True, "id": export.id}

    async def run(self) -> None:
        """Writes what is waiting, what an earlier watcher left undone first, until it is cancelled."""
        while True:
            self._is_new.clear()
            try:
                exports.prune(self._home, time.time())
                for export in exports.listing(self._home):
                    if not export.is_over:
                        async with self._slots:
                            await self._write(export)
            except (OSError, StoreError) as error:
                log.error("workspace %s: exports: %s", self._home.name, error)
            # Not by wait_for: that of Python 3.11 forgets a cancellation which comes together with what it waits for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PRUNE_INTERVAL_S):
                    await self._is_new.wait()

    async def _write(self, export: Export) -> None:
        """Has a process write an export. One that ends badly, or takes too long, has failed."""
        command = (*CHILD, str(self._home), export.id, str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        told = b""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPORT_SECONDS_MAX):
                    _, told = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            # Only this process knows in which format to say it.
            traceback, _, why = told.decode(errors="replace").rstrip().rpartition("\n")
            why = why or f"its process ended with status {process.returncode}"
            log.error("workspace %s: an export failed: %s", self._home.name, why, extra={"traceback": traceback})
        exports.clear(self._home, export.id)
        written = exports.find(self._home, export.id, time.time())
        if written is not None and not written.is_over:
            exports.write(self._home, structs.replace(written, status="FAILURE", finished_at=time.time()))
