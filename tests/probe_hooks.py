"""What no schema can say of requests to the sample shop, for Schemathesis: probe.py has it load this.

Names of fields and namespaces are a workspace's own, cursors are given out and not made up, a range begins before it
ends. A request that the schema calls right is made so in these respects too; one that it calls wrong is left alone.
"""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import schemathesis
from jsonschema_rs import validator_for

JANE, DEVICE = "jane@example.com", "b84ffb7f-55c4-c989-f612-ac8a0a862cd9"
NAMESPACES = {"profile_id": "12345", "email": JANE, "anonymous_id": DEVICE, "phone": "+999705936705"}
ID_TYPES = {"userId": "12345", "email": JANE, "id": DEVICE}
FIELDS = ("identifiers.email", "attributes.first_name", "metrics.orders", "attributes.orders", "audiences.vip")
PLACE = {"org": "1", "account": "2", "workspace": "3"}
BRAND = {"client": "acme", "account": "marketing", "brand": "SHOP"}
ERASES = "eraseProfile"


@schemathesis.deserializer("application/msgpack")
def unpacked(context: Any, response: Any) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    # Who is asked for everywhere stays; somebody else is erased in her place.
    if case.operation.definition.raw["operationId"] == ERASES and str(case.path_parameters["profile_id"]) == "12345":
        case.path_parameters["profile_id"] = "54321"
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    # By what is in it, so that a case is the same each time that it is sent.
    choice = random.Random(repr((case.path_parameters, case.query, case.body)))
    fit_path(case, choice)
    fit_query(case.query or {}, choice)
    if "X-Batch-Project" in (case.headers or {}):
        case.headers["X-Batch-Project"] = "project_demo"
    if "X-PARTNER-NAME" in (case.headers or {}):
        case.headers["X-PARTNER-NAME"] = "demo"
    if isinstance(case.body, dict):
        FITTED.get(case.operation.definition.raw["operationId"], fit_nothing)(case.body, choice)
    if "application/msgpack" in str(case.operation.definition.raw["responses"].get("200")) and choice.random() < 0.3:
        case.headers["Accept"] = "application/msgpack"


def fit_path(case: Any, choice: random.Random) -> None:
    given = case.path_parameters or {}
    namespaces = NAMESPACES if "namespace" in given else ID_TYPES
    kind = choice.choice(list(namespaces))
    named: dict[str, Any] = {"namespace": kind, "idType": kind}
    # Often somebody who is there, whom nobody may erase.
    if choice.random() < 0.6 and case.operation.definition.raw["operationId"] != ERASES:
        named |= {"value": namespaces[kind], "id": namespaces[kind], "profile_id": "12345", "mpid": 12345}
    if choice.random() < 0.8:
        named |= BRAND if "brand" in given else PLACE
    given |= {name: value for name, value in named.items() if name in given}


def fit_query(given: dict[str, Any], choice: random.Random) -> None:
    # Schemathesis takes these from answers too, but cannot know to which request they belong.
    for name in ("cursor", "scrollId"):
        given.pop(name, None)
    if {"start", "end"} <= given.keys():
        given["start"], given["end"] = "2001-01-01", "2030-01-01T00:00:00+01:00"
    if "fields" in given:
        fields = given["fields"]
        given["fields"] = fitted_fields(fields if isinstance(fields, list) else fields.split(","), choice)


def fitted_fields(fields: list[str], choice: random.Random) -> list[str]:
    return [choice.choice(FIELDS) if "." in field else field for field in fields]


def fit_many(body: dict[str, Any], choice: random.Random) -> None:
    for asked in body["profiles"]:
        if asked.get("namespace") is not None:
            asked["namespace"] = choice.choice(list(NAMESPACES))
    if body.get("fields"):
        body["fields"] = fitted_fields(body["fields"], choice)


def whole(value: Any) -> Any:
    """With 479.0, which JSON Schema takes for an integer, as 479."""
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fit_insider(body: dict[str, Any], choice: random.Random) -> None:
    body |= whole(body)
    if not body.get("insider_id"):
        body["identifiers"] = {"email": "jane@example.com"}
    if events := body.get("events"):
        events["start_date"], events["end_date"] = sorted((events["start_date"], events["end_date"]))
        events["wanted"] = list({wanted["event_name"]: wanted for wanted in events["wanted"]}.values())


def fit_identity(body: dict[str, Any], choice: random.Random) -> None:
    body["identity"]["type"] = "customer_id"


def fit_token(body: dict[str, Any], choice: random.Random) -> None:
    # The client is named by HTTP Basic already.
    body.pop("client_id", None)
    body.pop("client_secret", None)
    body["audience"] = "https://api.mparticle.com"


def fit_nothing(body: dict[str, Any], choice: random.Random) -> None:
    pass


FITTED = {
    "profiles": fit_many,
    "insiderProfile": fit_insider,
    "mparticleResolve": fit_identity,
    "token": fit_token,
}


@schemathesis.check
def a_wrong_update_is_not_called_a_success(context: Any, response: Any, case: Any) -> None:
    """Of Batch's updates: what the schema forbids is refused, or listed as an error."""
    if case.operation.definition.raw.get("operationId") not in ("batchUpdate", "batchMassUpdate"):
        return
    if response.status_code != 202 or response.json() != {"code": "SUCCESS"}:
        return
    document = case.operation.schema.raw_schema
    [media] = case.operation.definition.raw["requestBody"]["content"].values()
    schema = {"components": document["components"], **media["schema"]}
    assert validator_for(schema).is_valid(json.loads(response.request.body)), "a wrong update was a success"
