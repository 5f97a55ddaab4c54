"""Access tokens over HTTP: who gets one by which ways of OAuth 2.0, and what ends it; with the usual clients too."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from conftest import MakeService
from hypothesis import given
from hypothesis import strategies as st
from oauthlib.oauth2 import BackendApplicationClient
from oauthlib.oauth2.rfc6749.errors import InvalidClientError
from requests_oauthlib import OAuth2Session
from service import HOST, Answer, Connection, Service, request, until

from edgeprofile import signing

AUDIENCE = "https://api.mparticle.com"
MPARTICLE = """
id = "id"
[workspaces.{name}.mparticle]
org = "1"
account = "2"
workspace = "{number}"
mpid = "id"
audience = "{audience}"
"""
PROFILE = "/userprofile/v1/1/2/3/7?fields=user_attributes"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers. Tests ask, mint and revoke keys, and rotate signing keys without dropping any."""
    spaces = {
        "shop": MPARTICLE.format(name="shop", number=3, audience=AUDIENCE),
        "bank": MPARTICLE.format(name="bank", number=4, audience="https://bank.example"),
        "plain": 'id = "id"',
    }
    made = Service(tmp_path_factory.mktemp("tokens"), spaces, workers=2)
    for name in ("shop", "bank"):
        made.run_sql("CREATE TABLE profiles AS SELECT 7 AS id, 'x' AS name", name)
        made.load(name)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.key("shop")


@pytest.fixture
def connections(service: Service) -> Iterator[list[Connection]]:
    """One to each worker."""
    found = service.connect_to_each()
    yield found
    for connection in found:
        connection.close()


def client(key: str, **changes: Any) -> dict[str, Any]:
    """A request for a token with the key as the client, as JSON has it; None leaves a name out."""
    asked = {"client_id": key[8:20], "client_secret": key, "audience": AUDIENCE, "grant_type": "client_credentials"}
    return {name: value for name, value in {**asked, **changes}.items() if value is not None}


def content(asked: object, *headers: tuple[str, str], method: str = "POST") -> bytes:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    length = ("Content-Length", str(len(body)))
    return request("/oauth/token", None, length, *headers, method=method, body=body)


def ask(service: Service, asked: object, *headers: tuple[str, str]) -> Answer:
    return service.ask(content(asked, *headers))


