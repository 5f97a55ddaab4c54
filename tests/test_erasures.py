"""Erased profiles: gone at once, kept out of every later snapshot, off the disk in time, and back when restored."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from living import living
from prometheus_client import CollectorRegistry
from workshop import COMMAND, WAIT_SECONDS_MAX, Workshop, environment, roll_back, stop, until, values

from edgeprofile import reader, snapshot, wire
from edgeprofile._limiter import SharedMap
from edgeprofile.errors import RefreshRefused
from edgeprofile.exposition import Exposition
from edgeprofile.loader import overlay
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Erasures, Updates, read

PEOPLE = values("'ann', 'secret-a@x'", "'bob', 'secret-b@x'", "'cy', 'secret-c@x'", columns="id, email")
EVENTS = {
    "sql": "SELECT * FROM (VALUES ('ann', 'page', TIMESTAMP '2024-01-01'), ('bob', 'page', TIMESTAMP '2024-01-01'), "
    "('gone', 'page', TIMESTAMP '2024-01-01')) AS made(profile, name, moment)",
    "profile": "profile",
    "name": "name",
    "time": "moment",
}


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    shop = Workshop(tmp_path)
    model(shop)
    shop.load()
    return shop


def model(shop: Workshop, sql: str = PEOPLE, **keys: Any) -> None:
    shop.model(sql, identifiers=["email"], events=EVENTS, rejects_max=0.0, **keys)


def erase(shop: Workshop, *primaries: str) -> None:
    with LiveWriter(shop.home) as writer:
        writer.erase(Erasures([*primaries]))


def update(shop: Workshop, primary: str, **attributes: str) -> list[str]:
    said = {name: f'"{value}"'.encode() for name, value in attributes.items()}
    with LiveWriter(shop.home) as writer:
        return [each.reason for each in writer.update(read({"updates": [[primary, said]]}, Updates))]


def profiles(shop: Workshop) -> dict[str, Any]:
    with living(shop.home) as served:
        served.check()
        return {primary: (served.profile(primary) or {})["email"] for primary in served.ids()}


def status(shop: Workshop) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shop.run("status", "--json").out)[0]
    return found


def holders(shop: Workshop, text: bytes) -> set[str]:
    """The snapshots in whose files a text still stands."""
    return {path.parent.name for path in shop.snapshots.rglob("*") if path.is_file() and text in path.read_bytes()}


EVERYBODY = {"ann": "secret-a@x", "bob": "secret-b@x", "cy": "secret-c@x"}
OTHERS = {"bob": "secret-b@x", "cy": "secret-c@x"}


# --- gone ----------------------------------------------------------------------------------------------------------


def test_an_erased_profile_is_gone_at_once_with_its_identifiers_and_events(shop: Workshop) -> None:
    update(shop, "ann", email="secret-new@x")
    erase(shop, "ann")
    with living(shop.home) as served:
        served.check()
        assert served.ids() == ["bob", "cy"]
        assert (served.found("email", "secret-a@x"), served.found("email", "secret-new@x")) == ([], [])
        assert served.events_of("ann") == []
    assert update(shop, "ann", email="secret-again@x") == ["the profile was erased"]
    assert profiles(shop) == OTHERS


def test_later_refreshes_leave_it_out_without_a_word_of_whose_row_it_is(shop: Workshop) -> None:
    erase(shop, "ann", "gone", "nobody")
    assert shop.load() == "published"
    assert profiles(shop) == OTHERS
    manifest = shop.manifest()
    assert (manifest.rejected, manifest.events_rejected, manifest.refused) == ({"erased": 1}, {"erased": 2}, 0)
    assert shop.rejects() == []
    reader.verify(shop.current_folder())
    assert shop.load() == "unchanged"
    kept = b"".join(path.read_bytes() for path in shop.current_folder().iterdir())
    assert b"secret-a@x" not in kept
    assert b"nobody" not in kept
    assert b"nobody" not in (shop.home / "refresh.json").read_bytes()


def test_a_model_of_which_all_is_erased_is_published_as_one_that_gives_nothing_is_not(shop: Workshop) -> None:
    erase(shop, "ann", "bob", "cy")
    assert shop.load() == "published"
    assert profiles(shop) == {}
    update(shop, "dee", email="d@x")
    model(shop, f"FROM ({PEOPLE}) WHERE false")
    with pytest.raises(RefreshRefused, match="the model gave no profiles"):
        shop.load()


def test_what_was_erased_goes_from_disk_in_time(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = str(shop.current())
    model(shop, keep=10, erase_within="1h")
    shop.load(force=True)
    erase(shop, "ann")
    assert holders(shop, b"secret-a@x") == {first, shop.current()}
    shop.load()
    assert len(snapshot.names(shop.home)) == 3, "an operator can still roll back"
    monkeypatch.setattr(overlay, "DUE_AT_SHARE", 0.0)  # an hour later, as far as erasures know
    assert shop.load() == "unchanged"
    assert snapshot.names(shop.home) == [shop.current()]
    assert holders(shop, b"secret-a@x") == set()
    assert profiles(shop) == OTHERS


def test_a_watcher_refreshes_for_it_however_long_its_cadence_is(shop: Workshop) -> None:
    model(shop, refresh="1h", erase_within="2s")
    first = shop.current()
    command = [*COMMAND, "load", "--watch"]
    with subprocess.Popen(command, cwd=shop.folder, env=environment(), stdout=subprocess.DEVNULL) as watcher:
        socket = shop.home / wire.UPDATES
        until(socket.exists, watcher)
        answer = asyncio.run(wire.ask(socket, {"op": "erase", "ids": ["ann"]}, WAIT_SECONDS_MAX))
        assert answer["ok"]
        assert profiles(shop) == OTHERS
        until(lambda: shop.current() != first and first not in snapshot.names(shop.home), watcher)
        assert stop(watcher) == 0
    assert holders(shop, b"secret-a@x") == set()
    assert profiles(shop) == OTHERS


# --- back ----------------------------------------------------------------------------------------------------------


def test_what_is_restored_comes_back_with_the_next_load_as_the_model_has_it(shop: Workshop) -> None:
    update(shop, "ann", email="secret-new@x")
    shop.load()
    erase(shop, "ann", "bob")
    restored = shop.run("erased", "restore", "--workspace", "shop", "--id", "ann")
    assert (restored.status, restored.out) == (
        0,
        "restored 1 profiles: what the model has of them comes back with the next load\n",
    )
    assert profiles(shop) == {"cy": "secret-c@x"}
    assert update(shop, "ann", email="secret-anew@x") == []
    assert profiles(shop) == {"ann": "secret-anew@x", "cy": "secret-c@x"}
    with living(shop.home) as served:
        assert served.events_of("ann") == []
    shop.load()
    assert profiles(shop) == {"ann": "secret-anew@x", "cy": "secret-c@x"}
    with living(shop.home) as served:
        assert [event["name"] for event in served.events_of("ann")] == ["page"]
    assert shop.run("erased", "restore", "--workspace", "shop").status == 0
    shop.load()
    assert profiles(shop) == EVERYBODY | {"ann": "secret-anew@x"}
    assert shop.run("erased", "restore", "--workspace", "shop").status == 1


def test_a_rollback_brings_nobody_back(shop: Workshop) -> None:
    erase(shop, "ann")
    shop.load()
    erase(shop, "bob")
    shop.run("erased", "restore", "--workspace", "shop", "--id", "ann")
    update(shop, "ann", email="secret-new@x")
    roll_back(shop.home)
    assert profiles(shop) == {"ann": "secret-new@x", "cy": "secret-c@x"}
    with living(shop.home) as served:
        assert served.events_of("ann") == []


def test_a_restored_erasure_is_forgotten_when_no_snapshot_is_older(shop: Workshop) -> None:
    model(shop, keep=1)
    erase(shop, "ann")
    shop.run("erased", "restore", "--workspace", "shop")
    for _ in range(2):
        shop.load(force=True)
    with overlay.open_overlay(shop.home) as opened, opened.view() as view:
        assert view.erasures() == []
        assert view.touched_since(0) == []
    assert profiles(shop) == EVERYBODY


# --- told ----------------------------------------------------------------------------------------------------------


def test_erased_profiles_are_listed_by_what_is_no_id(shop: Workshop) -> None:
    assert shop.run("erased", "list", "--workspace", "shop").status == 0
    erase(shop, "ann", "bob")
    listed = shop.run("erased", "list", "--workspace", "shop")
    rows = [line for line in listed.out.splitlines() if "│" in line]
    assert len(rows) == 2
    assert not any(name in listed.out for name in ("ann", "bob"))
    one = shop.run("erased", "list", "--workspace", "shop", "--id", "ann")
    assert [line for line in one.out.splitlines() if "│" in line] in ([rows[0]], [rows[1]])
    assert "│" not in shop.run("erased", "list", "--workspace", "shop", "--id", "cy").out
    assert shop.run("erased", "list", "--workspace", "other").status == 2


def test_status_and_metrics_tell_what_is_live_and_how_much_is_erased(shop: Workshop) -> None:
    def live_profiles() -> float | None:
        registry = CollectorRegistry()
        registry.register(Exposition(shop.settings(), SharedMap(shop.folder / "shared.map"), started_at=0, workers=1))
        return registry.get_sample_value("edgeprofile_live_profiles", {"workspace": "shop"})

    found = status(shop)
    assert (found["live_profiles"], found["erased"], live_profiles()) == (0, 0, 0)
    update(shop, "ann", email="secret-new@x")
    update(shop, "dee", email="secret-d@x")
    erase(shop, "bob")
    found = status(shop)
    assert (found["live_profiles"], found["erased"], live_profiles()) == (3, 1, 3)
    shop.load()
    found = status(shop)
    assert (found["live_profiles"], found["erased"], live_profiles()) == (0, 1, 0)
    (shop.current_folder() / snapshot.LIVE).write_bytes(b"noise")
    found = status(shop)
    assert "live layer" in found["problem"]
    assert live_profiles() is None
