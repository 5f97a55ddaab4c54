"""API keys: minted once, kept only as hashes in one small file, and checked by every worker against its own view of it.

A key is `sk_live_<public id>_<secret><checksum>`, in base62 digits: 12, 43 and 6. The public id names the key to
people, the secret holds 256 bits of randomness, and by the checksum (CRC-32 of all before it) a mistyped key is
refused without a look-up, and a secret scanner knows a real one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from edgeprofile.errors import UsageError
from edgeprofile.keyfile import KeyFile

SCOPES = ("read", "write")
NAME_CHARS_MAX = 100
RATE_MIN, RATE_MAX = 0.001, 1_000_000
BURST_SECONDS_MAX = 86_400
EXPIRES_AT_MAX = 253_402_300_799  # The last second of the year 9999: the last that a date can show.

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PUBLIC_ID = re.compile(r"[0-9A-Za-z]{12}")
_TOKEN = re.compile(rb"sk_live_([0-9A-Za-z]{12})_[0-9A-Za-z]{43}([0-9A-Za-z]{6})")
_NO_HASH = "-" * 64  # As long as a SHA-256 in hex, and never equal to one.


class Key(msgspec.Struct, frozen=True):
    """What is kept of a key: all but the secret. Times are epoch seconds, rates requests a second.

    `rate`, `burst_rate` and `burst_seconds` are None where the server's default holds.
    """

    public_id: str
    workspace: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    rate: float | None = None
    burst_rate: float | None = None
    burst_seconds: float | None = None

    def usable(self, now_s: float) -> bool:
        """Whether the key is neither revoked nor, at `now_s`, expired."""
        # A revoked key stays so whatever this machine's clock says.
        return self.revoked_at is None and (self.expires_at is None or now_s < self.expires_at)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # Whatever prints a key, a log or a traceback, leaves the hash out.
        return [(name, value) for name, value in super().__rich_repr__() if name != "hash"]

    def __repr__(self) -> str:
        return f"Key({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


FILE = KeyFile("keys", list[Key], hint="Put back a copy of it, or move it away and mint new keys.")


class KeyTable(msgspec.Struct, frozen=True):
    """One reading of the file, by public id, that never changes."""

    keys: dict[str, Key]

    @classmethod
    def of(cls, keys: Iterable[Key]) -> KeyTable:
        return cls({key.public_id: key for key in keys})

    @classmethod
    def load(cls, data_dir: Path) -> KeyTable:
        """Read the file; a missing one is an empty table. Raises KeyFileError if it is damaged or unreadable."""
        return cls.of(FILE.read(data_dir))

    def find(self, token: bytes, now_s: float) -> Key | None:
        """The usable key that this token is, or None for every other token, whatever is wrong with it."""
        public_id = parse_public_id(token)
        if public_id is None:
            return None
        key = self.keys.get(public_id)
        # An unknown public id costs as much as a known one, so the time taken does not tell which exist.
        matches = hmac.compare_digest(_hash(token), _NO_HASH if key is None else key.hash)
        return key if key is not None and matches and key.usable(now_s) else None


def parse_public_id(token: bytes) -> str | None:
    """The public id in a token of the right shape and checksum, else None. It does not say that the key exists."""
    match = _TOKEN.fullmatch(token)
    if match is None or _checksum(token[: match.start(2)]) != match[2].decode():
        return None
    return match[1].decode()


def create(
    data_dir: Path,
    workspace: str,
    *,
    name: str = "",
    scopes: Iterable[str] = ("read",),
    rate: float | None = None,
    burst_rate: float | None = None,
    burst_seconds: float | None = None,
    expires_at: int | None = None,
) -> tuple[str, Key]:
    """Mint a key; return the secret token, which is not kept anywhere, and what is kept.

    A `rate` alone brings a `burst_rate` of twice that (the ratio of the server's defaults). A `burst_rate` alone is
    refused, since the default rate, which may change, could exceed it. `expires_at` is in epoch seconds.
    Raises UsageError for an argument that does not fit, KeyFileError if the file is damaged or cannot be written.
    """
    now_s = int(time.time())
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise UsageError(f"a key's name has at most {NAME_CHARS_MAX} characters, all printable")
    if expires_at is not None and not now_s < expires_at <= EXPIRES_AT_MAX:
        raise UsageError("a key's expiry lies in the future, before the year 10000")
    wanted = _check_scopes(scopes)
    rate, burst_rate, burst_seconds = _check_limits(rate, burst_rate, burst_seconds)
    public_id, token = _mint()
    key = Key(
        public_id=public_id,
        workspace=workspace,
        name=name,
        hash=_hash(token.encode()),
        scopes=wanted,
        created_at=now_s,
        expires_at=expires_at,
        rate=rate,
        burst_rate=burst_rate,
        burst_seconds=burst_seconds,
    )
    with FILE.locked(data_dir):
        FILE.write(data_dir, [*KeyTable.load(data_dir).keys.values(), key])
    return token, key


def revoke(data_dir: Path, public_id: str, workspace: str | None = None) -> Key:
    """Revoke a key for good; return it. One revoked before keeps the time of the first.

    Raises UsageError if `workspace` (None: any) has no such key, KeyFileError as `create` does.
    """
    if _PUBLIC_ID.fullmatch(public_id) is None:
        # What was given may be a whole key, so it is not repeated.
        raise UsageError(
            "this is not a key's public id",
            hint="Give only the 12 characters between sk_live_ and the next _, never the whole key.",
        )
    with FILE.locked(data_dir):
        keys = KeyTable.load(data_dir).keys
        key = keys.get(public_id)
        if key is None or workspace not in (None, key.workspace):
            raise UsageError("no key has this public id", hint="`edgeprofile keys list` shows those there are.")
        if key.revoked_at is None:
            key = msgspec.structs.replace(key, revoked_at=int(time.time()))
        # Written even if revoked before: the write then may have failed to reach the disk.
        FILE.write(data_dir, (keys | {public_id: key}).values())
    return key


def listing(data_dir: Path, workspace: str | None) -> list[Key]:
    """The keys of a workspace (None: of all), revoked and expired ones too, oldest first. Raises KeyFileError."""
    return [key for key in KeyTable.load(data_dir).keys.values() if workspace in (None, key.workspace)]


def base62(number: int, digits: int) -> str:
    """A number from 0 to 62**digits - 1, most significant digit first, with leading zeros."""
    return "".join(BASE62[number // 62**place % 62] for place in reversed(range(digits)))


def _mint() -> tuple[str, str]:
    public_id = base62(secrets.randbelow(62**12), 12)
    body = f"sk_live_{public_id}_{base62(secrets.randbits(256), 43)}"
    return public_id, body + _checksum(body.encode())


def _checksum(body: bytes) -> str:
    return base62(zlib.crc32(body), 6)


def _hash(token: bytes) -> str:
    # A slow password hash would add nothing: 256 random bits cannot be guessed however fast the guesses.
    return hashlib.sha256(token).hexdigest()


def _check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    wanted = set(scopes)
    if not wanted or not wanted.issubset(SCOPES):
        raise UsageError(f"a key has one or more of the scopes {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in wanted)


def _check_limits(
    rate: float | None, burst_rate: float | None, burst_seconds: float | None
) -> tuple[float | None, float | None, float | None]:
    if burst_seconds is not None and not 0 <= burst_seconds <= BURST_SECONDS_MAX:
        raise UsageError(f"a key's burst seconds are from 0 to {BURST_SECONDS_MAX}")
    if rate is None:
        if burst_rate is not None:
            raise UsageError("a key with a burst rate of its own needs a rate of its own too")
        return None, None, burst_seconds
    burst_rate = min(2 * rate, RATE_MAX) if burst_rate is None else burst_rate
    # Not-a-number fails every comparison, so it is refused here too.
    if not RATE_MIN <= rate <= burst_rate <= RATE_MAX:
        raise UsageError(f"a key's rate is from {RATE_MIN} to {RATE_MAX} a second, and its burst rate no less")
    return rate, burst_rate, burst_seconds
