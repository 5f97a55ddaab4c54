"""The API's description: it says of every route what that does, nothing else is served, and its examples are true."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from conftest import MakeService
from described import METHODS, Asked, is_like, operations, shown
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from service import Service, request, until

from edgeprofile import openapi
from edgeprofile.api import intilery, mparticle, native, reference, tokens
from edgeprofile.errors import ApiError
from edgeprofile.openapi.samples import SAMPLES

# A route that there is not, by each dialect's word for it.
NO_ROUTE = {"no_such_route", "not_found", "ROUTE_NOT_FOUND"}
SURFACES = ["Profiles", "Insider", "mParticle", "Tokens", "Intilery", "Batch", "Service"]


@pytest.fixture(scope="module")
def document(whole_shop: Service) -> dict[str, Any]:
    found: dict[str, Any] = whole_shop.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def key(whole_shop: Service) -> str:
    return whole_shop.key(scopes=("read", "write"))


@pytest.fixture(scope="module")
def described(document: dict[str, Any]) -> list[Asked]:
    return list(operations(document))


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def code_of(body: bytes) -> str:
    """The code in an error, in whatever shape."""
    found = json.loads(body)
    found = found.get("error", found)
    found = found.get("errors", [found])[0] if isinstance(found, dict) else {"code": found}
    return str(found.get("code") or found.get("error_code"))


# --- the document --------------------------------------------------------------------------------------------------


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    assert document["openapi"] == "3.1.1"


def test_every_surface_that_is_on_is_described_and_no_other(
    document: dict[str, Any], make_service: MakeService
) -> None:
    assert [tag["name"] for tag in document["tags"]] == SURFACES
    native_only = openapi.describe(make_service().settings)
    assert [tag["name"] for tag in native_only["tags"]] == ["Profiles", "Service"]
    assert not any("track" in path or "userprofile" in path for path in native_only["paths"])
    assert "InsiderBody" not in native_only["components"]["schemas"]


def test_the_document_needs_no_key_and_is_sent_once(whole_shop: Service) -> None:
    first = whole_shop.get("/openapi.json")
    assert (first.status, first.headers["content-type"]) == (200, "application/json")
    assert first.headers["cache-control"] == "no-cache"
    again = whole_shop.get("/openapi.json", None, ("If-None-Match", first.headers["etag"]))
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])


def test_the_document_says_nothing_of_what_a_workspace_has(make_service: MakeService) -> None:
    declared = """
