"""What the tests of Intilery's API have in common: workspaces of some brands, and requests as callers send them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from service import Answer, Header, Service, request

SHOP = "/track/acme/marketing/SHOP/v1/profiles"
BANK = "/track/acme/marketing/BANK/v1/profiles"
DECLARED = """
id = "id"
updated_at = "updated_at"
identifiers = ["external", { column = "email", unique = false, normalize = "lower" }]
metrics = ["orders"]
audiences = ["vip", "board"]
[workspaces.shop.events]
sql = "SELECT * FROM events"
profile = "id"
name = "action"
time = "moment"
id = "event_id"
[workspaces.shop.intilery]
client = "acme"
account = "marketing"
brand = "SHOP"
id_types = { id = "id", userId = "external", email = "email" }
rate = 1_000_000
burst = 1_000_000
created = "joined"
created_by = "joined_by"
source = "origin"
received = "received_at"
"""
# The bank has no events, and no id types of its own.
BANK_DECLARED = """
id = "number"
identifiers = ["email"]
[workspaces.bank.intilery]
client = "acme"
account = "marketing"
brand = "BANK"
rate = 0.01
burst = 3
"""
# This one's callers are nobody of Intilery's.
PLAIN_DECLARED = 'id = "id"'
SPACES = {"shop": DECLARED, "bank": BANK_DECLARED, "plain": PLAIN_DECLARED}
ODD_ID = 'a/b:c %2F+"é日\x01'
PROFILES = f"""
CREATE TABLE profiles (id VARCHAR, external VARCHAR, email VARCHAR, name VARCHAR, tags VARCHAR[], joined TIMESTAMP,
    joined_by JSON, audiences VARCHAR, "lastEvent" VARCHAR, notes VARCHAR, orders BIGINT, vip BOOLEAN, board BOOLEAN,
    updated_at TIMESTAMP);
INSERT INTO profiles BY NAME SELECT 'ann' AS id, 'x-ann' AS external, 'Family@Example.com' AS email, 'Ann' AS name,
    ['a', NULL] AS tags, '2020-08-24 15:54:15.323' AS joined, '{{"type": "csv", "rows": [1, 2]}}' AS joined_by,
    'all' AS audiences, 'none' AS "lastEvent", 3 AS orders, true AS vip, false AS board,
    '2025-01-03' AS updated_at;
INSERT INTO profiles BY NAME SELECT unnest(['bob', 'cat']) AS id, unnest(['x-bob', 'x-cat']) AS external,
    'family@example.com' AS email, true AS vip, true AS board, unnest(['2025-01-01', '2025-01-02']) AS updated_at;
INSERT INTO profiles BY NAME SELECT unnest(['busy', '{ODD_ID}']) AS id, unnest(['x-busy', 'x:odd']) AS external,
    'odd@example.com' AS email;
INSERT INTO profiles BY NAME SELECT 'crowd-' || lpad(i::VARCHAR, 3, '0') AS id, 'crowd@example.com' AS email,
    repeat('n', 9000) AS notes, TIMESTAMP '2025-01-01' + INTERVAL (i) HOUR AS updated_at FROM range(150) r(i);
"""
# Ann's are such as a test looks at; of the family's, several stand at one moment.
EVENTS = f"""
CREATE TABLE events (id VARCHAR, event_id VARCHAR, action VARCHAR, moment TIMESTAMP, origin VARCHAR,
    received_at TIMESTAMP, page VARCHAR, amount DECIMAL(10, 2), details JSON, "eventTime" VARCHAR);
INSERT INTO events BY NAME SELECT 'ann' AS id, 'e1' AS event_id, 'page' AS action, '2025-06-10 12:00:00' AS moment,
    'WEB' AS origin, '2025-06-10 12:00:01.5' AS received_at, '/ä"' AS page;
INSERT INTO events BY NAME SELECT 'ann' AS id, 'e2' AS event_id, 'order' AS action, '2025-06-10 12:00:00' AS moment,
    1.50 AS amount, '{{"a": [1, null]}}' AS details, 'mine' AS "eventTime";
INSERT INTO events BY NAME SELECT 'ann' AS id, 'e3' AS event_id, 'page' AS action, '2025-06-11' AS moment;
INSERT INTO events BY NAME SELECT 'ann' AS id, 'e4' AS event_id, 'Add to cart' AS action,
    '2025-06-10 23:59:59.999999' AS moment;
INSERT INTO events BY NAME SELECT 'ann' AS id, 'e5' AS event_id, 'Käse+Brot' AS action,
    '1969-07-20 20:17:40' AS moment;
INSERT INTO events BY NAME SELECT ['bob', 'cat'][1 + i % 2] AS id, 'f' || lpad(i::VARCHAR, 3, '0') AS event_id,
    'seen ' || i % 3 AS action, TIMESTAMP '2025-01-01' + INTERVAL (i // 5) SECOND AS moment, i AS amount
    FROM range(330) r(i);
INSERT INTO events BY NAME SELECT 'crowd-000' AS id, 'c' AS event_id, 'page' AS action, '2025-01-01' AS moment;
INSERT INTO events BY NAME SELECT '{ODD_ID}' AS id, 'o' AS event_id, 'page' AS action, '2025-01-01' AS moment;
"""
# More than are looked at for one page.
PINGS = """
INSERT INTO events BY NAME SELECT 'busy' AS id, 'p' || i AS event_id,
    CASE i WHEN 0 THEN 'first' WHEN 131_999 THEN 'newest' ELSE 'ping' END AS action,
    make_timestamp((100_000 + i) * 1000000) AS moment FROM range(132_000) r(i);
"""


def make(service: Service, more: str = "") -> Service:
    """Loads what the tests ask for, and what some more SQL makes."""
    service.run_sql(PROFILES + EVENTS + more)
    service.run_sql(
        "CREATE TABLE profiles AS SELECT unnest([7, 8]) AS number, unnest(['Olga@Example.com', NULL]) AS email", "bank"
    )
    service.run_sql("CREATE TABLE profiles AS SELECT 'ann' AS id", "plain")
    for name in service.settings.workspaces:
        service.load(name)
    return service


def asked(target: str, token: str | None, *headers: Header, method: str = "GET") -> bytes:
    """A request as their callers send it."""
    sent = [("auth-token", token)] if token is not None else []
    return request(target, None, ("content-type", "application/json"), *sent, *headers, method=method)


def ask(service: Service, target: str, token: str | None, *headers: Header, method: str = "GET") -> Answer:
    return service.ask(asked(target, token, *headers, method=method))


def profile(id_type: str, value: str, what: str, base: str = SHOP) -> str:
    """The path of what is asked of a profile."""
    return f"{base}/{id_type}:{quote(value, safe='')}/{what}"


def found(answer: Answer) -> Any:
    """The content of an answer, which has what all have."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-amzn-requestid"]
    return answer.json()


def pages(service: Service, token: str, target: str, scroll: str | None = None) -> Iterator[list[Any]]:
    """The data of page after page until one has none; `target` ends in a query string."""
    while True:
        page = found(ask(service, target + (f"&scrollId={scroll}" if scroll else ""), token))
        assert list(page) == ["scrollId", "data"]
        scroll = page["scrollId"]
        assert (scroll is None) == (page["data"] == [])
        if scroll is None:
            return
        yield page["data"]


def refused(answer: Answer, status: int, code: str) -> str:
    """The message of an error, which has the shape of all."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-amzn-requestid"]
    error = answer.json()
    assert list(error) == ["error"]
    assert list(error["error"]) == ["code", "message"]
    assert error["error"]["code"] == code
    return str(error["error"]["message"])
