"""Records that are damaged: each is refused by name, or answers out of its own bytes, in both readers alike."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import shop_record

from edgeprofile import _record, record
from edgeprofile.errors import FormatUnsupported, RecordDamaged
from edgeprofile.record import Record


def refused_by_both(damaged: bytes, primary: str = "ann") -> None:
    with pytest.raises((RecordDamaged, FormatUnsupported)) as plain_:
        Record(primary, damaged)
    with pytest.raises((RecordDamaged, FormatUnsupported)) as compiled:
        _record.project(damaged, primary.encode(), record.WHOLE, 4, True)
    assert plain_.type is compiled.type
    with pytest.raises(compiled.type):
        _record.check(damaged, primary.encode())


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    good = shop_record()
    for at in range(len(good)):
        refused_by_both(good[:at])
        for bit in range(8):
            refused_by_both(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
    refused_by_both(good + b"\x00")


def test_a_record_found_under_another_id_is_refused() -> None:
    for other in ("", "anm", "ann ", "bob"):
        refused_by_both(shop_record(), other)


def plainly(found: bytes, runs: record.Runs) -> bytes:
    return Record("ann", found).project(runs, 4, True)


def outcome(cut: Callable[[], bytes]) -> object:
    try:
        return cut()
    except (RecordDamaged, FormatUnsupported) as error:
        return type(error)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_damage_behind_a_right_check_is_an_answer_of_the_records_own_bytes_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(shop_record())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(1, 40) | st.integers(1, len(damaged) - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 2, 4, 0x7F, 0xFF]) | st.integers(0, 255))
    found = bytes(damaged[:8]) + record.record_check(b"ann", bytes(damaged)).to_bytes(8, "little") + bytes(damaged[16:])
    edges = sorted(data.draw(st.lists(st.integers(0, 4096), max_size=6)))
    runs = tuple(zip(edges[::2], edges[1::2], strict=False))
    for chosen in (runs, record.WHOLE):
        compiled = outcome(partial(_record.project, found, b"ann", chosen, 4, True))
        assert compiled == outcome(partial(plainly, found, chosen))


@pytest.mark.parametrize("end", [0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFF0, 0x80000000])
def test_an_end_near_the_top_of_its_type_does_not_wrap_around(end: int) -> None:
    head = record.HEADER.pack(1, 4, 2, 40, 0, 0) + b"\x03" + struct.pack("<II", 5, end) + bytes(40)
    found = head[:8] + record.record_check(b"a", head).to_bytes(8, "little") + head[16:]
    for runs in ((), ((0, 1),), ((1, 2),), ((0, 2),)):
        for first_audience in (0, 1, 2):
            with pytest.raises(RecordDamaged):
                Record("a", found).project(runs, first_audience, True)
            with pytest.raises(RecordDamaged):
                _record.project(found, b"a", runs, first_audience, True)


@pytest.mark.parametrize("runs", [((0, 2), (1, 3)), ((2, 3), (0, 1)), ((2, 1),), ((-1, 2),)])
def test_runs_that_do_not_ascend_are_refused(runs: record.Runs) -> None:
    with pytest.raises(ValueError, match="ascend"):
        _record.project(shop_record(), b"ann", runs, 4, True)
