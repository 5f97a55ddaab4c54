from typing import Any, final

from edgeprofile._store import Workspace

@final
class Exchange:
    """One request and its answer. Only compiled code makes these; `path` and `query` are as they were sent.

    Whoever has found whose key was sent sets `workspace`, for the log.
    """

    workspace: Workspace | None

    @property
    def request_id(self) -> bytes: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> bytes: ...
    @property
    def query(self) -> bytes: ...
    def header(self, name: bytes) -> bytes | None:
        """The value of a header by its name in lower case; None where it was not sent, or on several lines."""

def unescaped(segment: bytes) -> bytes:
    """A path's segment, percent-decoded once, which is UTF-8 and not empty. Raises MalformedPath."""

def leave() -> None:
    """From now on, in this process, answers over HTTP/1 carry `connection: close`.

    A client that keeps a connection then opens another, which meets whoever goes on serving.
    """

def ends_connection(scope: Any) -> bool:
    """Whether an answer to this request has to carry `connection: close`."""

def log_fault(request_id: bytes, error: BaseException) -> None:
    """Logs where a request failed, without the error's message: it may quote what the request asked for."""

def request_id_of(header: bytes | None) -> bytes | None:
    """The request id that a caller sent, where it is sane; else None."""
