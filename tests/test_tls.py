"""TLS as callers meet it: versions, HTTP/2, certificates of clients; and files that cannot be served."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from authority import Authority, Key
from conftest import PROFILES, MakeService
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from http2 import REFUSED_STREAM, Http2, StreamReset
from service import DECLARED, HOST, Connection, Service, exchange, request
from test_loop import deferred
from workshop import Workshop

JANE = "/v1/profiles/id/12345"
TLS = 'tls_certificate = "server.pem"\ntls_key = "server.key"\nready_delay_seconds = 0\ndrain_seconds = 5'
MUTUAL = f'{TLS}\ntls_client_ca = "clients.pem"'


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Service]:
    """Two workers that speak TLS. Tests only ask."""
    folder = tmp_path_factory.mktemp("secured")
    authority.issue().write(folder, "server")
    made = Service(folder, {"shop": DECLARED}, workers=2, server=TLS, context=authority.client())
    made.run_sql(PROFILES.replace("{ids}", "['a/b']"))
    made.load()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def key(secured: Service) -> str:
    return secured.key()


# --- versions ------------------------------------------------------------------------------------------------------


def spoken(port: int, context: ssl.SSLContext, version: ssl.TLSVersion) -> str | None:
    """The version of TLS that a client and the server agree on, where the client knows only this one."""
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain, server_hostname=HOST) as secure:
        return secure.version()


def test_tls_of_today_is_spoken(secured: Service, authority: Authority) -> None:
    assert spoken(secured.port, authority.client(), ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert spoken(secured.port, authority.client(), ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


def test_tls_of_yesterday_is_refused(secured: Service, authority: Authority) -> None:
    context = authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1"),
        pytest.raises(ssl.SSLError, match="ALERT_HANDSHAKE_FAILURE"),
    ):
        spoken(secured.port, context, ssl.TLSVersion.TLSv1_1)


def test_ciphers_of_yesterday_are_refused(secured: Service, authority: Authority) -> None:
    context = authority.client()
    context.set_ciphers("ALL:!AESGCM:!CHACHA20:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="ALERT_HANDSHAKE"):
        spoken(secured.port, context, ssl.TLSVersion.TLSv1_2)


KEYS: list[Callable[[], Key]] = [
    lambda: ec.generate_private_key(ec.SECP384R1()),
    lambda: rsa.generate_private_key(65537, 2048),
    lambda: rsa.generate_private_key(65537, 4096),
    ed25519.Ed25519PrivateKey.generate,
]


@pytest.mark.parametrize("make_key", KEYS)
def test_every_kind_of_key_that_is_taken_can_be_served(
    make_service: MakeService, authority: Authority, make_key: Callable[[], Key]
) -> None:
    service = make_service(server=TLS, context=authority.client())
    authority.issue(key=make_key()).write(service.folder, "server")
    service.start(ready=503)


def test_plaintext_is_answered_by_none(secured: Service) -> None:
    with Connection(secured.port) as connection:
        connection.send(request("/livez"))
        assert not connection.read_all().startswith(b"HTTP")
    assert secured.get("/livez").status == 200


# --- HTTP/1.1 and HTTP/2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_each_version_of_http_gives_the_same_answers(
    secured: Service, authority: Authority, key: str, version: str
) -> None:
    context = authority.client(None, "h2", "http/1.1")
    bearer = {"authorization": f"Bearer {key}"}
    batch = b'{"profiles":[{"id":"12345"},{"namespace":"email","value":"jane@example.com"},{"id":"nobody"}]}'
    url = f"https://{HOST}:{secured.port}"
    with httpx.Client(http1=version == "HTTP/1.1", http2=version == "HTTP/2", verify=context, base_url=url) as client:
        whole = client.get(JANE, headers=bearer)
        many = client.post("/v1/profiles/lookup", content=batch, headers=bearer)
        in_pieces = client.post("/v1/profiles/lookup", content=iter([batch[:9], batch[9:]]), headers=bearer)
        answers = [
            (whole, 200),
            (client.head(JANE, headers=bearer), 200),
            (client.get(JANE, headers=bearer | {"if-none-match": whole.headers["etag"]}), 304),
            (client.get("/v1/profiles/id/a%2Fb?fields=audiences", headers=bearer), 200),
            (many, 200),
            (in_pieces, 200),
            (client.post("/v1/profiles/lookup", content=b"{", headers=bearer), 400),
            (client.get(JANE), 401),
            (client.get("/v1/profiles/id/nobody", headers=bearer), 404),
            (client.put(JANE, headers=bearer), 405),
            (client.get("/v1/profiles/id/large", headers=bearer), 413),
            (client.get("/readyz"), 200),
            (client.get("/nowhere"), 404),
        ]
    assert [answer.status_code for answer, _ in answers] == [status for _, status in answers]
    assert {answer.http_version for answer, _ in answers} == {version}
    assert whole.content == secured.get(JANE, key).body
    assert [profile and profile["profile_id"] for profile in many.json()["profiles"]] == ["12345", "12345", None]
    assert in_pieces.content == many.content
    assert deferred(secured) == 0, "all lookups were answered before the event loop"


def test_many_requests_at_once_over_one_connection_each_get_their_answer(
    secured: Service, authority: Authority, key: str
) -> None:
    connection = Http2(secured.port, authority.client(None, "h2"))
    ids = ["12345", "twin-old", "nobody", "a%2Fb"] * 40
    answers = connection.ask_all([f"/v1/profiles/id/{one}" for one in ids], key)
    found = [answer.json()["profile_id"] if answer.status == 200 else answer.status for answer in answers]
    assert found == ["12345", "twin-old", 404, "a/b"] * 40
    connection.close()


def test_requests_beyond_those_that_may_be_under_way_at_once_are_refused_and_not_left_unanswered(
    secured: Service, authority: Authority, key: str
) -> None:
    connection = Http2(secured.port, authority.client(None, "h2"))
    assert connection.ask(JANE, key).status == 200
    assert connection.streams_max == 100
    connection.streams_max = 200
    with pytest.raises(StreamReset) as reset:
        connection.ask_all([JANE] * 200, key)
    assert reset.value.code == REFUSED_STREAM
    connection.close()


def test_headers_may_be_as_many_and_as_large_as_over_http_1(secured: Service, authority: Authority, key: str) -> None:
    connection = Http2(secured.port, authority.client(None, "h2"))
    for headers, status in (
        ([(f"x-{n}", "y") for n in range(90)], 200),
        ([(f"x-{n}", "y") for n in range(110)], 431),
        ([(f"x-{n}", "y" * 1_000) for n in range(33)], 431),
        ([(f"x-{n}", "y" * 1_000) for n in range(60)], 431),
        ([], 200),
    ):
        assert connection.ask(JANE, key, *headers).status == status
    connection.close()


# --- certificates of clients ---------------------------------------------------------------------------------------


def test_with_an_authority_for_clients_only_its_own_are_served(make_service: MakeService, authority: Authority) -> None:
    clients, strangers = Authority("clients"), Authority("strangers")
    service = make_service(server=MUTUAL)
    authority.issue().write(service.folder, "server")
    (service.folder / "clients.pem").write_bytes(clients.root.pem)
    known = clients.issue("website").write(service.folder, "website")
    service.context = authority.client(known)
    service.start(ready=503)
    assert service.get("/livez").status == 200
    others = {
        "none": None,
        "another authority's": strangers.issue("website").write(service.folder, "stranger"),
        "one that is over": clients.issue("website", days=1).write(service.folder, "over"),
        "one that nobody issued": authority.root.write(service.folder, "root"),
    }
    for versions in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for what, files in others.items():
            context = authority.client(files)
            context.maximum_version = versions
            with pytest.raises((ssl.SSLError, ConnectionError)):
                pytest.fail(f"{what}: {exchange(service.port, request('/livez'), context)}")
    assert service.get("/livez").status == 200


# --- files that cannot be served -----------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path).model("SELECT 1 AS id")
    with (tmp_path / "edgeprofile.toml").open("a") as file:
        file.write(f"[server]\n{MUTUAL}\n")
    server = Authority().issue()
    server.write(tmp_path, "server")
    (tmp_path / "clients.pem").write_bytes(Authority().root.pem)
    return made


def encrypted(folder: Path) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password"))


def another_key(folder: Path) -> bytes:
    return Authority().issue().key_pem


def of_another_kind(folder: Path) -> bytes:
    issued = Authority().issue(key=ec.generate_private_key(ec.SECP521R1()))
    (folder / "server.pem").write_bytes(issued.pem)
    return issued.key_pem


def too_short(folder: Path) -> bytes:
    issued = Authority().issue(key=rsa.generate_private_key(65537, 1024))
    (folder / "server.pem").write_bytes(issued.pem)
    return issued.key_pem


NONE_READABLE = r"found none that can be read \(No such file or directory: \S+\)"
A_KEY = r"expected a private key of ECDSA \(P-256 or P-384\), Ed25519 or RSA \(2048, 3072 or 4096 bits\)"
FAULTS: list[tuple[str, Callable[[Path], bytes | None], str]] = [
    ("server.pem", lambda _: None, f"server.tls_certificate: expected certificates in PEM, {NONE_READABLE}"),
    ("server.pem", lambda _: b"", r"server.tls_certificate: expected certificates in PEM, found none in \S+"),
    ("server.pem", another_key, r"server.tls_certificate: expected certificates in PEM, found none in \S+"),
    ("server.pem", lambda _: b"x" * 2**21, r"server.tls_certificate: .*, found over 1048576 bytes in \S+"),
    ("server.key", lambda _: None, f"server.tls_key: {A_KEY}, {NONE_READABLE}"),
    ("server.key", lambda folder: (folder / "server.pem").read_bytes(), rf"server.tls_key: {A_KEY}, found none in \S+"),
    ("server.key", encrypted, r"server.tls_key: expected a private key without a password, found one that has one"),
    ("server.key", another_key, r"server.tls_key: expected the key of .* first certificate, found another"),
    ("server.key", of_another_kind, rf"server.tls_key: {A_KEY}, found one of another kind"),
    ("server.key", too_short, rf"server.tls_key: {A_KEY}, found one of another kind"),
    ("clients.pem", lambda _: None, f"server.tls_client_ca: expected certificates in PEM, {NONE_READABLE}"),
    ("clients.pem", lambda _: b"-----BEGIN", r"server.tls_client_ca: expected certificates in PEM, found none in \S+"),
]


@pytest.mark.parametrize(("name", "content", "line"), FAULTS)
def test_files_that_cannot_be_served_are_one_line_and_nothing_starts(
    shop: Workshop, name: str, content: Callable[[Path], bytes | None], line: str
) -> None:
    wrong = content(shop.folder)
    (shop.folder / name).unlink()
    if wrong is not None:
        (shop.folder / name).write_bytes(wrong)
    ended = shop.run("serve", env={"EDGEPROFILE_SERVER__PORT": "18473", "EDGEPROFILE_SERVER__ADMIN_PORT": "0"})
    assert ended.status == 2, ended
    (complaint,) = ended.complaints
    assert re.fullmatch(rf"edgeprofile: \S+/edgeprofile.toml: {line}", complaint)
    assert not (shop.folder / "var").exists()


def test_a_check_of_the_settings_looks_at_the_files_too(shop: Workshop) -> None:
    assert shop.run("config", "check").status == 0
    (shop.folder / "server.key").unlink()
    ended = shop.run("config", "check")
    assert ended.status == 2
    assert "server.tls_key" in ended.err