def basic(client_id: str, secret: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()


def token_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    assert (answer.headers["content-type"], answer.headers["pragma"]) == ("application/json", "no-cache")
    given = answer.json()
    assert list(given) == ["access_token", "expires_in", "token_type"]
    assert (given["expires_in"], given["token_type"]) == (28_800, "Bearer")
    return str(given["access_token"])


def assert_refused(answer: Answer, status: int, error: str) -> None:
    """As RFC 6749, 5.2 has it, to the characters of the description."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer.body
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    said = answer.json()
    assert (set(said), said["error"]) == ({"error", "error_description"}, error)
    assert all(" " <= character <= "~" and character not in '"\\' for character in said["error_description"])
    assert ("www-authenticate" in answer.headers) == (status == 401)


# --- who gets a token ----------------------------------------------------------------------------------------------


def test_json_a_form_and_basic_give_tokens_that_open_the_keys_workspace(service: Service, key: str) -> None:
    client_id, form = key[8:20], "application/x-www-form-urlencoded"
    grant = {"grant_type": "client_credentials"}
    for answer in (
        ask(service, client(key)),
        ask(service, client(key), ("Content-Type", form)),
        ask(service, client(key, audience=None, scope=["any"], more={"x": 1})),
        ask(service, client(key, audience="")),
        ask(service, urlencode(client(key)).encode(), ("Content-Type", form)),
        ask(service, urlencode(client(key, audience="", scope="x")).encode(), ("Content-Type", "application/json")),
        ask(service, grant, basic(client_id, key)),
        ask(service, grant | {"client_id": client_id}, basic(client_id, key)),
        ask(service, urlencode(grant).encode(), basic(client_id, quote(key.replace("_", "%5F"), safe="%"))),
        ask(service, urlencode(grant).encode(), ("Authorization", basic(client_id, key)[1].replace("Basic", "bASIC"))),
    ):
        assert service.get(PROFILE, token_of(answer)).json()["mpid"] == 7


def test_a_token_of_one_worker_is_good_at_the_other(service: Service, key: str, connections: list[Connection]) -> None:
    for giver in connections:
        token = token_of(giver.ask(content(client(key))))
        assert [each.ask(request(PROFILE, token)).status for each in connections] == [200, 200]


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": None},
        {"client_secret": None},
        {"client_id": "a" * 12},
        {"client_id": ""},
        {"client_id": "é"},
        {"client_id": "\ud800"},
        {"client_secret": "secret"},
        {"client_secret": "sk_live_" + "a" * 62},
        {"client_secret": "\0"},
        {"client_secret": "\udfff" * 70},
        {"client_secret": "x" * 12_000},
    ],
    ids=str,
)
def test_another_client_or_secret_is_invalid(service: Service, key: str, changes: dict[str, Any]) -> None:
    answer = ask(service, client(key, **changes))
    assert_refused(answer, 401, "invalid_client")
    assert answer.headers["www-authenticate"] == 'Basic realm="edgeprofile"'
    assert_refused(ask(service, client(key, grant_type="nonsense", **changes)), 401, "invalid_client")


def test_the_id_and_the_secret_are_of_one_key(service: Service, key: str) -> None:
    other = service.key("shop")
    assert_refused(ask(service, client(key, client_id=other[8:20])), 401, "invalid_client")
    for revoked in (service.key("shop"),):
        service.revoke(revoked)
        until(lambda: ask(service, client(revoked)).status == 401, "the key is revoked")  # noqa: B023


@pytest.mark.parametrize(
    "authorization",
    ["", "Basic", "Basic ", "Basic !", "Basic eA==", "Basic eA", "Basic Og==", "Basic /w==", "Basic gDpi",
     "Bearer x", "Digest x"],
)  # fmt: skip
def test_an_authorization_that_names_no_client_is_invalid(service: Service, authorization: str) -> None:
    answer = ask(service, {"grant_type": "client_credentials"}, ("Authorization", authorization))
    assert_refused(answer, 401, "invalid_client")


def test_who_authenticates_in_two_ways_or_as_two_is_refused(service: Service, key: str) -> None:
    other = service.key("shop")
    for asked in (client(key), client(other, client_secret=None), {"client_secret": key}):
        assert_refused(ask(service, asked, basic(key[8:20], key)), 400, "invalid_request")
    twice = [basic(key[8:20], key)] * 2
    assert_refused(ask(service, {"grant_type": "client_credentials"}, *twice), 401, "invalid_client")


def test_a_key_that_may_not_read_by_this_api_is_told_so(service: Service) -> None:
    for unfit in (service.key("plain"), service.key("shop", scopes=("write",))):
        assert_refused(ask(service, client(unfit)), 400, "unauthorized_client")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": None}, "invalid_request"),
        ({"grant_type": ""}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "authorization_code"}, "unsupported_grant_type"),
        ({"grant_type": "Client_Credentials"}, "unsupported_grant_type"),
        ({"grant_type": ["client_credentials"]}, "invalid_request"),
        ({"audience": "https://bank.example"}, "invalid_target"),
        ({"audience": AUDIENCE + "/"}, "invalid_target"),
        ({"audience": "é\ud800"}, "invalid_target"),
        ({"audience": [AUDIENCE]}, "invalid_request"),
        ({"audience": 1}, "invalid_request"),
        ({"client_id": 1}, "invalid_request"),
        ({"client_id": {}}, "invalid_request"),
        ({"client_secret": True}, "invalid_request"),
    ],
    ids=str,
)
def test_another_grant_target_or_type_is_400(service: Service, key: str, changes: dict[str, Any], error: str) -> None:
    assert_refused(ask(service, client(key, **changes)), 400, error)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{}x",
        b'{"a":' * 2_500,
        b'{"a":' + b"[" * 15_000,
        b'{"grant_type":"client_credentials","grant_type":"client_credentials"}',
        b'{"grant_type":"client_credentials","x":{"y":1,"y":1}}',
        b'{"grant_type":"client_credentials","x":"\xff"}',
        b"grant_type=client_credentials&grant_type=client_credentials",
        b"grant_type=client_credentials&x=&x=",
        b"grant_type=client_credentials&x=\xff",
        b"grant_type=client_credentials&x=%ff",
        b"&".join(b"x%d=1" % number for number in range(33)),
    ],
)
def test_a_body_that_cannot_be_read_is_400(service: Service, body: bytes) -> None:
    assert_refused(ask(service, body), 400, "invalid_request")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\0", b"=", b"&&", b"x", b'"x"'])
def test_a_body_without_a_client_names_none(service: Service, body: bytes) -> None:
    assert_refused(ask(service, body), 401, "invalid_client")


@given(
    st.binary()
    | st.dictionaries(st.sampled_from(["client_id", "client_secret", "grant_type"]), st.text() | st.floats())
)
def test_no_body_whatever_makes_it_fail(service: Service, body: object) -> None:
    assert ask(service, body).status in (400, 401)


@given(st.binary(max_size=40).map(lambda value: base64.b64encode(value).decode()) | st.text("AZaz09+/=: ", max_size=40))
def test_no_authorization_whatever_makes_it_fail(service: Service, noise: str) -> None:
    assert ask(service, b"grant_type=client_credentials", ("Authorization", f"Basic {noise}")).status == 401


def test_a_body_larger_than_any_such_request_is_413(service: Service) -> None:
    for body in (b"x=" + b"x" * 20_000, b'{"x":"' + b"x" * 20_000 + b'"}'):
        assert_refused(ask(service, body), 413, "invalid_request")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
def test_only_post_gives_tokens(service: Service, method: str) -> None:
    answer = service.ask(content(b"", method=method))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_a_key_over_its_limit_gets_no_token_until_later(service: Service) -> None:
    key = service.key("shop", rate=0.01, burst_rate=2, burst_seconds=0)
    assert [ask(service, client(key)).status for _ in range(3)] == [200, 200, 429]
    denied = ask(service, client(key))
    assert_refused(denied, 429, "temporarily_unavailable")
    assert 90 <= int(denied.headers["retry-after"]) <= 100


# --- what ends a token ---------------------------------------------------------------------------------------------


def test_a_token_of_another_workspace_is_403_and_of_another_audience_401(service: Service, key: str) -> None:
    bank = service.key("bank")
    token = token_of(ask(service, client(bank, audience="https://bank.example")))
    assert service.get(PROFILE.replace("/3/", "/4/"), token).status == 200
    assert service.get(PROFILE, token).status == 403
    ours = signing.SigningKeys(signing.FILE.read(service.settings.data_dir))
    stranger = ours.mint_token(key[8:20].encode(), "https://elsewhere.example", time.time())
    assert service.get(PROFILE, stranger).status == 401
    assert service.get("/v1/profiles/id/7", token_of(ask(service, client(key)))).status == 401, "of another API"


def test_a_token_is_over_with_its_time_and_not_before_it(service: Service, key: str) -> None:
    ours = signing.SigningKeys(signing.FILE.read(service.settings.data_dir))
    now_s, client_id = time.time(), key[8:20].encode()
    found = [
        service.get(PROFILE, ours.mint_token(client_id, AUDIENCE, now_s + shift_s)).status
        for shift_s in (-signing.TOKEN_SECONDS - 1, 60 - signing.TOKEN_SECONDS, 30, 3_600)
    ]
    assert found == [401, 200, 200, 401]


def test_revoking_a_key_ends_its_tokens_everywhere_soon(service: Service, connections: list[Connection]) -> None:
    key = service.key("shop")
    token = token_of(ask(service, client(key)))
    assert [each.ask(request(PROFILE, token)).status for each in connections] == [200, 200]
    service.revoke(key)
    assert_becomes(connections, token, 401)


def test_a_key_that_expires_takes_its_tokens_along(service: Service) -> None:
    key = service.key("shop", expires_at=int(time.time()) + 2)
    token = token_of(ask(service, client(key)))
    until(lambda: service.get(PROFILE, token).status == 401, "the key expires", 5)


def test_a_rotation_ends_no_token_and_is_known_everywhere_at_once(
    service: Service, key: str, connections: list[Connection]
) -> None:
    before = [token_of(each.ask(content(client(key)))) for each in connections]
    signing.rotate(service.settings.data_dir)
    for _ in range(20):  # while they notice
        tokens = [token_of(each.ask(content(client(key)))) for each in connections]
        for token in (*before, *tokens):
            assert [each.ask(request(PROFILE, token)).status for each in connections] == [200, 200]
    new = signing.SigningKeys(signing.FILE.read(service.settings.data_dir)[-1:])
    assert_becomes(connections, new.mint_token(key[8:20].encode(), AUDIENCE, time.time()), 200)


def test_damage_or_loss_of_the_file_changes_nothing_and_is_said_once(
    service: Service, key: str, connections: list[Connection]
) -> None:
    token = token_of(ask(service, client(key)))
    path = service.settings.data_dir / signing.FILE.name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    said = "signing.json: is damaged"
    until(lambda: service.log().count(said) == 2, "each worker says so")
    assert [each.ask(request(PROFILE, token)).status for each in connections] == [200, 200]
    path.unlink()
    assert [each.ask(request(PROFILE, token)).status for each in connections] == [200, 200]
    path.write_bytes(whole)
    assert [token_of(each.ask(content(client(key)))) != token for each in connections] == [True, True]
    assert service.log().count(said) == 2


def test_dropping_the_old_keys_ends_all_tokens_everywhere(make_service: MakeService) -> None:
    service = make_service({"shop": MPARTICLE.format(name="shop", number=3, audience=AUDIENCE)}, workers=2)
    service.run_sql("CREATE TABLE profiles AS SELECT 7 AS id")
    service.load()
    service.start()
    assert (service.settings.data_dir / signing.FILE.name).stat().st_mode & 0o777 == 0o600
    key = service.key()
    token = token_of(ask(service, client(key)))
    assert service.get(PROFILE, token).status == 200
    signing.rotate(service.settings.data_dir, drop_old=True)
    for connection in service.connect_to_each():
        with connection:
            assert_becomes([connection], token, 401)
    assert service.get(PROFILE, token_of(ask(service, client(key)))).status == 200


def test_without_a_dialect_that_signs_no_key_is_made_and_nothing_is_served(make_service: MakeService) -> None:
    service = make_service({"shop": 'id = "id"'})
    service.run_sql("CREATE TABLE profiles AS SELECT 7 AS id")
    service.load()
    service.start()
    assert not (service.settings.data_dir / signing.FILE.name).exists()
    assert ask(service, client(service.key())).status == 404
    assert service.get(PROFILE, service.key()).status == 404


def assert_becomes(connections: list[Connection], token: str, status: int) -> None:
    """Every worker comes to answer so, soon."""
    for connection in connections:
        until(lambda: connection.ask(request(PROFILE, token)).status == status, "it is known", 5)  # noqa: B023


# --- with the clients that people use ------------------------------------------------------------------------------


def test_requests_oauthlib_gets_and_uses_a_token(service: Service, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the proxy in front speaks TLS
    base, client_id = f"http://{HOST}:{service.port}", key[8:20]
    for include_client_id in (None, True):  # by HTTP Basic, in the body
        with OAuth2Session(client=BackendApplicationClient(client_id)) as session:
            session.fetch_token(
                f"{base}/oauth/token",
                client_id=client_id,
                client_secret=key,
                include_client_id=include_client_id,
                audience=AUDIENCE,
            )
            assert session.token["token_type"] == "Bearer"
            assert session.get(base + PROFILE).json()["mpid"] == 7
            with pytest.raises(InvalidClientError):
                session.fetch_token(f"{base}/oauth/token", client_id=client_id, client_secret="wrong")


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_authlib_gets_and_uses_a_token(service: Service, key: str, method: str) -> None:
    base = f"http://{HOST}:{service.port}"
    with AuthlibSession(key[8:20], key, token_endpoint_auth_method=method) as session:
        session.fetch_token(f"{base}/oauth/token", grant_type="client_credentials", audience=AUDIENCE)
        assert session.get(base + PROFILE).json()["mpid"] == 7
