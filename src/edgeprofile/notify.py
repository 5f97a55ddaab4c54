"""What a service tells the supervisor that started it, by systemd's protocol: a datagram for each word.

Without a supervisor that listens, nothing is said, and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
import socket

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


def tell(word: str) -> None:
    """Says one of the words above. Only the service's main process is heard."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        # What begins with @ is a name without a file, which the kernel knows by a leading NUL.
        name = "\0" + address[1:] if address.startswith("@") else address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(word.encode(), name)


def alive_interval_s() -> float | None:
    """How often to say ALIVE, so that each deadline of the watchdog is met twice; None where there is no watchdog."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    if not limit_us.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit_us) / 2e6
