"""Fixtures that several files share: a service for tests that only ask, and a maker of services of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import brands
import hypothesis
import partners
import probe
import pytest
from postgres import Postgres
from sampled import sampled
from service import DECLARED, Service

# How long an example takes depends on the machine, and decides nothing.
hypothesis.settings.register_profile("edgeprofile", deadline=None)
hypothesis.settings.load_profile("edgeprofile")

# A second workspace with a profile of the same id: only the key tells which is meant.
BANK = 'id = "profile_id"\nidentifiers = ["iban"]'
# A column's name may hold what separates the fields of a query string.
BANK_PROFILES = '''CREATE TABLE profiles AS
    SELECT '12345' AS profile_id, 'IBAN-1' AS iban, 'Olga' AS first_name, 7 AS "cards, all"'''

# 12345 is the profile that the vendor's document shows; the others are what a warehouse may come up with.
PROFILES = """
CREATE TABLE profiles (
    profile_id VARCHAR, email VARCHAR, device_id VARCHAR, first_name VARCHAR, visits BIGINT, balance DECIMAL(38, 10),
    ratio DOUBLE, preferences JSON, birthday DATE, seen_at TIMESTAMP, tags VARCHAR[], notes VARCHAR,
    lifetime_value DECIMAL(12, 2), high_spenders BOOLEAN, churn_risk BOOLEAN, updated_at TIMESTAMP
);
INSERT INTO profiles BY NAME SELECT '12345' AS profile_id, 'jane@example.com' AS email, 'Jane' AS first_name,
    1492.18 AS lifetime_value, true AS high_spenders, false AS churn_risk, '2025-06-10 12:34:56' AS updated_at;
INSERT INTO profiles BY NAME SELECT 'types' AS profile_id, 9223372036854775807 AS visits,
    '1234567890123456789012345678.0123456789'::DECIMAL(38, 10) AS balance, 'NaN'::DOUBLE AS ratio,
    '{"b": 1, "a": [1.50, null], "n": 12345678901234567890}' AS preferences, '1970-02-28' AS birthday,
    '2025-01-02 03:04:05.678' AS seen_at, ['ä', NULL, '"'] AS tags, -0.01 AS lifetime_value,
    '2025-06-10 12:34:56' AS updated_at;
INSERT INTO profiles BY NAME SELECT unnest(['twin-old', 'twin-new', 'twin-none']) AS profile_id,
    'tablet' AS device_id, unnest(['2025-01-01', '2025-03-03', '2025-02-02']) AS updated_at;
INSERT INTO profiles BY NAME SELECT 'large' AS profile_id, 'Lara' AS first_name, repeat('x', 1100000) AS notes;
INSERT INTO profiles BY NAME SELECT 'élodie' AS profile_id, 'Élodie@Example.COM' AS email, 'Élodie' AS first_name;
INSERT INTO profiles BY NAME SELECT unnest({ids}) AS profile_id, '2025-06-10 12:34:56' AS updated_at;
"""
EVENTS_DECLARED = """
id = "profile_id"
identifiers = [{ column = "email", normalize = "lower" }]
[workspaces.shop.events]
sql = "SELECT * FROM events"
profile = "profile_id"
name = "event_name"
time = "event_time"
id = "event_id"
"""
# Events of one time, names that a query string must escape, a moment in microseconds, one before 1970.
EVENTS = """
CREATE TABLE profiles AS SELECT * FROM (VALUES ('ann', 'ann@example.com'), ('bob', 'bob@example.com'),
    ('events', NULL), ('walk', NULL), ('wide', NULL), ('large', NULL), ('a/b', NULL)) AS made(profile_id, email);
CREATE TABLE events (profile_id VARCHAR, event_id VARCHAR, event_name VARCHAR, event_time TIMESTAMP, page VARCHAR,
    amount DECIMAL(10, 2), tags VARCHAR[]);
INSERT INTO events VALUES
    ('ann', 'e1', 'page', '2025-06-10 12:00:00', '/ä"', NULL, NULL),
    ('ann', 'e2', 'order', '2025-06-10 12:00:00', NULL, 1.50, ['a', NULL]),
    ('ann', 'e3', 'page', '2025-06-11 00:00:00', '/', NULL, NULL),
    ('ann', 'e4', 'Add to cart', '2025-06-10 23:59:59.999999', NULL, NULL, NULL),
    ('ann', 'e5', 'a,b&c=d', '2025-06-09 10:00:00.123', NULL, NULL, NULL),
    ('ann', 'e6', 'Käse+Brot', '1969-07-20 20:17:40', NULL, -0.01, []),
    ('a/b', 'e1', 'page', '2025-06-10 12:00:00', NULL, NULL, NULL);
