from typing import Self, final

from typing_extensions import Buffer

from edgeprofile._record import Batch

# Blocks, one behind the other, and (primary id, directory) of each profile whose last event has been read.
_Whole = tuple[bytes, list[tuple[bytes, bytes]]]

@final
class HistoryBuilder:
    """Turns batches of encoded events into histories. Their rows are sorted by profile and then as history.py says.

    What one batch leaves open, the next goes on with: a profile may have any number of events.
    """

    def __new__(cls) -> Self: ...
    def add(self, batch: Batch, number: int) -> _Whole:
        """What the batch makes whole, as segment `number`, which may be empty.

        Raises ValueError where the events of a profile do not come newest first.
        """

    def finish(self, number: int) -> _Whole:
        """What is still open, as segment `number`."""

def check_history(primary: bytes, directory: Buffer, segments: list[memoryview]) -> tuple[int, int]:
    """Checks a profile's directory, blocks and records; returns how many events there are, and the bytes of the blocks.

    Raises RecordDamaged or FormatUnsupported.
    """
