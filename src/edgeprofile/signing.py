"""What the server signs and seals: access tokens, and positions that callers carry back, by keys of its own.

The keys are in one small file of the data folder, which all workers watch. The newest signs. When another takes its
place, it goes on verifying for as long as a token lives and an hour more, so that a rotation ends no token.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry

from edgeprofile.errors import KeyFileError, Unauthorized, UsageError
from edgeprofile.keyfile import KeyFile

ISSUER = "edgeprofile"
ALGORITHM = "EdDSA"
TOKEN_TYPE = "at+jwt"  # of RFC 9068
TOKEN_SECONDS = 8 * 3_600
# A key verifies for so long after another took its place.
OVERLAP_SECONDS = TOKEN_SECONDS + 3_600
# A new key signs only once every worker has seen it, which takes them a tenth of a second.
SETTLING_SECONDS = 2
# Clocks of two moments, such as before and after a step of NTP's, may differ by so much.
LEEWAY_SECONDS = 60
KEYS_MAX = 8
SEED_BYTES = 32
TOKEN_BYTES_MAX = 2_048
SEALED_CHARS_MAX = 4_096
NONCE_BYTES = 12
VERIFIED_MAX = 4_096
BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


class SigningKey(msgspec.Struct, frozen=True):
    """What is kept of a key: all of it. `kid` names it in tokens; times are epoch seconds."""

    kid: str
    seed: Annotated[bytes, msgspec.Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]
    made_at: int
    retired_at: int | None = None

    def verifies(self, now_s: float) -> bool:
        """Whether what it signed is taken at `now_s`."""
        return self.retired_at is None or now_s < self.retired_at + OVERLAP_SECONDS

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # Whatever prints a key, a log or a traceback, leaves the seed out.
        return [(name, value) for name, value in super().__rich_repr__() if name != "seed"]

    def __repr__(self) -> str:
        return f"SigningKey({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


FILE = KeyFile("signing", list[SigningKey], hint="Put back a copy of it, or delete it and start the server again.")


def ensure(data_dir: Path) -> None:
    """Make the first key where there is none. Raises KeyFileError if the file is damaged or cannot be written."""
    if FILE.read(data_dir):
        return
    with FILE.locked(data_dir):
        if not FILE.read(data_dir):
            FILE.write(data_dir, [_new(int(time.time()))])


def rotate(data_dir: Path, *, drop_old: bool = False) -> list[SigningKey]:
    """Make a new key, and leave out those that verify nothing any more; return all that do, the new one last.

    `drop_old` leaves out all others: for one that leaked. Raises UsageError where there are too many, and KeyFileError
    as `ensure` does.
    """
    now_s = int(time.time())
    with FILE.locked(data_dir):
        kept = [] if drop_old else [_retired(key, now_s) for key in FILE.read(data_dir) if key.verifies(now_s)]
        if len(kept) >= KEYS_MAX:
            raise UsageError(
                f"{KEYS_MAX} signing keys were made within {OVERLAP_SECONDS // 3_600} hours",
                hint="Wait until the first of them verifies no more, or end all tokens by --drop-old.",
            )
        keys = [*kept, _new(now_s)]
        FILE.write(data_dir, keys)
    return keys


def _new(now_s: int) -> SigningKey:
    return SigningKey(kid=secrets.token_hex(8), seed=secrets.token_bytes(SEED_BYTES), made_at=now_s)


def _retired(key: SigningKey, now_s: int) -> SigningKey:
    return key if key.retired_at is not None else msgspec.structs.replace(key, retired_at=now_s)


class _Registry(JWSRegistry):
    """Knows one algorithm. joserfc warns of its name, which RFC 9864 replaced because it leaves the curve open."""

    def get_alg(self, name: str) -> Any:  # joserfc has no public name for it
        if name != ALGORITHM:
            raise UnsupportedAlgorithmError
        return self.algorithms[ALGORITHM]  # the curve is that of the key, always Ed25519


_REGISTRY = _Registry()


class _Signer:
    """One key, ready for use. `head` is how each of its tokens begins."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key
        self.header = {"typ": TOKEN_TYPE, "alg": ALGORITHM, "kid": key.kid}
        self.jwk = OKPKey.import_key(Ed25519PrivateKey.from_private_bytes(key.seed))
        self.aead = AESGCM(HKDF(SHA256(), 32, salt=None, info=b"edgeprofile seal").derive(key.seed))
        self.head = self.mint({}).partition(".")[0].encode()

    def mint(self, claims: dict[str, Any]) -> str:
        return jwt.encode(self.header, claims, self.jwk, registry=_REGISTRY)