id = "zebra_id"
identifiers = ["zebra_mail"]
[workspaces.zebra.insider]
partner = "zebra-partner"
[workspaces.zebra.intilery]
client = "zebra-client"
account = "zebra-account"
brand = "zebra-brand"
[workspaces.zebra.batch]
project = "project_zebra"
[workspaces.zebra.mparticle]
org = "zebra-org"
account = "zebra-account"
workspace = "zebra-space"
mpid = "zebra_id"
"""
    told = json.dumps(openapi.describe(make_service({"zebra": declared}).settings))
    assert "/track/{client}" in told
    assert "zebra" not in told


def test_parameters_are_those_that_are_read(described: list[Asked]) -> None:
    by_id = {each.id: each for each in described}

    def queried(id: str) -> list[str]:
        return [each["name"] for each in by_id[id].described["parameters"] if each["in"] == "query"]

    assert queried("events") == list(native.EVENT_PARAMETERS)
    assert queried("intileryEvents") == [name for name in intilery.PARAMETERS if name != "scrollid"]
    assert queried("profile") == queried("mparticleProfile") == ["fields"]
    request = by_id["token"].document["components"]["schemas"]["TokenRequest"]
    assert list(request["properties"]) == list(tokens.PARAMETERS)
    fields = next(each for each in by_id["mparticleProfile"].described["parameters"] if each["name"] == "fields")
    assert fields["schema"]["items"]["enum"] == list(mparticle.FIELDS)


def test_every_kind_of_error_has_a_sample_and_a_code_in_the_document(document: dict[str, Any]) -> None:
    kinds = {kind for kind in ApiError.__subclasses__() if kind.__module__ == "edgeprofile.errors"}
    assert set(SAMPLES) == kinds
    codes = document["components"]["schemas"]["Problem"]["properties"]["code"]["oneOf"]
    assert {each["const"] for each in codes} == {kind.code for kind in kinds}
    assert all(each["description"] for each in codes)


def test_examples_of_errors_are_as_their_schemas_have_them(document: dict[str, Any]) -> None:
    checked = 0
    for answer in document["components"]["responses"].values():
        [media] = answer["content"].values()
        for example in media["examples"].values():
            validator(document, media["schema"]).validate(example["value"])
            checked += 1
    assert checked > 60


# --- what is described is served -----------------------------------------------------------------------------------


def test_every_operation_answers_its_examples(whole_shop: Service, described: list[Asked], key: str) -> None:
    asked = 0
    exports = dict[str, str]()
    for operation, name in ((each, name) for each in described for name in each.examples):
        values = exports if operation.path.startswith("/exports/") else {}
        content = operation.example(name, key, **values)
        answer = whole_shop.ask(content)
        if operation.id == "batchExportStatus":
            answer = until(lambda: finished(whole_shop, content), "the export is written")  # noqa: B023
        told = operation.answer(answer.status)
        assert answer.status < 300, (operation.id, answer)
        assert {header.lower() for header in told.get("headers", {})} <= answer.headers.keys(), operation.id
        if operation.method == "HEAD" or not answer.body:
            assert "content" not in told
            continue
        media_type = answer.headers["content-type"].partition(";")[0]
        media = told["content"][media_type]
        if media_type == "application/json":
            validator(operation.document, media["schema"]).validate(answer.json())
        example = shown(media, name)
        if operation.id == "batchExport":
            exports["id"] = answer.json()["id"]
        elif operation.id == "batchExportStatus":
            example["files"][0]["size"] = answer.json()["files"][0]["size"]
        found = answer.body.decode() if isinstance(example, str) else answer.json() if example else None
        assert is_like(found, example), (operation.id, answer.body)
        asked += example is not None
    assert asked >= 20


def finished(service: Service, content: bytes) -> Any:
    answer = service.ask(content)
    return answer if answer.json()["status"] == "SUCCESS" else None


def test_a_method_that_is_not_described_is_not_allowed(whole_shop: Service, described: list[Asked], key: str) -> None:
    for _, group in itertools.groupby(described, lambda each: each.path):
        own = list(group)
        allowed = ", ".join(sorted(each.method for each in own))
        for method in set(METHODS) - {each.method for each in own}:
            asked = own[0]._replace(method=method)
            answer = whole_shop.ask(asked.example(asked.examples[0], key))
            assert (answer.status, answer.headers["allow"]) == (405, allowed), (method, asked.path)


def test_what_is_described_without_a_key_needs_none_and_all_else_does(
    whole_shop: Service, described: list[Asked]
) -> None:
    for operation in described:
        answer = whole_shop.ask(operation.example(operation.examples[0], "sk_live_000000000000_none"))
        assert (answer.status == 401) == bool(operation.described["security"]), operation.id


# --- what is served is described -----------------------------------------------------------------------------------


def templates(document: dict[str, Any]) -> list[re.Pattern[str]]:
    """The paths of the document as patterns, by each base that they have."""
    found = []
    for path, at in document["paths"].items():
        for server in at.get("servers", document["servers"]):
            whole = server["url"].removesuffix("/") + path
            number = re.sub(r"\{minor\}", "[0-9]+", re.escape(whole).replace(r"\{", "{").replace(r"\}", "}"))
            found.append(re.compile(re.sub(r"\{[^}]+\}", "[^/]*", number)))
    return found


def words(document: dict[str, Any]) -> list[str]:
    """All that stands between slashes in a path, with values in the place of variables, and some that do not."""
    filled = {"client": "acme", "account": "marketing", "brand": "SHOP", "org": "1", "workspace": "3", "mpid": "12345"}
    filled |= {"namespace": "email", "value": "jane@example.com", "profile_id": "12345", "idType": "id", "id": "1"}
    filled |= {"file": "docs.js"}
    segments = {segment for path in document["paths"] for segment in path.split("/") if segment}
    made = {re.sub(r"\{(\w+)\}", lambda match: filled[match[1]], segment) for segment in segments}
    return sorted({*made, "2", "account", "2.4", "2.x", "v2", "metrics", "admin", "common.css", "x", ""})


def test_no_path_is_served_that_is_not_described(whole_shop: Service, document: dict[str, Any], key: str) -> None:
    patterns, segments = templates(document), words(document)
    headers = (("Authorization", f"Bearer {key}"), ("auth-token", key), ("X-Batch-Project", "project_demo"))
    starts = [re.sub(r"\{[^}]+\}", "x", path).split("/")[1:] for path in document["paths"]]
    bent = [start[:cut] for start in starts for cut in range(len(start) + 1)]

    @settings(max_examples=400, deadline=None, database=None)
    @given(st.sampled_from(bent), st.lists(st.sampled_from(segments), max_size=2))
    def walk(start: list[str], rest: list[str]) -> None:
        path = "/" + "/".join([*start, *rest])
        if "//" in path or any(pattern.fullmatch(path) for pattern in patterns):
            return
        with whole_shop.connect() as connection:
            answer = connection.ask(request(path, None, *headers))
        # Whose path begins as a dialect's may be told that he is not the one whose it is.
        assert answer.status in (401, 404), (path, answer)
        assert answer.status == 401 or code_of(answer.body) in NO_ROUTE, (path, answer)

    walk()


def test_every_route_of_the_app_and_file_of_the_page_is_described(document: dict[str, Any]) -> None:
    routes = [*native.routes([], None), *reference.routes(b"", with_page=True)]  # type: ignore[arg-type]
    own = {path: at for path, at in document["paths"].items() if at.get("get", {}).get("tags") == ["Service"]}
    assert {route.path for route in routes} == set(own)
    [file] = [each for each in own["/docs/{file}"]["get"]["parameters"] if each["name"] == "file"]
    assert file["schema"]["enum"] == list(reference.FILES)


def test_the_page_can_be_turned_off(make_service: MakeService) -> None:
    service = make_service(server="docs = false\nready_delay_seconds = 0").start(ready=503)
    assert {path for path in service.get("/openapi.json").json()["paths"] if "docs" in path} == set()
    for path in ("/docs", "/docs/docs.js"):
        answer = service.get(path)
        assert (answer.status, answer.code()) == (404, "no_such_route")
