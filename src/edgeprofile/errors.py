"""Every error that edgeprofile raises on purpose, in one tree.

EdgeprofileError                  anything below; has a `hint` for whoever must act
├── SettingsError                 a setting is wrong                        exit status 2
├── UsageError                    a command is misused                      exit status 2
├── KeyFileError                  a file of keys cannot be used             exit status 1
├── ModelError                    the model cannot be served as it stands   exit status 1
├── SourceError                   the warehouse did not answer the model    exit status 1
├── ObjectStoreError              the store of replicas did not do its part exit status 1
├── RefreshRefused                a guard would not let a result go out     exit status 1
├── InvalidChange                 the loader was asked for what it cannot read
├── StoreError                    what is on disk cannot be used            exit status 1
│   ├── NoSnapshot                nothing is published yet
│   ├── SnapshotDamaged           a file is not what its manifest says
│   ├── FormatUnsupported         a format version that this build does not know
│   ├── RecordDamaged             a record fails its check
│   ├── LiveDamaged               the live layer's file is not what it should be
│   ├── RecordTooLarge            a record would be larger than can be served
│   ├── DiskFull                  no room is left under data_dir
│   └── LoaderBusy                another loader owns the workspace
└── ApiError                      a request is answered with a problem; has `status`, `code`, `title`
    ├── MalformedPath             400 malformed_path
    ├── UnknownNamespace          400 unknown_namespace
    ├── UnknownField              400 unknown_field
    ├── MalformedQuery            400 malformed_query
    ├── MalformedBody             400 malformed_body
    ├── Unauthorized              401 unauthorized
    ├── Forbidden                 403 forbidden
    ├── ProfileNotFound           404 profile_not_found
    ├── NoSuchRoute               404 no_such_route
    ├── MethodNotAllowed          405 method_not_allowed
    ├── NotAcceptable             406 not_acceptable
    ├── AnswerTooLarge            413 answer_too_large
    ├── BodyTooLarge              413 body_too_large
    ├── UrlTooLong                414 url_too_long
    ├── UnsupportedMediaType      415 unsupported_media_type
    ├── RateLimited               429 rate_limited
    ├── HeadersTooLarge           431 headers_too_large
    ├── InternalError             500 internal_error
    ├── NotReady                  503 not_ready
    └── LoaderUnavailable         503 loader_unavailable

A message never holds a profile's value, an identifier or a key: errors end up in logs.
The `detail` of an ApiError goes back to the caller who sent the value, and nowhere else.
"""

from __future__ import annotations

import re
from typing import ClassVar

# Between the first quotation mark and the last may stand anything, even marks and line ends; a number may be a value.
_VALUES = re.compile(r"""['"].*['"]|(?<![\w.])[-+]?\d[\w.+]*""", re.DOTALL)


def without_values(text: str) -> str:
    """What a warehouse says, without what it may have quoted of a row."""
    return _VALUES.sub("…", text)


class EdgeprofileError(Exception):
    """The root. `str()` is one line of what is wrong; `hint` is one line of what to do, or None."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(EdgeprofileError):
    """A setting is missing, unknown or of the wrong kind: file, key, expected, found."""

    exit_status = 2


class UsageError(EdgeprofileError):
    """A command was given arguments that do not fit the settings."""

    exit_status = 2


class KeyFileError(EdgeprofileError):
    """The file of API keys, or that of signing keys, is damaged or cannot be written."""


class ModelError(EdgeprofileError):
    """The model cannot be served; `problems` has one line for each thing to mend."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class SourceError(EdgeprofileError):
    """The warehouse could not be reached, or refused or broke off the model."""


class ObjectStoreError(EdgeprofileError):
    """The object store by way of which snapshots are replicated could not be reached, or refused."""


