"""API keys: what a token is, what is kept of it, who is let in, and what a crash or a bad disk does to the file."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from edgeprofile import keys
from edgeprofile.errors import KeyFileError, UsageError
from edgeprofile.keys import Key, KeyTable

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def python(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def find(data_dir: Path, token: str | bytes, now_s: float | None = None) -> Key | None:
    table = KeyTable.load(data_dir)
    if now_s is None:
        now_s = max((key.created_at for key in table.keys.values()), default=0)
    return table.find(token.encode() if isinstance(token, str) else token, now_s)


def sealed(body: str) -> bytes:
    return (body + keys.base62(zlib.crc32(body.encode()), 6)).encode()


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    return keys.create(tmp_path_factory.mktemp("minted"), "shop")[0]


# The token


@given(st.integers(0, 2**256 - 1))
@example(0)
@example(2**256 - 1)
def test_base62_digits_read_back_as_the_number(number: int) -> None:
    digits = keys.base62(number, 43)
    value = 0
    for digit in digits:
        value = value * 62 + keys.BASE62.index(digit)
    assert (value, len(digits)) == (number, 43)


def test_a_token_has_a_public_id_256_bits_of_secret_and_a_checksum(token: str) -> None:
    prefix, live, public_id, rest = token.split("_")
    assert (prefix, live, len(public_id), len(rest)) == ("sk", "live", 12, 43 + 6)
    assert 62**43 >= 2**256 > 62**42
    assert set(public_id + rest) <= set(keys.BASE62)
    assert keys.parse_public_id(token.encode()) == public_id


def test_tokens_differ_and_their_secrets_use_every_base62_digit(tmp_path: Path) -> None:
    tokens = [keys.create(tmp_path, "shop")[0] for _ in range(60)]
    assert len({token[:20] for token in tokens}) == len({token[21:64] for token in tokens}) == 60
    assert set("".join(token[22:64] for token in tokens)) == set(keys.BASE62)


def test_any_change_of_one_character_is_refused(token: str) -> None:
    good = token.encode()
    for place in range(len(good)):
        for other in range(256):
            changed = good[:place] + bytes([other]) + good[place + 1 :]
            assert (keys.parse_public_id(changed) is not None) == (changed == good)


def test_a_token_with_a_character_more_or_less_is_refused(token: str) -> None:
    good = token.encode()
    for place in range(len(good) + 1):
        assert keys.parse_public_id(good[:place] + b"0" + good[place:]) is None
        assert keys.parse_public_id(good[:place] + good[place + 1 :]) is None or place == len(good)
    assert [keys.parse_public_id(token.encode()) for token in (token + "\n", " " + token, "")] == [None] * 3


@given(st.binary() | st.text(keys.BASE62 + "_").map(lambda rest: b"sk_live_" + rest.encode()))
def test_garbled_bytes_have_no_public_id(noise: bytes) -> None:
    assert keys.parse_public_id(noise) is None


# Who is let in


def test_a_key_is_found_by_its_token_alone(tmp_path: Path) -> None:
    token, key = keys.create(tmp_path, "shop", name="Edge", scopes=("write", "read", "read"))
    keys.create(tmp_path, "shop")
    assert find(tmp_path, token) == key
    assert (key.workspace, key.name, key.scopes, key.public_id) == ("shop", "Edge", ("read", "write"), token[8:20])
    assert find(tmp_path, key.public_id) is None
    assert find(tmp_path, key.hash) is None


def test_a_well_formed_token_with_another_secret_or_an_unknown_id_is_refused(tmp_path: Path) -> None:
    token, key = keys.create(tmp_path, "shop")
    another_secret = sealed(f"sk_live_{key.public_id}_{'a' * 43}")
    unknown_id = sealed(f"sk_live_{'a' * 12}_{token[21:64]}")
    assert keys.parse_public_id(another_secret) == key.public_id
    assert keys.parse_public_id(unknown_id) == "a" * 12
    assert find(tmp_path, another_secret) is None
    assert find(tmp_path, unknown_id) is None


def test_non_ascii_and_huge_tokens_are_refused(tmp_path: Path) -> None:
    token, _ = keys.create(tmp_path, "shop")
    huge = token + "0" * 1_000_000
    for bad in ("sk_live_é" + token[9:], token[:-1] + "\u0663", b"\xff\x00" * 35, huge, huge[::-1]):
        assert find(tmp_path, bad) is None


def test_a_key_is_refused_from_its_expiry_on(tmp_path: Path) -> None:
    token, key = keys.create(tmp_path, "shop", expires_at=4_000_000_000)
    assert find(tmp_path, token, 3_999_999_999.9) == key
    assert find(tmp_path, token, 4_000_000_000) is None


def test_a_revoked_key_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    token, key = keys.create(tmp_path, "shop")
    other_token, other = keys.create(tmp_path, "shop")
    before = KeyTable.load(tmp_path)
    revoked = keys.revoke(tmp_path, key.public_id, "shop")
    assert revoked.revoked_at is not None
    assert find(tmp_path, token) is None
    assert find(tmp_path, token, key.created_at - 1e6) is None
    assert find(tmp_path, other_token) == other
    assert keys.listing(tmp_path, "shop") == [revoked, other]
    assert before.find(token.encode(), key.created_at) == key


def test_revoking_twice_keeps_the_time_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = keys.create(tmp_path, "shop")
    first = keys.revoke(tmp_path, key.public_id)
    monkeypatch.setattr("time.time", lambda: key.created_at + 1000.0)
    assert keys.revoke(tmp_path, key.public_id) == first


def test_revoking_an_unknown_key_or_that_of_another_workspace_is_misuse(tmp_path: Path) -> None:
    token, key = keys.create(tmp_path, "shop")
    for public_id, workspace in ((key.public_id, "bank"), ("a" * 12, "shop"), ("a" * 12, None)):
        with pytest.raises(UsageError, match="no key has this public id"):
            keys.revoke(tmp_path, public_id, workspace)
    assert find(tmp_path, token) == key


def test_revoking_by_the_whole_token_is_misuse_and_does_not_repeat_it(tmp_path: Path) -> None:
    token, key = keys.create(tmp_path, "shop")
    for given_id in (token, token[8:], token[21:], f" {key.public_id}"):
        with pytest.raises(UsageError) as caught:
            keys.revoke(tmp_path, given_id)
        assert caught.value.hint is not None
        assert "only the 12 characters" in caught.value.hint
        assert token[21:] not in f"{caught.value} {caught.value.hint}"
    assert find(tmp_path, token) == key


def test_the_listing_is_of_one_workspace_or_of_all_oldest_first(tmp_path: Path) -> None:
    minted = [keys.create(tmp_path, workspace)[1] for workspace in ("shop", "bank", "shop")]
    assert keys.listing(tmp_path, "shop") == [minted[0], minted[2]]
    assert keys.listing(tmp_path, "none") == []
    assert keys.listing(tmp_path, None) == minted


# The arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "n" * 101},
        {"name": "two\nlines"},
        {"name": "\ud800"},
        {"scopes": ()},
        {"scopes": ("read", "admin")},
        {"scopes": "read"},
        {"rate": 0},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"rate": 1e-300},
        {"rate": 10, "burst_rate": 9.9},
        {"rate": 10, "burst_rate": float("nan")},
        {"rate": 10, "burst_rate": 1e300},
        {"burst_rate": 10},
        {"burst_seconds": -1},
        {"burst_seconds": float("nan")},
        {"burst_seconds": float("inf")},
        {"expires_at": 1_000_000_000},
        {"expires_at": 10**30},
    ],
)
def test_an_argument_that_does_not_fit_is_misuse_and_nothing_is_written(
    tmp_path: Path, arguments: dict[str, object]
) -> None:
    with pytest.raises(UsageError):
        keys.create(tmp_path / "data", "shop", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "data").exists()


def test_limits_left_out_are_the_servers_and_a_rate_alone_brings_a_burst_rate_of_twice_that(tmp_path: Path) -> None:
    def limits(**given_limits: float) -> tuple[float | None, float | None, float | None]:
        token, _ = keys.create(tmp_path, "shop", **given_limits)  # type: ignore[arg-type]
        key = find(tmp_path, token)
        assert key is not None
        return key.rate, key.burst_rate, key.burst_seconds

    assert limits() == (None, None, None)
    assert limits(rate=50) == (50, 100, None)
    assert limits(rate=1_000_000) == (1_000_000, 1_000_000, None)
    assert limits(rate=50, burst_rate=50, burst_seconds=0) == (50, 50, 0)
    assert limits(burst_seconds=7.5) == (None, None, 7.5)


# What is kept


def test_only_the_hash_of_a_token_is_on_disk(tmp_path: Path) -> None:
    token, key = keys.create(tmp_path, "shop")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in stored
    assert token[21:64].encode() not in stored
    assert key.hash.encode() in stored
    assert key.hash == hashlib.sha256(token.encode()).hexdigest()


def test_a_printed_key_or_table_shows_no_hash(tmp_path: Path) -> None:
    _, key = keys.create(tmp_path, "shop", name="Edge")
    for shown in (repr(key), pretty_repr(key), repr(KeyTable.load(tmp_path)), pretty_repr(KeyTable.load(tmp_path))):
        assert "name='Edge'" in shown
        assert "hash" not in shown
        assert key.hash not in shown


def test_the_folder_and_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "deep" / "data"
    previous = os.umask(0)
    try:
        keys.create(data_dir, "shop")
        keys.create(data_dir, "shop")
    finally:
        os.umask(previous)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (data_dir, *data_dir.iterdir())}
    assert modes == {"data": 0o700, "keys.json": 0o600, "keys.lock": 0o600}


def test_the_stamp_is_none_without_a_file_and_changes_with_every_write(tmp_path: Path) -> None:
    assert keys.FILE.stamp(tmp_path) is None
    assert KeyTable.load(tmp_path) == KeyTable({})
    stamps = []
    for _ in range(3):
        _, key = keys.create(tmp_path, "shop")
        stamps.append(keys.FILE.stamp(tmp_path))
    keys.revoke(tmp_path, key.public_id)
    stamps.append(keys.FILE.stamp(tmp_path))
    assert None not in stamps
    assert all(stamp != later for stamp, later in pairwise(stamps))


# Other processes, crashes and bad disks

CREATE_TEN = """
import sys, pathlib
from edgeprofile import keys
for _ in range(10):
    print(keys.create(pathlib.Path(sys.argv[1]), "shop")[0])