class _Verified(NamedTuple):
    """What a token of ours says."""

    key: SigningKey
    public_id: bytes
    audience: str
    issued_at: int
    expires_at: int


class _Ring(NamedTuple):
    """All keys of one reading of the file, the newest last, and the tokens that were found good by them, by SHA-256."""

    signers: tuple[_Signer, ...]
    by_head: dict[bytes, _Signer]
    verified: dict[bytes, _Verified]


class SigningKeys:
    """The keys as this process knows them. Safe for threads: a reading of the file is swapped in whole."""

    def __init__(self, keys: Iterable[SigningKey] = ()) -> None:
        self.replace(keys)

    def replace(self, keys: Iterable[SigningKey]) -> None:
        """Take over a new reading of the file."""
        signers = tuple(map(_Signer, keys))
        self._ring = _Ring(signers, {signer.head: signer for signer in signers}, {})

    def mint_token(self, public_id: bytes, audience: str, now_s: float) -> str:
        """An access token (RFC 9068) for the API key of this public id, good for TOKEN_SECONDS.

        Raises KeyFileError where there is no key.
        """
        client = public_id.decode()
        claims = {
            "iss": ISSUER,
            "aud": audience,
            "sub": client,
            "client_id": client,
            "iat": int(now_s),
            "exp": int(now_s) + TOKEN_SECONDS,
            "jti": secrets.token_urlsafe(16),
        }
        return self._signer(now_s).mint(claims)

    def verify_token(self, token: bytes, audiences: Collection[str], now_s: float) -> bytes:
        """The public id that a token is for. Raises Unauthorized, whatever is wrong with it.

        Whether that API key is still good is for the gate to say, each time.
        """
        # A signature takes longer to check than all else of a request, so that is done once.
        ring, digest = self._ring, hashlib.sha256(token).digest()
        found = ring.verified.get(digest)
        if found is None:
            found = _verify(ring, token)
            if len(ring.verified) >= VERIFIED_MAX:
                ring.verified.clear()
            ring.verified[digest] = found
        # The time is asked each time: it may be over, and a clock may have been set back.
        is_now = found.issued_at - LEEWAY_SECONDS <= now_s < found.expires_at
        if not is_now or not found.key.verifies(now_s) or found.audience not in audiences:
            raise Unauthorized()
        return found.public_id

    def seal(self, purpose: bytes, payload: bytes, now_s: float | None = None) -> str:
        """An opaque text in base64url that `unseal` gives back for the same purpose, here and in all other workers.

        The payload may have 3,000 bytes. It is authenticated, and encrypted because it may hold an id and goes into
        URLs and logs: AES-256-GCM by a key that is derived from the signing key. Of 4 billion texts, two have the same
        nonce with a chance of 1 in 8 billion.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._signer(time.time() if now_s is None else now_s).aead.encrypt(nonce, payload, purpose)
        return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def unseal(self, purpose: bytes, text: str, now_s: float | None = None) -> bytes | None:
        """What was sealed for this purpose by any key that still verifies; None for every other text."""
        if len(text) > SEALED_CHARS_MAX or not BASE64URL.fullmatch(text) or len(text) % 4 == 1:
            return None
        sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        moment_s = time.time() if now_s is None else now_s
        for signer in reversed(self._ring.signers):
            if signer.key.verifies(moment_s):
                try:
                    return signer.aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], purpose)
                except (InvalidTag, ValueError):  # ValueError: too short to hold a nonce
                    continue
        return None

    def _signer(self, now_s: float) -> _Signer:
        signers = self._ring.signers
        if not signers:
            raise KeyFileError(f"there is no key to sign with: {FILE.name} is missing or damaged")
        if len(signers) > 1 and 0 <= now_s - signers[-1].key.made_at < SETTLING_SECONDS:
            return signers[-2]
        return signers[-1]


def _verify(ring: _Ring, token: bytes) -> _Verified:
    # Our tokens begin as we make them: what names another algorithm, type or key goes no further than this.
    signer = ring.by_head.get(token.partition(b".")[0]) if len(token) <= TOKEN_BYTES_MAX else None
    if signer is None:
        raise Unauthorized()
    try:
        claims = jwt.decode(token, signer.jwk, registry=_REGISTRY).claims
    except JoseError:
        raise Unauthorized() from None
    return _Verified(signer.key, claims["sub"].encode(), claims["aud"], claims["iat"], claims["exp"])
