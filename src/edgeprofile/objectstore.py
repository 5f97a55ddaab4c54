"""An object store: S3 and what speaks like it, Google's, Azure's, or a folder. The one place that imports obstore.

Credentials, regions and endpoints come from the environment, by the names that the vendors' own tools use.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from edgeprofile.errors import ObjectStoreError, SnapshotDamaged, UsageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SEND_AGAIN = "send it again: edgeprofile replicate --to URL --force"
SCHEMES = ("s3", "gs", "az", "file")
# A request is given up when nothing moves any more; how long it may take altogether depends on the line.
CLIENT: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "10m"}
RETRIES: RetryConfig = {"max_retries": 4}


class Store:
    """The object store. No error says more of its URL and of the credentials than that they do not do.

    Raises UsageError for another kind of URL, ObjectStoreError where the store does not do what it is asked.
    """

    def __init__(self, url: str, *, make: bool = False) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise UsageError("the URL of the object store is none") from None
        if parts.scheme not in SCHEMES:
            raise UsageError(f"an object store's URL begins with {', '.join(f'{each}://' for each in SCHEMES)}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError("credentials do not belong into the URL: they come from the environment")
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" and not parts.netloc else None
        with _asking():
            if parts.scheme == "file":
                if make and self._folder is not None:
                    # Customers' data, which is nobody's business but of those who are let in.
                    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._store = from_url(url)
            else:
                # What is given here would else take the place of that variable.
                allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
                self._store = from_url(url, client_options={**CLIENT, "allow_http": allow_http}, retry_config=RETRIES)

    def get(self, path: str, bytes_max: int) -> bytes | None:
        """An object; None where there is none. Raises SnapshotDamaged where it has more bytes."""
        with _asking(), contextlib.suppress(FileNotFoundError):
            found = obstore.get(self._store, path)
            if found.meta["size"] > bytes_max:
                raise SnapshotDamaged("an object in the store is larger than it should be", hint=SEND_AGAIN)
            return bytes(found.bytes())
        return None

    def put(self, path: str, content: bytes) -> None:
        """Puts an object, at once or not at all."""
        with _asking():
            obstore.put(self._store, path, content, use_multipart=False)

    def remove_unfinished(self, prefix: str) -> None:
        """Removes what killed writers left in a folder under these segments, where nobody writes at the moment.

        An object is written beside its place there, by its name and a number; it is never listed. A bucket has none.
        """
        if self._folder is not None:
            with _asking():
                for path in (self._folder / prefix).rglob("*#*"):
                    if re.search(r"#[0-9]+\Z", path.name):
                        path.unlink(missing_ok=True)

    def sizes(self, prefix: str) -> dict[str, int]:
        """The objects whose paths begin with these segments, and how many bytes they have."""
        with _asking():
            return {found["path"]: found["size"] for found in obstore.list(self._store, prefix).collect()}

    def remove(self, paths: Iterable[str]) -> None:
        """Removes objects. One that is gone already is no error."""
        for path in paths:
            with _asking(), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, path)


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Makes an ObjectStoreError of what the store says, which quotes URLs and whole answers."""
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        raise _known(error) from None


def _known(error: Exception) -> ObjectStoreError:
    if isinstance(error, OSError) and error.errno:
        return ObjectStoreError(f"the object store failed: {error.strerror}")
    text = str(error)
    found = re.search(r"status code: ([0-9]{3})", text)
    status = found[1] if found else ""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in ("401", "403"):
        hint = "they come from the environment: see docs/operating.md"
        return ObjectStoreError("the object store refuses the credentials, or what is asked with them", hint=hint)
    if isinstance(error, FileNotFoundError) or status == "404":
        return ObjectStoreError("the object store has no such bucket or folder")
    return ObjectStoreError(f"the object store {_reason(text, status)}")


def _reason(text: str, status: str) -> str:
    if "configured region" in text:
        return "is in another region than AWS_REGION says"
    if re.search(r"http://(169\.254\.169\.254|metadata\.google)", text):
        return (
            "was given no credentials: they come from the environment"  # or from the machine, asked last, and in vain
        )
    if status:
        return f"answers with status {status}"
    if number := re.search(r"\(os error ([0-9]+)\)|\bcode: ([0-9]+)", text):
        return f"failed: {os.strerror(int(number[1] or number[2]))}"
    if re.search(r"TimedOut|timed out", text):
        return "does not answer in time"
    if "BadScheme" in text:
        return "is to be asked over http, which AWS_ALLOW_HTTP=true allows"
    if re.search(r"HTTP error|Connect", text):
        return "cannot be reached"
    return "cannot be used: " + text.split("\n", 1)[0].rpartition("error: ")[2][:200]
