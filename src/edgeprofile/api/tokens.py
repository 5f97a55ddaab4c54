"""Access tokens by OAuth 2.0's client credentials (RFC 6749, 4.4), for the dialect whose callers are used to them.

A client is an API key: its public id and its secret. The token stands for that key until it is over or revoked.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from urllib.parse import parse_qsl, unquote_plus

import msgspec

from edgeprofile._exchange import Exchange
from edgeprofile._gate import Grant
from edgeprofile.api.dialect import OBJECT_BYTES_MAX, Answer, Numbered, Service, json_object, unique
from edgeprofile.errors import ApiError, BodyTooLarge, MalformedBody, MethodNotAllowed, Unauthorized
from edgeprofile.signing import TOKEN_SECONDS

PATH = b"/oauth/token"
PARAMETERS = ("grant_type", "client_id", "client_secret", "audience")
PARAMETERS_MAX = 32
HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), (b"pragma", b"no-cache")]
BASIC = (b"www-authenticate", b'Basic realm="edgeprofile"')
# Codes of RFC 6749, 5.2, by our status; where it has none, those of its 4.1.2.1.
CODES = {
    401: "invalid_client",
    429: "temporarily_unavailable",
    500: "server_error",
    503: "temporarily_unavailable",
}


class TokenRefused(MalformedBody):
    """A request that RFC 6749 or RFC 8707 has a code of its own for."""

    def __init__(self, token_code: str, detail: str) -> None:
        super().__init__(detail)
        self.token_code = token_code


class Tokens:
    """The handler. `audiences` has, by the name of each workspace that tokens are given for, what they are good for."""

    def __init__(self, service: Service, audiences: dict[str, str]) -> None:
        self._gate = service.gate
        self._signing = service.signing
        self._audiences = audiences

    def check(self, request: Exchange) -> None:
        if request.method != "POST":
            raise MethodNotAllowed("POST")

    def answer(self, request: Exchange, body: bytes) -> Answer:
        given = _parameters(body)
        grant = self._client(request.header(b"authorization"), given)
        request.workspace = grant.workspace
        self._gate.admit(grant, grant.meter, 1)
        audience = self._audiences.get(grant.workspace.name)
        if audience is None or not grant.reads:
            raise TokenRefused("unauthorized_client", "The client may not read profiles by this API.")
        if "grant_type" not in given:
            raise MalformedBody("grant_type is missing.")
        if given["grant_type"] != "client_credentials":
            raise TokenRefused("unsupported_grant_type", "grant_type is not client_credentials.")
        if given.get("audience", audience) != audience:
            raise TokenRefused("invalid_target", "audience is not the one that tokens are given for.")
        token = self._signing.mint_token(grant.public_id, audience, time.time())
        said = {"access_token": token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"}
        return 200, [*HEADERS, (b"x-request-id", request.request_id)], msgspec.json.encode(said)

    @staticmethod
    def refuse(request: Numbered, error: ApiError) -> Answer:
        """An error as RFC 6749, 5.2 has it."""
        code = error.token_code if isinstance(error, TokenRefused) else CODES.get(error.status, "invalid_request")
        detail, headers = error.detail, error.headers
        if error.status == 401:
            detail, headers = "The client is unknown, or its secret is wrong.", [BASIC]
        said = {"error": code, "error_description": detail}
        return error.status, [*HEADERS, (b"x-request-id", request.request_id), *headers], msgspec.json.encode(said)

    def _client(self, authorization: bytes | None, given: dict[str, str]) -> Grant:
        """The grant of the key whose public id and secret were sent, in the body or by HTTP Basic."""
        client_id, secret = given.get("client_id"), given.get("client_secret")
        if authorization is not None:
            if secret is not None:
                raise MalformedBody("The client authenticates in two ways at once.")
            named, secret = _basic(authorization)
            if client_id not in (None, named):
                raise MalformedBody("client_id is another than that of the Authorization header.")
            client_id = named
        if client_id is None or secret is None:
            raise Unauthorized()
        # What is no text becomes another secret that no key has.
        grant = self._gate.grant_of(secret.encode("utf-8", "replace"))
        if not hmac.compare_digest(grant.public_id, client_id.encode("utf-8", "replace")):
            raise Unauthorized()
        return grant


def _parameters(body: bytes) -> dict[str, str]:
    """What a body of JSON or of a form says; what is empty counts as left out. Raises MalformedBody, BodyTooLarge."""
    if len(body) > OBJECT_BYTES_MAX:
        raise BodyTooLarge(OBJECT_BYTES_MAX)
    if body.lstrip()[:1] == b"{":
        given = json_object(body)
    else:
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS_MAX)
        except ValueError:
            raise MalformedBody("The body is neither a JSON object nor a form in UTF-8.") from None
        given = unique(pairs)
    for name in PARAMETERS:
        if not isinstance(given.get(name, ""), str):
            raise MalformedBody(f"{name} is not a text.")
    return {name: given[name] for name in PARAMETERS if given.get(name)}


def _basic(authorization: bytes) -> tuple[str, str]:
    """Both parts of HTTP Basic, each of them percent-encoded before, as RFC 6749, 2.3.1 has it."""
    scheme, _, encoded = authorization.partition(b" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (ValueError, binascii.Error):
        raise Unauthorized() from None
    client_id, colon, secret = decoded.partition(":")
    if scheme.lower() != b"basic" or not colon:
        raise Unauthorized()
    return unquote_plus(client_id), unquote_plus(secret)
