from typing import final

from edgeprofile._metrics import Recorder
from edgeprofile.api.dialect import Handler

@final
class Surface:
    """The paths of an API, some whole and some by what they begin with, who answers there, and what counts it."""

    def __init__(
        self, handler: Handler, recorder: Recorder, *, paths: tuple[bytes, ...] = (), prefixes: tuple[bytes, ...] = ()
    ) -> None: ...
    @property
    def handler(self) -> Handler: ...
