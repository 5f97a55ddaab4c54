"""A worker's life as its main process sees and ends it: beats that say it runs, and signals by which it takes leave.

Taking leave comes before SIGTERM, by which Granian closes connections: until that, every answer says that its
connection ends, so that clients open another, which meets whoever goes on serving, and none is cut off between an
answer and the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time

from edgeprofile._exchange import leave

# All workers take leave, as the service ends; or this one alone, which has a successor.
ENDING, RETIRING = signal.SIGUSR1, signal.SIGUSR2
BEAT_INTERVAL_S = 1.0


class Life:
    """`listener` is the socket that the worker shares with its successor, `pulse` where to beat. The first beat, from
    the last watcher to be started, says that the worker is ready.
    """

    def __init__(self, listener: int = -1, pulse: int = -1) -> None:
        self.is_ending = False
        self._listener = listener
        self._pulse = pulse
        self._next_beat_at = 0.0

    def heed(self, loop: asyncio.AbstractEventLoop) -> None:
        """Acts on the main process's signals from now on."""
        loop.add_signal_handler(ENDING, self.end)
        loop.add_signal_handler(RETIRING, self.retire)

    def poll(self) -> None:
        """Beats, now and then. A main process that does not listen is not waited for."""
        now = time.monotonic()
        if self._pulse >= 0 and now >= self._next_beat_at:
            self._next_beat_at = now + BEAT_INTERVAL_S
            with contextlib.suppress(OSError):
                os.write(self._pulse, b".")

    def end(self) -> None:
        """From now on no new requests are wanted here; those that come all the same are answered."""
        self.is_ending = True
        leave()

    def retire(self) -> None:
        """From now on new connections are the successor's.

        Its socket is the same, and so it cannot be closed. Where Granian looks for connections there is another one
        instead, to which nobody connects: those that are being made, TLS's handshakes, come to their end.
        """
        leave()
        with socket.socket(socket.AF_UNIX) as nobodys:
            nobodys.setblocking(False)
            nobodys.bind("")  # by a name without a file, which the kernel chooses
            nobodys.listen()
            os.dup2(nobodys.fileno(), self._listener, inheritable=False)
