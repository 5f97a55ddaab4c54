"""What is signed and sealed: which tokens are good, for how long, and what a rotation, a race or damage changes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey
from rich.pretty import pretty_repr
from workshop import Workshop

from edgeprofile import signing
from edgeprofile.errors import KeyFileError, Unauthorized, UsageError
from edgeprofile.signing import (
    FILE,
    KEYS_MAX,
    LEEWAY_SECONDS,
    OVERLAP_SECONDS,
    SETTLING_SECONDS,
    TOKEN_BYTES_MAX,
    TOKEN_SECONDS,
    VERIFIED_MAX,
    SigningKey,
    SigningKeys,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
CLIENT = b"HRYnWDJgRlLv"
AUDIENCE = "https://api.mparticle.com"
NOW = 1_750_000_000


def key(seed: bytes = b"s" * 32, **changes: Any) -> SigningKey:
    return SigningKey(**{"kid": seed[:8].hex(), "seed": seed, "made_at": NOW - 1_000, **changes})


KEYS = SigningKeys([key()])
TOKEN = KEYS.mint_token(CLIENT, AUDIENCE, NOW).encode()
HEAD = TOKEN.partition(b".")[0] + b"."


def assert_refused(keys: SigningKeys, token: bytes, now_s: float = NOW, audience: str = AUDIENCE) -> None:
    with pytest.raises(Unauthorized):
        keys.verify_token(token, [audience], now_s)


def decoded(part: bytes) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + b"=="))


def encoded(value: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def forged(header: dict[str, Any], claims: dict[str, Any], seed: bytes = b"s" * 32) -> bytes:
    """A token that is rightly signed, whatever it says."""
    content = encoded(header) + b"." + encoded(claims)
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(content)
    return content + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


# Tokens


def test_a_token_is_a_jwt_of_rfc_9068_and_a_public_id_is_read_back_from_it() -> None:
    header, claims, _ = TOKEN.split(b".")
    assert decoded(header) == {"typ": "at+jwt", "alg": "EdDSA", "kid": key().kid}
    said = decoded(claims)
    assert len(said.pop("jti")) == 22
    assert said == {
        "iss": "edgeprofile",
        "aud": AUDIENCE,
        "sub": CLIENT.decode(),
        "client_id": CLIENT.decode(),
        "iat": NOW,
        "exp": NOW + TOKEN_SECONDS,
    }
    assert KEYS.verify_token(TOKEN, ["https://elsewhere.example", AUDIENCE], NOW) == CLIENT
    assert KEYS.mint_token(CLIENT, AUDIENCE, NOW).encode() != TOKEN, "each has an id of its own"


def test_a_token_is_good_from_its_issue_to_its_expiry_whichever_way_clocks_jump() -> None:
    keys = SigningKeys([key()])
    for _ in range(2):  # from the signature, then from memory
        for moment_s in (NOW, NOW - LEEWAY_SECONDS, NOW + TOKEN_SECONDS - 0.001):
            assert keys.verify_token(TOKEN, [AUDIENCE], moment_s) == CLIENT
        for moment_s in (NOW - LEEWAY_SECONDS - 0.001, NOW + TOKEN_SECONDS, 0, 1e12):
            assert_refused(keys, TOKEN, moment_s)


def test_a_token_for_another_audience_is_refused_also_from_memory() -> None:
    for _ in range(2):
        assert_refused(KEYS, TOKEN, audience=AUDIENCE + "/")
        assert KEYS.verify_token(TOKEN, [AUDIENCE], NOW) == CLIENT
    with pytest.raises(Unauthorized):
        KEYS.verify_token(TOKEN, [], NOW)


def test_a_token_with_any_character_changed_is_refused() -> None:
    for place in range(len(TOKEN)):
        for other in (b"A", b"_", b".", b"=", b"\0", b"\xff"):
            changed = TOKEN[:place] + other + TOKEN[place + 1 :]
            if changed != TOKEN:
                assert_refused(KEYS, changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "HS256"},
        {"alg": "Ed25519"},
        {"alg": ["EdDSA"]},
        {"alg": None},
        {"typ": "JWT"},
        {"typ": "application/at+jwt"},
        {"typ": None},
        {"kid": "unknown"},
        {"kid": None},
        {"crit": ["exp"]},
        {"b64": False},
        {"jwk": {"kty": "OKP"}},
    ],
    ids=str,
)
def test_a_token_that_names_another_algorithm_type_or_key_is_refused(changes: dict[str, Any]) -> None:
    header, claims, _ = TOKEN.split(b".")
    said = {name: value for name, value in {**decoded(header), **changes}.items() if value is not None}
    token = forged(said, decoded(claims))
    assert_refused(KEYS, token)
    assert_refused(KEYS, token.rpartition(b".")[0] + b".")


def test_the_public_key_as_a_shared_secret_signs_nothing() -> None:
    header, claims, _ = TOKEN.split(b".")
    public = OKPKey.import_key(Ed25519PrivateKey.from_private_bytes(key().seed)).as_dict(private=False)["x"]
    secret = OctKey.import_key(base64.urlsafe_b64decode(f"{public}="))
    token = jwt.encode({**decoded(header), "alg": "HS256"}, decoded(claims), secret, algorithms=["HS256"])
    assert_refused(KEYS, token.encode())
    assert_refused(KEYS, header + b"." + token.encode().partition(b".")[2])


def test_a_token_by_another_key_of_the_same_name_is_refused() -> None:
    other = SigningKeys([key(b"o" * 32, kid=key().kid)])
    assert_refused(other, TOKEN)
    assert_refused(KEYS, other.mint_token(CLIENT, AUDIENCE, NOW).encode())
    assert_refused(SigningKeys(), TOKEN)


@given(st.binary(max_size=200), st.sampled_from([b"", HEAD, TOKEN.rpartition(b".")[0] + b"."]))
def test_noise_is_refused_also_behind_a_true_beginning(noise: bytes, beginning: bytes) -> None:
    assert_refused(KEYS, beginning + noise)


def test_an_oversized_token_is_refused_unread() -> None:
    assert_refused(KEYS, TOKEN + b"A" * TOKEN_BYTES_MAX)
    header, claims, _ = TOKEN.split(b".")
    assert_refused(KEYS, forged(decoded(header), {**decoded(claims), "more": "x" * TOKEN_BYTES_MAX}))
    assert_refused(KEYS, header + b"." + b"[" * 1_500 + b".")


def test_as_many_good_tokens_are_remembered_as_there_is_room_for_and_none_that_is_not() -> None:
    keys = SigningKeys([key()])
    tokens = [keys.mint_token(CLIENT, AUDIENCE, NOW).encode() for _ in range(20)]
    for token in tokens:
        assert keys.verify_token(token, [AUDIENCE], NOW) == CLIENT
        assert_refused(keys, token[:-1])
    remembered = keys._ring.verified
    assert len(remembered) == 20
    known = next(iter(remembered.values()))
    remembered.update((b"%d" % number, known) for number in range(VERIFIED_MAX - 20))
    assert len(remembered) == VERIFIED_MAX
    assert keys.verify_token(TOKEN, [AUDIENCE], NOW) == CLIENT
    assert len(remembered) == 1
    assert keys.verify_token(tokens[0], [AUDIENCE], NOW) == CLIENT


# Sealed texts


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_what_is_sealed_is_given_back_for_the_same_purpose_alone(payload: bytes, purpose: bytes) -> None:
    text = KEYS.seal(purpose, payload, NOW)
    assert KEYS.unseal(purpose, text, NOW) == payload
    assert KEYS.unseal(purpose + b"!", text, NOW) is None
    assert SigningKeys([key(b"o" * 32)]).unseal(purpose, text, NOW) is None
    assert KEYS.seal(purpose, payload, NOW) != text


def test_a_sealed_text_shows_nothing_of_what_is_in_it() -> None:
    text = KEYS.seal(b"scroll", b"jane@example.com", NOW)
    assert b"jane" not in base64.urlsafe_b64decode(text + "==")


def test_a_sealed_text_with_any_character_changed_is_none() -> None:
    text = KEYS.seal(b"scroll", b"12345", NOW)
    for place in range(len(text)):
        for other in "A_=.é\0":
            changed = text[:place] + other + text[place + 1 :]
            assert changed == text or KEYS.unseal(b"scroll", changed, NOW) is None
    for cut in range(len(text)):
        assert KEYS.unseal(b"scroll", text[:cut], NOW) is None
    for added in (text + "A", text + "AAAA", "A" * 1_000_000, text + "\n", f" {text}", "\ud800"):
        assert KEYS.unseal(b"scroll", added, NOW) is None


def test_a_token_unseals_as_nothing_and_a_sealed_text_is_no_token() -> None:
    assert KEYS.unseal(b"", TOKEN.decode(), NOW) is None
    assert_refused(KEYS, KEYS.seal(b"", b"x", NOW).encode())


# The file


def stored(data_dir: Path) -> list[SigningKey]:
    return FILE.read(data_dir)


def test_the_first_key_is_made_once_and_is_for_its_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "deep" / "data"
    previous = os.umask(0)
    try:
        signing.ensure(data_dir)
        made = stored(data_dir)
        signing.ensure(data_dir)
    finally:
        os.umask(previous)
    assert (len(made), stored(data_dir)) == (1, made)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (data_dir, *data_dir.iterdir())}
    assert modes == {"data": 0o700, "signing.json": 0o600, "signing.lock": 0o600}


def test_processes_that_start_at_once_make_one_key(tmp_path: Path) -> None:
    program = "import pathlib, sys; from edgeprofile import signing; signing.ensure(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    starting = [subprocess.Popen(command, env=ENVIRONMENT) for _ in range(4)]
    assert [process.wait() for process in starting] == [0] * 4
    assert len(stored(tmp_path / "data")) == 1


def test_a_printed_key_shows_no_seed() -> None:
    for shown in (repr(key()), pretty_repr(key())):
        assert "kid=" in shown
        assert "seed" not in shown
        assert "sss" not in shown


def test_a_damaged_file_is_an_error_and_is_never_written_over(tmp_path: Path) -> None:
    signing.ensure(tmp_path)
    path = tmp_path / FILE.name
    whole = path.read_bytes()
    for content in (b"", b"{", whole[:-1], whole.replace(b'"kid"', b'"kiD"'), whole.replace(b"1", b"2", 1)):
        path.write_bytes(content)
        for act in (signing.ensure, signing.rotate, stored):
            with pytest.raises(KeyFileError):
                act(tmp_path)
        assert path.read_bytes() == content


def test_without_a_key_nothing_is_signed_and_nothing_verified() -> None:
    keys = SigningKeys()
    with pytest.raises(KeyFileError, match="no key to sign with"):
        keys.mint_token(CLIENT, AUDIENCE, NOW)
    with pytest.raises(KeyFileError, match="no key to sign with"):
        keys.seal(b"", b"", NOW)
    assert keys.unseal(b"", KEYS.seal(b"", b"", NOW), NOW) is None


# Rotation


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time that a rotation finds."""

    def set_clock(now_s: float) -> None:
        monkeypatch.setattr("time.time", lambda: now_s)

    set_clock(NOW)
    return set_clock


