from typing import Any, final

@final
class Body:
    """What is there of a body. Only compiled code makes and uses these."""

    def __new__(cls, announced: int, bytes_max: int) -> Body: ...

@final
class Reading:
    """Reads a body without an event loop. Only the compiled lookup makes these; Granian's futures call them."""

    def __call__(self, future: Any) -> None: ...
    def go_on(self) -> None:
        """Asks for the next piece."""

    def expire(self) -> None:
        """Ends it for having taken too long."""