"""

DIE_IN_CREATE = """
import os, pathlib, signal, sys
from edgeprofile import keys
data_dir, name, call, when = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
real, calls = getattr(os, name), 0
def deadly(*arguments, **named):
    global calls
    calls += 1
    if calls == call and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = real(*arguments, **named)
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
setattr(os, name, deadly)
keys.create(data_dir, "shop")
"""

CREATE_WITHOUT_END = CREATE_TEN.replace("range(10)", "iter(int, 1)").replace("[0])", "[0], flush=True)")


def test_four_processes_that_create_at_once_lose_no_key(tmp_path: Path) -> None:
    writers = [python(CREATE_TEN, tmp_path / "data") for _ in range(4)]
    outputs = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    tokens = [token for output in outputs for token in output.split()]
    table = KeyTable.load(tmp_path / "data")
    assert len(tokens) == len(table.keys) == 40
    assert all(table.find(token.encode(), 0) for token in tokens)


@pytest.mark.parametrize(
    ("name", "call", "when", "survivors"),
    [
        ("fsync", 1, "before", 1),
        ("fsync", 1, "after", 1),
        ("replace", 1, "before", 1),
        ("replace", 1, "after", 2),
        ("fsync", 2, "before", 2),
    ],
)
def test_a_writer_killed_anywhere_leaves_the_old_table_or_the_new_one(
    tmp_path: Path, name: str, call: int, when: str, survivors: int
) -> None:
    token, key = keys.create(tmp_path, "shop")
    writer = python(DIE_IN_CREATE, tmp_path, name, str(call), when)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    assert len(KeyTable.load(tmp_path).keys) == survivors
    assert find(tmp_path, token) == key
    assert (tmp_path / keys.FILE.temp_name).exists() == (survivors == 1)
    keys.create(tmp_path, "shop")
    assert len(KeyTable.load(tmp_path).keys) == survivors + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [keys.FILE.name, keys.FILE.lock_name]


def test_a_writer_killed_while_it_is_busy_has_kept_every_key_that_it_printed(tmp_path: Path) -> None:
    writer = python(CREATE_WITHOUT_END, tmp_path)
    assert writer.stdout is not None
    tokens = [writer.stdout.readline().strip() for _ in range(5)]
    writer.kill()
    tokens += [line for line in writer.communicate()[0].splitlines() if len(line) == len(tokens[0])]
    table = KeyTable.load(tmp_path)
    assert all(table.find(token.encode(), 0) for token in tokens)
    assert len(table.keys) - len(tokens) in (0, 1)


def assert_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="is damaged") as caught:
        KeyTable.load(path.parent)
    assert str(caught.value) == f"{path}: is damaged"


def test_a_truncated_file_is_an_error_that_names_the_file_alone(tmp_path: Path) -> None:
    keys.create(tmp_path, "shop")
    path = tmp_path / keys.FILE.name
    content = path.read_bytes()
    for length in range(len(content)):
        assert_damaged(path, content[:length])


def test_a_flipped_bit_anywhere_in_the_keys_is_an_error(tmp_path: Path) -> None:
    keys.create(tmp_path, "shop")
    path = tmp_path / keys.FILE.name
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7
        path.write_bytes(flipped)
        with pytest.raises(KeyFileError):
            KeyTable.load(tmp_path)


@given(st.binary())
@example(b"null")
@example(b"[]")
@example(b'{"format":1}')
@example(b'{"format":1,"crc32":0,"keys":"\xff"}')
def test_a_file_of_anything_else_is_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert_damaged(tmp_path_factory.mktemp("damaged") / keys.FILE.name, content)


def test_keys_of_another_shape_under_a_true_checksum_are_an_error(tmp_path: Path) -> None:
    rows = b'[{"public_id":"a"}]'
    assert_damaged(tmp_path / keys.FILE.name, b'{"format":1,"crc32":%d,"keys":%b}' % (zlib.crc32(rows), rows))


def test_a_format_to_come_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / keys.FILE.name).write_bytes(msgspec.json.encode({"format": 2, "kept": {}}))
    with pytest.raises(KeyFileError, match="has format 2, this build reads format 1"):
        KeyTable.load(tmp_path)


def test_a_damaged_file_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / keys.FILE.name
    path.write_bytes(b"{")
    with pytest.raises(KeyFileError):
        keys.create(tmp_path, "shop")
    with pytest.raises(KeyFileError):
        keys.revoke(tmp_path, "a" * 12)
    assert path.read_bytes() == b"{"


def test_a_file_or_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / keys.FILE.name).mkdir()
    with pytest.raises(KeyFileError, match="cannot be read: Is a directory"):
        KeyTable.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="cannot be written"):
        keys.create(tmp_path / "file", "shop")
    with pytest.raises(KeyFileError, match="cannot be read"):
        keys.FILE.stamp(tmp_path / "file")