def test_a_new_key_signs_as_soon_as_all_workers_know_it(tmp_path: Path, clock: Callable[[float], None]) -> None:
    clock(NOW - 1_000)
    old = signing.rotate(tmp_path)[-1]
    clock(NOW)
    new = signing.rotate(tmp_path)[-1]
    keys = SigningKeys(stored(tmp_path))

    def signer(now_s: float) -> str:
        return str(decoded(keys.mint_token(CLIENT, AUDIENCE, now_s).encode().partition(b".")[0])["kid"])

    for moment_s in (NOW, NOW + SETTLING_SECONDS - 0.001):
        assert signer(moment_s) == old.kid
    for moment_s in (NOW + SETTLING_SECONDS, NOW + 1e6, NOW - 1):
        assert signer(moment_s) == new.kid


def test_what_an_old_key_signed_is_good_until_it_would_be_over_anyway(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    clock(NOW - 1_000)
    signing.rotate(tmp_path)
    before = SigningKeys(stored(tmp_path))
    token, text = before.mint_token(CLIENT, AUDIENCE, NOW).encode(), before.seal(b"scroll", b"12345", NOW)
    clock(NOW)
    signing.rotate(tmp_path)
    clock(NOW + 100)
    signing.rotate(tmp_path)
    keys = SigningKeys(stored(tmp_path))
    assert keys.verify_token(token, [AUDIENCE], NOW + TOKEN_SECONDS - 1) == CLIENT
    assert_refused(keys, token, NOW + TOKEN_SECONDS)
    assert keys.unseal(b"scroll", text, NOW + OVERLAP_SECONDS - 1) == b"12345"
    assert keys.unseal(b"scroll", text, NOW + OVERLAP_SECONDS) is None
    clock(NOW + OVERLAP_SECONDS)
    assert [each.made_at for each in signing.rotate(tmp_path)] == [NOW, NOW + 100, NOW + OVERLAP_SECONDS]


def test_an_old_key_that_somebody_has_found_signs_nothing_new_for_ever() -> None:
    late = NOW + OVERLAP_SECONDS
    token = SigningKeys([key()]).mint_token(CLIENT, AUDIENCE, late).encode()
    keys = SigningKeys([key(retired_at=NOW), key(b"n" * 32)])
    assert keys.verify_token(token, [AUDIENCE], late - 1) == CLIENT
    assert_refused(keys, token, late)


def test_dropping_the_old_keys_ends_all_tokens(tmp_path: Path, clock: Callable[[float], None]) -> None:
    signing.rotate(tmp_path)
    keys = SigningKeys(stored(tmp_path))
    token, text = keys.mint_token(CLIENT, AUDIENCE, NOW).encode(), keys.seal(b"scroll", b"12345", NOW)
    assert keys.verify_token(token, [AUDIENCE], NOW) == CLIENT
    assert len(signing.rotate(tmp_path, drop_old=True)) == 1
    keys.replace(stored(tmp_path))
    assert_refused(keys, token)
    assert keys.unseal(b"scroll", text, NOW) is None
    assert keys.verify_token(keys.mint_token(CLIENT, AUDIENCE, NOW).encode(), [AUDIENCE], NOW) == CLIENT


def test_there_are_never_more_keys_than_a_few(tmp_path: Path, clock: Callable[[float], None]) -> None:
    for number in range(KEYS_MAX):
        assert len(signing.rotate(tmp_path)) == number + 1
    with pytest.raises(UsageError, match="8 signing keys were made within 9 hours"):
        signing.rotate(tmp_path)
    assert len(stored(tmp_path)) == KEYS_MAX
    clock(NOW + OVERLAP_SECONDS)
    assert len(signing.rotate(tmp_path)) == 2
    assert len(signing.rotate(tmp_path, drop_old=True)) == 1


class Rotations(RuleBasedStateMachine):
    """Time passes, keys are rotated, two workers notice that when they do: no token is refused before its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = NOW
        self.kept = [key(made_at=NOW - 1_000)]
        self.workers = [SigningKeys(self.kept), SigningKeys(self.kept)]
        self.behind: set[int] = set()
        self.given: list[tuple[bytes, str, int]] = []

    @rule(seconds=st.integers(0, 2 * SETTLING_SECONDS) | st.integers(0, OVERLAP_SECONDS))
    def pass_time(self, seconds: int) -> None:
        self.now_s += seconds
        if self.now_s - self.kept[-1].made_at >= SETTLING_SECONDS:  # by then all have noticed
            for number in list(self.behind):
                self.notice(number)

    @rule()
    def rotate(self) -> None:
        # As `rotate` does it with the file, whose tests are above; within the time that workers take, only once.
        if self.behind or len(self.kept) >= KEYS_MAX or self.now_s - self.kept[-1].made_at < SETTLING_SECONDS:
            return
        usable = [each for each in self.kept if each.verifies(self.now_s)]
        self.kept = [*(signing._retired(each, self.now_s) for each in usable), signing._new(self.now_s)]
        self.behind = {0, 1}

    @rule(number=st.sampled_from([0, 1]))
    def notice(self, number: int) -> None:
        self.workers[number].replace(self.kept)
        self.behind.discard(number)

    @rule(number=st.sampled_from([0, 1]))
    def give(self, number: int) -> None:
        worker = self.workers[number]
        token = worker.mint_token(CLIENT, AUDIENCE, self.now_s).encode()
        self.given.append((token, worker.seal(b"scroll", token, self.now_s), self.now_s))

    @invariant()
    def both_take_all_that_is_not_over(self) -> None:
        for worker in self.workers:
            for token, text, given_s in self.given[-5:]:
                if self.now_s < given_s + TOKEN_SECONDS:
                    assert worker.verify_token(token, [AUDIENCE], self.now_s) == CLIENT
                    assert worker.unseal(b"scroll", text, self.now_s) == token
                else:
                    assert_refused(worker, token, self.now_s)


TestRotations = Rotations.TestCase
TestRotations.settings = settings(max_examples=30)


def test_the_command_rotates_and_says_so(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id")
    said = [shop.run("keys", "rotate-signing", *options) for options in ([], [], ["--drop-old"])]
    assert [(ended.status, ended.err) for ended in said] == [(0, "")] * 3
    assert [ended.out.partition("; ")[2] for ended in said] == [
        f"{count} older ones go on verifying what they signed\n" for count in (0, 1, 0)
    ]
    [last] = stored(tmp_path / "var")
    assert said[2].out.startswith(f"key {last.kid} signs from now on")
    assert time.time() - last.made_at < 60
