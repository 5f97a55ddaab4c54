from typing import final

@final
class Exchange:
    """One request and its answer. Only the compiled lookup makes and uses these."""

    @property
    def request_id(self) -> bytes: ...
    @property
    def method(self) -> str: ...

def log_fault(request_id: bytes, error: BaseException) -> None:
    """Logs where a request failed, without the error's message: it may quote what the request asked for."""

def request_id_of(header: bytes | None) -> bytes | None:
    """The request id that a caller sent, where it is sane; else None."""
