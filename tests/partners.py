"""What the tests of Insider's API have in common: the workspaces of three partners, and requests as they send them."""

from __future__ import annotations

import json

from service import Answer, Header, Service, request

PATH = "/api/user/v1/profile"
PROFILES_DECLARED = """
id = "id"
updated_at = "updated_at"
identifiers = [{ column = "email", normalize = "lower" }, "phone", "user_id", "loyalty_id"]
metrics = ["orders"]
audiences = ["vip"]
"""
DECLARED = f"""{PROFILES_DECLARED}
[workspaces.shop.events]
sql = "SELECT * FROM events"
profile = "id"
name = "event"
time = "moment"
id = "event_id"
[workspaces.shop.insider]
partner = "mybrand"
identifiers = {{ uuid = "user_id", phone_number = "phone", email = "email", iban = "loyalty_id" }}
custom_identifiers = {{ loyalty = "loyalty_id", member = "id" }}
quota_per_minute = 1_000_000
"""
# The bank has no events.
BANK_DECLARED = """
id = "id"
[workspaces.bank.insider]
partner = "the-bank"
"""
# The one whose quota is used up.
TIGHT_DECLARED = """
id = "id"
[workspaces.tight.insider]
partner = "tight"
quota_per_minute = 10
base_cost = 0.25
event_type_cost = 1.1
user_base_factor = 2
"""
SPACES = {"shop": DECLARED, "bank": BANK_DECLARED, "tight": TIGHT_DECLARED}
# The first is the profile of their sample answer; its events are those of the sample.
PROFILES = """
CREATE TABLE profiles (id VARCHAR, email VARCHAR, phone VARCHAR, user_id VARCHAR, loyalty_id VARCHAR, name VARCHAR,
    surname VARCHAR, c_colour VARCHAR, iid VARCHAR, "a ""b"" c" VARCHAR, address STRUCT(city VARCHAR, zip VARCHAR),
    notes VARCHAR, orders BIGINT, vip BOOLEAN, updated_at TIMESTAMP);
INSERT INTO profiles BY NAME SELECT 'insider-id-user-1' AS id, 'example@useinsider.com' AS email, 'John' AS name,
    'Doe' AS surname, '2021-01-07' AS updated_at;
INSERT INTO profiles BY NAME SELECT 'ann' AS id, 'Ann@Example.com' AS email, '+999 1' AS phone, 'u-1' AS user_id,
    'L1' AS loyalty_id, 'Ann' AS name, 'red' AS c_colour, 'not the id' AS iid, 'hi' AS "a ""b"" c", 3 AS orders,
    {'city': 'Zürich', 'zip': NULL} AS address, true AS vip, '2025-06-10 12:34:56' AS updated_at;
INSERT INTO profiles BY NAME SELECT 'élodie' AS id, 'Élodie@Example.COM' AS email, 'u-2' AS user_id, 'L2' AS loyalty_id;
INSERT INTO profiles BY NAME SELECT 'large' AS id, repeat('x', 1048000) AS notes;
INSERT INTO profiles BY NAME SELECT unnest(['anna', 'busy']) AS id, unnest(['Damaged', NULL]) AS name;
"""
EVENTS = """
CREATE TABLE events (id VARCHAR, event_id VARCHAR, event VARCHAR, moment TIMESTAMP, campaign_id BIGINT,
    product_id VARCHAR, name VARCHAR, journey_id BIGINT, source VARCHAR, created_date VARCHAR, "timestamp" BIGINT);
INSERT INTO events BY NAME SELECT 'insider-id-user-1' AS id, 'email_click' AS event,
    unnest(['2021-01-06 23:34:09', '2021-01-01 12:56:21']) AS moment, unnest([1456, 1245]) AS campaign_id;
INSERT INTO events BY NAME SELECT 'insider-id-user-1' AS id, 'item_added_to_cart' AS event,
    '2021-01-04 15:04:34' AS moment, '3254634' AS product_id, 'Blue Shirt' AS name;
INSERT INTO events BY NAME SELECT 'insider-id-user-1' AS id, 'journey_entered' AS event,
    '2021-01-02 09:35:46' AS moment, 12 AS journey_id;
INSERT INTO events BY NAME SELECT 'ann' AS id, 'e' || i AS event_id, 'purchase' AS event,
    make_timestamp((1000 + i) * 1000000) AS moment, i AS campaign_id, ['web', 'email', NULL][i % 3 + 1] AS source
    FROM range(9) r(i);
INSERT INTO events BY NAME SELECT 'ann' AS id, 'late' AS event_id, 'Käse "view"' AS event,
    '2001-09-09 01:46:40.999999'::TIMESTAMP AS moment, 'own' AS created_date, 7 AS "timestamp";
INSERT INTO events BY NAME SELECT 'busy' AS id, 'b' || i AS event_id, 'view' AS event,
    make_timestamp(i * 1000000) AS moment, 'web' AS source FROM range(10_001) r(i);
"""
# More than are looked at for one wanted event.
PINGS = """
INSERT INTO events BY NAME SELECT 'busy' AS id, 'p' || i AS event_id, 'ping' AS event,
    make_timestamp((100_000 + i) * 1000000) AS moment, 'web' AS source FROM range(132_000) r(i);
"""
WHOLE_RANGE = {"start_date": 0, "end_date": 253_402_300_799}


def make(service: Service, more: str = "") -> Service:
    """Loads what the tests ask for, and what some more SQL makes."""
    service.run_sql(PROFILES + EVENTS + more)
    for name in ("bank", "tight"):
        service.run_sql("CREATE TABLE profiles AS SELECT unnest(['ann', 'olga']) AS id, 7 AS cards", name)
    for name in service.settings.workspaces:
        service.load(name)
    return service


def posted(asked: object, token: str | None, partner: str | None = "mybrand", *headers: Header) -> bytes:
    """A request as their callers send it; `asked` is the body, bytes or what becomes JSON."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    sent = [("Content-Length", str(len(body)))]
    sent += [("X-PARTNER-NAME", partner)] if partner is not None else []
    sent += [("X-REQUEST-TOKEN", token)] if token is not None else []
    sent += headers or [("Content-Type", "application/json")]
    return request(PATH, None, *sent, method="POST", body=body)


def post(service: Service, asked: object, token: str | None, partner: str = "mybrand", *headers: Header) -> Answer:
    return service.ask(posted(asked, token, partner, *headers))