class RefreshRefused(EdgeprofileError):
    """A result was built but fails a guard (empty, shrunk, too many rejects); `outcome` names it."""

    def __init__(self, message: str, *, outcome: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.outcome = outcome


class InvalidChange(EdgeprofileError):
    """A request to the loader is not as it should be; the message says where in it."""


class StoreError(EdgeprofileError):
    """Something on disk cannot be used."""


class NoSnapshot(StoreError):
    """The workspace has published nothing yet."""


class SnapshotDamaged(StoreError):
    """A published file is missing, truncated or altered."""


class FormatUnsupported(StoreError):
    """A file or record has a format version that this build does not read."""


class RecordDamaged(StoreError):
    """A record's checksum or an offset in it is wrong."""


class LiveDamaged(StoreError):
    """The live layer's file is cut short or altered."""


class RecordTooLarge(StoreError):
    """A record would have more than 16 MiB."""

    def __init__(self, record_bytes: int) -> None:
        super().__init__(f"a record would have {record_bytes} bytes or more, over the limit of 16 MiB")


class DiskFull(StoreError):
    """There is no room for what was to be written; the old snapshot stays."""

    def __init__(self) -> None:
        super().__init__("the disk is full; the old snapshot is still served", hint="make room under data_dir")


class LoaderBusy(StoreError):
    """Another process loads this workspace; the message has its pid."""


class ApiError(EdgeprofileError):
    """A request that is answered with a problem (RFC 9457).

    `members` go into the problem's body beside the fixed ones, `headers` onto the answer.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        members: dict[str, object] | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.members = members or {}
        self.headers = headers or []


class MalformedPath(ApiError):
    """The path's last segments are empty, badly escaped or not UTF-8."""

    status, code, title = 400, "malformed_path", "Malformed path"


class UnknownNamespace(ApiError):
    """The workspace does not declare this namespace; `valid` lists those that it does."""

    status, code, title = 400, "unknown_namespace", "Unknown identifier namespace"


class UnknownField(ApiError):
    """`fields` names something that the snapshot does not have; `valid` lists what it has."""

    status, code, title = 400, "unknown_field", "Unknown field"


class MalformedQuery(ApiError):
    """A parameter of the query string is not what the route takes; the detail names it."""

    status, code, title = 400, "malformed_query", "Malformed query"


class MalformedBody(ApiError):
    """The body is not what the route takes; the detail says where."""

    status, code, title = 400, "malformed_body", "Malformed body"


class Unauthorized(ApiError):
    """Missing, malformed, unknown, expired and revoked keys all look like this."""

    status, code, title = 401, "unauthorized", "Unauthorized"

    def __init__(self, detail: str = "A valid API key is required: Authorization: Bearer <key>.") -> None:
        super().__init__(detail, headers=[(b"www-authenticate", b"Bearer")])


class Forbidden(ApiError):
    """The key is good but lacks the scope."""

    status, code, title = 403, "forbidden", "Forbidden"


class ProfileNotFound(ApiError):
    """No profile has this id or identifier."""

    status, code, title = 404, "profile_not_found", "Profile not found"

    def __init__(self) -> None:
        super().__init__("No profile matches the provided identifier.")


class NoSuchRoute(ApiError):
    """Nothing is served under this path."""

    status, code, title = 404, "no_such_route", "No such route"

    def __init__(self) -> None:
        super().__init__("Nothing is served under this path.")


class MethodNotAllowed(ApiError):
    """The path is served, but not by this method; `Allow` names those that it is."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, allow: str) -> None:
        super().__init__(
            f"This path answers {allow}.",
            members={"valid": allow.split(", ")},
            headers=[(b"allow", allow.encode())],
        )


class NotAcceptable(ApiError):
    """No representation that the caller accepts can be made."""

    status, code, title = 406, "not_acceptable", "Not acceptable"


class AnswerTooLarge(ApiError):
    """The answer exceeds `limits.response_bytes_max`."""

    status, code, title = 413, "answer_too_large", "Answer too large"

    def __init__(self, answer_bytes: int, bytes_max: int) -> None:
        super().__init__(
            f"The answer has {answer_bytes} bytes, over the limit of {bytes_max}. "
            "Ask for less of the profile with the fields parameter, or for fewer events with limit.",
            members={"bytes": answer_bytes, "bytes_max": bytes_max},
        )


class BodyTooLarge(ApiError):
    """The request body exceeds `limits.request_bytes_max`."""

    status, code, title = 413, "body_too_large", "Body too large"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"A request body may have {bytes_max} bytes.", members={"bytes_max": bytes_max})


class UrlTooLong(ApiError):
    """The path and query together exceed 8 KB."""

    status, code, title = 414, "url_too_long", "URL too long"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"Path and query together may have {bytes_max} bytes.")


class UnsupportedMediaType(ApiError):
    """The body is of a type or an encoding that the route does not read."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class RateLimited(ApiError):
    """The key's buckets are empty; `retry_after` whole seconds from now one request will pass."""

    status, code, title = 429, "rate_limited", "Rate limit exceeded"

    def __init__(self, retry_after_s: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(
            f"This key's rate limit is reached. Try again in {retry_after_s} s.",
            members={"retry_after": retry_after_s},
            headers=[(b"retry-after", b"%d" % retry_after_s), *headers],
        )


class HeadersTooLarge(ApiError):
    """There are more than 100 headers, or their names and values together exceed 32 KB."""

    status, code, title = 431, "headers_too_large", "Headers too large"

    def __init__(self, bytes_max: int, headers_max: int) -> None:
        super().__init__(f"A request may have {headers_max} headers, of {bytes_max} bytes together.")


class InternalError(ApiError):
    """Our fault; the log has more under the same request id."""

    status, code, title = 500, "internal_error", "Internal error"

    def __init__(self) -> None:
        super().__init__("The request could not be answered. The server's log has the reason.")


class NotReady(ApiError):
    """The workspace has no snapshot yet, or the server is about to end; the detail says which."""

    status, code, title = 503, "not_ready", "Not ready"

    def __init__(self, detail: str = "No snapshot is being served yet. Try again shortly.") -> None:
        super().__init__(
            detail,
            members={"retry_after": 1},
            headers=[(b"retry-after", b"1")],
        )


class LoaderUnavailable(ApiError):
    """The loader, which writes, is not running, or did not say that it wrote: the caller has to ask again."""

    status, code, title = 503, "loader_unavailable", "Loader unavailable"

    def __init__(self, detail: str = "Nothing can be written right now.", retry_after_s: int = 5) -> None:
        super().__init__(
            f"{detail} Try again in {retry_after_s} s.",
            members={"retry_after": retry_after_s},
            headers=[(b"retry-after", b"%d" % retry_after_s)],
        )
        self.retry_after_s = retry_after_s
