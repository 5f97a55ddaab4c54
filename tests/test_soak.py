"""What the soak counts and what it does not. Nothing here measures how fast anything is."""

from __future__ import annotations

import pytest
from harness import BenchError, Server
from troubles import IN_HAND_NS, Failure, Kill, Killer, Trouble

KILLED_AT = 10**12


@pytest.mark.parametrize(
    ("failure", "is_excused"),
    [
        (Failure(KILLED_AT, 0, 4001), True),
        (Failure(KILLED_AT + IN_HAND_NS - 1, 0, 4002), True),
        (Failure(KILLED_AT - 1, 0, 4001), False),  # before it was killed
        (Failure(KILLED_AT + IN_HAND_NS, 0, 4001), False),  # long after that
        (Failure(KILLED_AT + 1, 0, 4003), False),  # over a connection of another worker's
        (Failure(KILLED_AT + 1, 0, 0), False),  # without a connection: it was refused
        (Failure(KILLED_AT + 1, 503, 4001), False),  # answered, and badly
    ],
)
def test_a_request_is_lost_but_where_a_worker_was_killed_that_had_it_in_hand(
    failure: Failure, is_excused: bool
) -> None:
    killer = Killer(Server((), 0), workers=2)
    killer.kills = [Kill(KILLED_AT - 10**11, frozenset({4003})), Kill(KILLED_AT, frozenset({4001, 4002}))]
    assert killer.excuses(failure) == is_excused


class Broken:
    """Fails at its second time."""

    def __init__(self) -> None:
        self.times = 0

    def do(self) -> None:
        self.times += 1
        if self.times == 2:
            raise BenchError("no more")


def test_a_trouble_that_fails_fails_the_soak() -> None:
    broken = Broken()
    trouble = Trouble(0.01, broken.do)
    trouble.start()
    trouble.join(20)
    assert (trouble.times, broken.times) == (1, 2)
    with pytest.raises(BenchError, match=r"Broken failed: no more"):
        trouble.__exit__()
