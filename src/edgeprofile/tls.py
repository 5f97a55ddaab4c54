"""What the server proves itself by: its certificate and key, and the authority that its clients must come from.

They are read and checked together, before a worker sees them, and kept in memory. A worker that is started later
presents what was checked, whatever lies on disk by then: a renewal that is half done, or one that went wrong, changes
nothing.
"""

from __future__ import annotations

import datetime as dt
import os
import weakref
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from edgeprofile.errors import SettingsError
from edgeprofile.settings import Settings

PEM_BYTES_MAX = 1024 * 1024
# What Granian's TLS signs with.
CURVES = (ec.SECP256R1, ec.SECP384R1)
RSA_BITS = (2048, 3072, 4096)
KEYS = "a private key of ECDSA (P-256 or P-384), Ed25519 or RSA (2048, 3072 or 4096 bits)"

Stamp = tuple[tuple[int, ...] | None, ...]


class Identity:
    """A certificate with those that vouch for it, its key, and the authority of clients or None, as `content`.

    Each is a file in memory too, which processes that are forked from this one can open by the paths given here.
    """

    def __init__(self, content: tuple[bytes, bytes, bytes | None], expires_at: dt.datetime) -> None:
        self.content = content
        self.expires_at = expires_at
        certificate, key, client_ca = content
        self.certificate_file = self._in_memory(certificate)
        self.key_file = self._in_memory(key)
        self.client_ca_file = None if client_ca is None else self._in_memory(client_ca)

    def _in_memory(self, content: bytes) -> str:
        file = os.memfd_create("edgeprofile-tls")
        weakref.finalize(self, os.close, file)
        os.fchmod(file, 0o600)
        os.write(file, content)
        return f"/proc/self/fd/{file}"


def read(settings: Settings) -> Identity | None:
    """What the settings name, or None where they name nothing. Raises SettingsError."""
    server = settings.server
    if server.tls_certificate is None or server.tls_key is None:
        return None
    chain = _certificates(settings, "tls_certificate", server.tls_certificate)
    leaf = chain[0]
    if leaf.version is not x509.Version.v3:
        raise _fault(settings, "tls_certificate", "a certificate of X.509 version 3", "one of version 1")
    key = _key(settings, server.tls_key)
    if leaf.public_key() != key.public_key():
        raise _fault(settings, "tls_key", "the key of server.tls_certificate's first certificate", "another")
    client_ca = server.tls_client_ca and _certificates(settings, "tls_client_ca", server.tls_client_ca)
    return Identity(
        (
            _pem(chain),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            _pem(client_ca) if client_ca else None,
        ),
        leaf.not_valid_after_utc,
    )


def _certificates(settings: Settings, name: str, path: Path) -> list[x509.Certificate]:
    expected = "certificates in PEM"
    content = _content(settings, name, path, expected)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise _fault(settings, name, expected, f"none in {path}") from None


def _key(settings: Settings, path: Path) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey:
    content = _content(settings, "tls_key", path, KEYS)
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        hint = "write it without its password to a file that only the server's user can read: openssl pkey"
        raise _fault(settings, "tls_key", "a private key without a password", "one that has one", hint) from None
    except (ValueError, UnsupportedAlgorithm):  # whose words may quote the file
        raise _fault(settings, "tls_key", KEYS, f"none in {path}") from None
    match key:
        case ec.EllipticCurvePrivateKey() if isinstance(key.curve, CURVES):
            return key
        case rsa.RSAPrivateKey() if key.key_size in RSA_BITS:
            return key
        case ed25519.Ed25519PrivateKey():
            return key
    raise _fault(settings, "tls_key", KEYS, "one of another kind")


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _content(settings: Settings, name: str, path: Path, expected: str) -> bytes:
    try:
        with (settings.folder / path).open("rb") as file:
            content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise _fault(settings, name, expected, f"none that can be read ({error.strerror}: {path})") from None
    if len(content) > PEM_BYTES_MAX:
        raise _fault(settings, name, expected, f"over {PEM_BYTES_MAX} bytes in {path}")
    return content


def _fault(settings: Settings, name: str, expected: str, found: str, hint: str | None = None) -> SettingsError:
    return SettingsError(f"{settings.file}: server.{name}: expected {expected}, found {found}", hint=hint)


class Renewals:
    """Notices when the files of an identity were replaced, once they have come to rest: there may be two to write."""

    def __init__(self, settings: Settings) -> None:
        self._last = self._taken = _stamp(settings)

    def poll(self, settings: Settings) -> bool:
        """Whether the files are others than those that were there the last time that this was true."""
        now = _stamp(settings)
        has_rested, self._last = now == self._last, now
        if not has_rested or now == self._taken:
            return False
        self._taken = now
        return True


def _stamp(settings: Settings) -> Stamp:
    server = settings.server
    paths = (server.tls_certificate, server.tls_key, server.tls_client_ca)
    return tuple(_stamp_of(settings.folder / path) for path in paths if path is not None)


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    """What changes with a file, also with where a link leads; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