INSERT INTO events SELECT 'walk', 'w' || lpad(i::VARCHAR, 4, '0'), 'name ' || i % 3,
    TIMESTAMP '2025-01-01' + INTERVAL (i // 7) SECOND, NULL, i, NULL FROM range(700) r(i);
INSERT INTO events SELECT 'wide', 'w' || i, 'wide', TIMESTAMP '2025-01-01' + INTERVAL (i) SECOND, repeat('x', 30000),
    i, NULL FROM range(60) r(i);
INSERT INTO events SELECT 'large', 'l' || i, 'large', TIMESTAMP '2025-01-01' + INTERVAL (i) SECOND,
    repeat('x', CASE i WHEN 1 THEN 1100000 ELSE 1 END), i, NULL FROM range(3) r(i);
"""
# Ids that a path can hold only in escapes, or not as they look.
ODD_IDS = (
    "a/b",
    "a+b",
    "a b",
    "a?b=c&d",
    "a%2Fb",
    "..",
    '"<>\\^`{|}',
    "\x01\x7f",
    "日本語",
    "p\u0430ypal-ελ-ام",  # a Cyrillic letter in a Latin word
    "👩‍👩‍👧🇫🇷",
    "e\u0301",
    "\U0010ffff",
)


# The longest begin first, lest one process is left with one of them when all others are done.
LONGEST = ("test_replicas", "test_cli", "test_load_events", "test_load_bad_input")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


class MakeService(Protocol):
    """Makes a service that ends with the test; see Service for what it takes. It is not started."""

    def __call__(self, spaces: dict[str, str] | None = None, **options: Any) -> Service: ...


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[MakeService]:
    made: list[Service] = []

    def make(spaces: dict[str, str] | None = None, **options: Any) -> Service:
        folder = tmp_path / f"service-{len(made)}"
        folder.mkdir()
        made.append(Service(folder, spaces, **options))
        return made[-1]

    yield make
    for service in made:
        service.stop()


@pytest.fixture
def sample_shop(make_service: MakeService) -> Service:
    """The sample shop, served: what the docs show answers of."""
    return sampled(make_service()).start()


@pytest.fixture(scope="session")
def whole_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same with a loader, and without limits, so that all that is described can be asked."""
    made = probe.shop(Service(tmp_path_factory.mktemp("whole")))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for tests that leave it running; each has a database of its own."""
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers over the workspaces `shop` and `bank`. Tests ask and mint keys; they change nothing else."""
    made = Service(tmp_path_factory.mktemp("service"), {"shop": DECLARED, "bank": BANK}, workers=2)
    ids = ", ".join("'" + odd.replace("'", "''") + "'" for odd in ODD_IDS)
    made.run_sql(PROFILES.replace("{ids}", f"[{ids}]"))
    made.run_sql(BANK_PROFILES, "bank")
    made.load("shop")
    made.load("bank")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def key(service: Service) -> str:
    """A key of `shop` that no limit touches."""
    return service.key("shop")


@pytest.fixture(scope="session")
def bank_key(service: Service) -> str:
    return service.key("bank")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers over a workspace with events. Tests ask and mint keys; they change nothing else."""
    made = Service(tmp_path_factory.mktemp("shop"), {"shop": EVENTS_DECLARED}, workers=2)
    made.run_sql(EVENTS)
    made.load()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def token(shop: Service) -> str:
    """A key of `shop` that no limit touches."""
    return shop.key()


@pytest.fixture(scope="session")
def insider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers over the workspaces of three partners. Tests ask and mint keys; they change nothing else."""
    made = partners.make(Service(tmp_path_factory.mktemp("insider"), partners.SPACES, workers=2), partners.PINGS)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def intilery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers over the workspaces of some brands. Tests ask and mint keys; they change nothing else."""
    made = brands.make(Service(tmp_path_factory.mktemp("intilery"), brands.SPACES, workers=2), brands.PINGS)
    made.start()
    yield made
    made.stop()
