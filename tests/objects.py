"""A real server that speaks S3, as a process of its own on loopback, for tests of what an object store is used for."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
from pathlib import Path

from service import free_port
from workshop import stop, until

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCY"
BUCKET = "replicas"


class S3:
    """One bucket. `env` is what its clients need to find and to open it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        with (folder / "s3.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, self._process)
        self.ask("PUT", f"/{BUCKET}", b"")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("GET", "/moto-api/", b"") == 200
        return False

    def ask(self, method: str, path: str, body: bytes) -> int:
        """The status that it answers with, to somebody without credentials."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            return connection.getresponse().status

    def stop(self) -> None:
        """Ends it, with all that it holds."""
        if self._process.poll() is None:
            stop(self._process)
