"""Certificates for the tests: authorities, what they issue, and how clients of them speak TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
NAMES = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
OF_AN_AUTHORITY = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Issued(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes NAME.pem and NAME.key, each at once, as tools that renew certificates do."""
        files = folder / f"{name}.pem", folder / f"{name}.key"
        for file, content in zip(files, (self.pem, self.key_pem), strict=True):
            replace(file, content)
        return files


def replace(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


class Authority:
    """Issues certificates for this machine; `root` is its own."""

    def __init__(self, name: str = "an authority") -> None:
        self.root = self._issue(name, None, ec.generate_private_key(ec.SECP256R1()), days=30)

    def issue(self, name: str = "localhost", *, key: Key | None = None, days: int = 30) -> Issued:
        """A certificate of that name, good for so many days from yesterday on."""
        return self._issue(name, self.root, key or ec.generate_private_key(ec.SECP256R1()), days)

    def _issue(self, name: str, issuer: Issued | None, key: Key, days: int) -> Issued:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(yesterday)
            .not_valid_after(yesterday + dt.timedelta(days=days, seconds=-1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if issuer is None:
            builder = builder.add_extension(OF_AN_AUTHORITY, critical=True)
        else:
            by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
            uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
            for extension in (NAMES, by, uses):
                builder = builder.add_extension(extension, critical=False)
        return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)

    def client(self, files: tuple[Path, Path] | None = None, *protocols: str) -> ssl.SSLContext:
        """How a client that trusts this authority speaks: by a certificate of its own, if `files` has one."""
        context = ssl.create_default_context(cadata=self.root.pem.decode())
        context.set_alpn_protocols(list(protocols or ("http/1.1",)))
        if files is not None:
            context.load_cert_chain(*files)
        return context
