"""Replicas: what one machine published is published by another, whole, or the old snapshot stays."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from objects import BUCKET, S3, SECRET
from workshop import COMMAND, WAIT_SECONDS_MAX, Workshop, environment, stop, until

from edgeprofile import locks, reader, replicas, snapshot
from edgeprofile.errors import (
    EdgeprofileError,
    FormatUnsupported,
    LoaderBusy,
    NoSnapshot,
    ObjectStoreError,
    SnapshotDamaged,
    StoreError,
    UsageError,
)
from edgeprofile.loader.following import follow
from edgeprofile.objectstore import Store

PART_BYTES = 16 * 1024
# Sends or fetches a workspace, and kills itself at a step.
DOOMED = """
import os, signal, sys
from pathlib import Path
from edgeprofile import replicas
from edgeprofile.objectstore import Store
from workshop import Workshop
copy, folder, url, step = sys.argv[1:]
def at(reached):
    if reached == step:
        os.kill(os.getpid(), signal.SIGKILL)
more = {"part_bytes": 16 * 1024} if copy == "send" else {}
getattr(replicas, copy)(Store(url, make=True), Workshop(Path(folder)).settings(), "shop", at=at, **more)
"""


class Pair:
    """A workspace that is loaded on one machine, its replica on another, and the store between them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.source, self.replica = (Workshop(folder / name) for name in ("source", "replica"))
        self.url = url
        for each in (self.source, self.replica):
            each.folder.mkdir()
            each.model("SELECT 1 AS id")

    def load(self, word: str, rows: int = 500, **keys: Any) -> str:
        """Publishes a snapshot at the source; returns its name. Some 100 KB, of which the beginning stays the same."""
        sql = f"SELECT i AS id, md5(i::VARCHAR) AS noise, CASE WHEN i < 900 THEN 'first' ELSE '{word}' END AS word"
        self.source.model(
            f"{sql}, DATE '2025-01-01' AS updated_at FROM range({1000 - rows}, 1000) AS made(i)",
            updated_at="updated_at",
            **keys,
        )
        self.source.load(force=True)
        return str(self.source.current())

    def send(self, **options: Any) -> replicas.Copied:
        store = Store(self.url, make=True)
        return replicas.send(store, self.source.settings(), "shop", **{"part_bytes": PART_BYTES, **options})

    def fetch(self, **options: Any) -> replicas.Copied:
        return replicas.fetch(Store(self.url), self.replica.settings(), "shop", **options)

    @property
    def store(self) -> Path:
        """The workspace's folder in a store that is a folder."""
        return Path(self.url.removeprefix("file://")) / "shop"

    @property
    def parts(self) -> list[Path]:
        return sorted((self.store / replicas.PARTS).iterdir())

    def lists(self) -> dict[str, dict[str, Any]]:
        """What the store has of each snapshot, by its name."""
        found = (self.store / snapshot.SNAPSHOTS).glob("*/manifest.json")
        return {file.parent.name: json.loads(file.read_bytes()) for file in found}

    def needed(self) -> set[str]:
        """The parts that some list in the store names."""
        return {part for each in self.lists().values() for part in each["parts"]}

    def served(self) -> str | None:
        """The current snapshot of the replica, all of it read."""
        if self.replica.current() is None:
            return None
        return reader.verify(self.replica.current_folder()).name


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    made = S3(tmp_path_factory.mktemp("s3"))
    yield made
    made.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """With a folder for a store."""
    return Pair(tmp_path, f"file://{tmp_path}/store")


@pytest.fixture
def far(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """With S3 for a store."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return Pair(tmp_path, f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture(params=["folder", "s3"])
def either(request: pytest.FixtureRequest) -> Pair:
    made: Pair = request.getfixturevalue("pair" if request.param == "folder" else "far")
    return made


def killed(copy: str, shop: Workshop, url: str, step: str) -> bool:
    """Whether the process was there when it was to kill itself."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", DOOMED, copy, str(shop.folder), url, step],
        env=environment() | {"PYTHONPATH": path},
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    return done.returncode == -signal.SIGKILL


# --- there and back ------------------------------------------------------------------------------------------------


def test_a_replica_serves_the_snapshot_of_the_source_as_it_is(either: Pair) -> None:
    name = either.load("first")
    sent = either.send()
    assert (sent.outcome, sent.snapshot, sent.profiles) == ("sent", name, 500)
    assert sent.moved == sent.parts > 3
    fetched = either.fetch()
    assert (fetched.outcome, fetched.snapshot, fetched.moved) == ("published", name, sent.parts)
    assert fetched.moved_bytes == sent.moved_bytes == either.source.manifest().file_bytes
    assert either.served() == name
    assert either.replica.manifest() == either.source.manifest()
    assert either.replica.bodies() == either.source.bodies()
    assert either.replica.leftovers() == []
    found = {path.name for path in either.replica.current_folder().iterdir()}
    assert found == {snapshot.MANIFEST, snapshot.PROFILES, snapshot.LIVE, snapshot.SEQUENCE}


def test_what_is_there_already_is_neither_sent_nor_fetched_again(either: Pair) -> None:
    either.load("first")
    either.send()
    either.fetch()
    assert either.send().outcome == either.fetch().outcome == "unchanged"
    second = either.load("other")
    sent, fetched = either.send(), either.fetch()
    assert sent.snapshot == fetched.snapshot == second
    assert 0 < sent.moved < sent.parts
    assert 0 < fetched.moved == sent.moved
    assert either.served() == second
    forced = either.send(force=True)
    assert forced.moved == forced.parts


def test_profiles_with_events_and_identifiers_come_too(pair: Pair) -> None:
    events = "SELECT i % 50 AS id, 'seen' AS name, TIMESTAMP '2025-01-01' + to_seconds(i) AS at FROM range(500) r(i)"
    text = pair.source.model("SELECT i AS id, 'e' || i AS email FROM range(100) r(i)", identifiers=["email"])
    settings = text.folder / "edgeprofile.toml"
    declared = f'[workspaces.shop.events]\nsql = "{events}"\nprofile = "id"\nname = "name"\ntime = "at"\n'
    settings.write_text(settings.read_text() + declared)
    pair.source.load()
    pair.send()
    pair.fetch()
    assert len(pair.replica.events()) == 50
    assert pair.replica.events() == pair.source.events()
    assert pair.replica.found("email", "e7") == ["7"]


def test_the_command_copies_by_s3_and_says_a_line(far: Pair, s3: S3) -> None:
    name = far.load("first")
    sent = far.source.run("replicate", "--to", far.url, env=s3.env)
    assert sent.status == 0
    assert sent.out.startswith("shop: sent, 500 profiles, 1 of 1 parts (")
    assert sent.out.endswith(f" s (snapshot {name})\n")
    fetched = far.replica.run("replicate", "--from", far.url, "--workspace", "shop", env=s3.env)
    assert fetched.status == 0
    assert fetched.out.startswith("shop: published, 500 profiles, 1 of 1 parts (")
    assert far.served() == name
    again = far.replica.run("replicate", "--from", far.url, env=s3.env)
    assert again.out == f"shop: unchanged (snapshot {name})\n"
    assert SECRET not in sent.out + sent.err + fetched.out + fetched.err


def test_more_than_a_page_of_parts_is_listed(far: Pair) -> None:
    far.load("first", rows=800)
    sent = far.send(part_bytes=128)
    assert sent.parts > 1_000
    far.load("first", rows=800)
    assert far.send(part_bytes=128).moved < 200


def test_a_rollback_at_the_source_is_followed_without_copying_again(pair: Pair) -> None:
    first = pair.load("first")
    pair.send()
    pair.fetch()
    pair.load("second")
    pair.send()
    pair.fetch()
    snapshot.rollback(pair.source.home, partial(follow, pair.source.home))
    assert pair.send().moved == 0
    fetched = pair.fetch()
    assert (fetched.outcome, fetched.snapshot, fetched.moved) == ("published", first, 0)
    assert pair.served() == first


def test_a_replica_keeps_as_many_snapshots_as_its_settings_say(pair: Pair) -> None:
    names = []
    for number in range(4):
        names.append(pair.load(f"v{number}"))
        pair.send()
        pair.replica.model("SELECT 1 AS id", keep=1)
        pair.fetch()
    assert snapshot.names(pair.replica.home) == names[2:]


# --- pruned --------------------------------------------------------------------------------------------------------


def test_the_store_keeps_the_snapshots_of_the_setting_and_the_parts_that_they_need(pair: Pair) -> None:
    names = []
    for number in range(5):
        names.append(pair.load(f"v{number}", keep=2))
        pair.send()
    assert sorted(pair.lists()) == names[2:]
    assert {path.name for path in pair.parts} == pair.needed()
    fetch_each(pair)


def test_nothing_is_removed_while_a_list_cannot_be_read_and_what_is_not_ours_never_is(pair: Pair) -> None:
    first = pair.load("first", keep=1)
    pair.send()
    strays = [pair.store / replicas.PARTS / "note.txt", pair.store / snapshot.SNAPSHOTS / "old" / "manifest.json"]
    for path in strays:
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"parts": []}')
    (pair.store / snapshot.SNAPSHOTS / first / "manifest.json").write_text('{"format": 99, "parts": []}')
    before = set(pair.parts)
    pair.load("second", rows=300, keep=1)
    pair.send()
    assert before < set(pair.parts)
    pair.load("third", rows=300, keep=1)
    pair.send()
    assert {path.name for path in pair.parts} == pair.needed() | {"note.txt"}
    assert all(path.exists() for path in strays)


def fetch_each(pair: Pair) -> None:
    """Fetches every snapshot whose list is in the store, each by a CURRENT that names it: all of them are whole."""
    for name in pair.lists():
        content = (pair.store / snapshot.SNAPSHOTS / name / "manifest.json").read_bytes()
        (pair.store / snapshot.CURRENT).write_text(f"{name} {hashlib.sha256(content).hexdigest()}\n")
        assert pair.fetch(force=True).snapshot == name
        assert pair.served() == name


def test_a_snapshot_that_goes_while_it_is_fetched_leads_to_the_next(pair: Pair) -> None:
    pair.load("first", keep=1)
    pair.send()
    sent: list[str] = []

    def send_two(stage: str, done: float, total: float) -> None:
        if stage == "fetch" and not sent:
            for word in ("second", "third"):
                sent.append(pair.load(word, rows=400, keep=1))
                pair.send()

    fetched = pair.fetch(progress=send_two)
    assert fetched.snapshot == sent[-1]
    assert pair.served() == sent[-1]
    assert pair.replica.leftovers() == []


# --- broken off ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", replicas.STEPS)
def test_a_sender_killed_at_any_step_leaves_what_is_in_the_store_whole(pair: Pair, step: str) -> None:
    for word in ("v0", "v1"):
        old = pair.load(word, keep=1)
        pair.send()
    new = pair.load("other", rows=300, keep=1)
    assert killed("send", pair.source, pair.url, step)
    is_sent = replicas.STEPS.index(step) >= replicas.STEPS.index("current_sent")
    assert pair.fetch().snapshot == (new if is_sent else old)
    fetch_each(pair)
    pair.load("later", rows=200, keep=1)
    pair.send()
    assert {path.name for path in pair.parts} == pair.needed()


def test_what_a_killed_sender_had_half_written_goes_with_the_next(pair: Pair) -> None:
    pair.load("first")
    pair.send()
    (listing,) = (pair.store / "snapshots").glob("*/manifest.json")
    left = [pair.store / "CURRENT#1", pair.store / "parts" / f"{'0' * 64}#12", listing.with_name("manifest.json#1")]
    for path in left:
        path.write_bytes(b"half")
    pair.load("second", rows=300)
    pair.send()
    assert [path for path in left if path.exists()] == []
    assert pair.fetch().outcome == "published"


def test_a_sender_that_was_killed_goes_on_where_it_was(far: Pair) -> None:
    name = far.load("first")
    assert killed("send", far.source, far.url, "part_sent")
    with pytest.raises(NoSnapshot):
        far.fetch()
    sent = far.send()
    assert 0 < sent.moved < sent.parts
    far.fetch()
    assert far.served() == name


@pytest.mark.parametrize("step", ["built", "renamed", "current_written", "current_swapped"])
def test_a_replica_killed_at_a_step_serves_the_old_snapshot_or_the_new_one(pair: Pair, step: str) -> None:
    old = pair.load("first")
    pair.send()
    pair.fetch()
    new = pair.load("second")
    pair.send()
    assert killed("fetch", pair.replica, pair.url, step)
    assert pair.served() == (new if step == "current_swapped" else old)
    assert pair.fetch().outcome == ("unchanged" if step == "current_swapped" else "published")
    assert pair.served() == new
    assert pair.replica.leftovers() == []


@pytest.mark.parametrize("step", ["verified", "renamed", "current_written"])
def test_a_failure_at_a_step_leaves_the_old_snapshot_and_nothing_half_done(pair: Pair, step: str) -> None:
    def fail(reached: str) -> None:
        if reached == step:
            raise OSError(5, "Input/output error")

    old = pair.load("first")
    pair.send()
    pair.fetch()
    new = pair.load("second")
    pair.send()
    with pytest.raises(StoreError, match="could not be written: Input/output error"):
        pair.fetch(at=fail)
    assert pair.served() == old
    pair.fetch()
    assert pair.served() == new
    assert pair.replica.leftovers() == []


# --- damaged -------------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def grow(file: Path) -> None:
    os.truncate(file, file.stat().st_size + 1)


@pytest.mark.parametrize("damage", [flip, cut, grow, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("what", ["part", "list", "current"])
def test_a_damaged_object_is_a_line_the_old_snapshot_stays_and_to_send_it_again_mends_it(
    pair: Pair, what: str, damage: Callable[[Path], None]
) -> None:
    old = pair.load("first")
    pair.send()
    pair.fetch()
    new = pair.load("second", rows=300)
    pair.send()
    last = pair.lists()[new]["parts"][-1]
    files = {
        "part": pair.store / replicas.PARTS / last,
        "list": pair.store / snapshot.SNAPSHOTS / new / "manifest.json",
        "current": pair.store / snapshot.CURRENT,
    }
    damage(files[what])
    with pytest.raises(StoreError) as caught:
        pair.fetch()
    assert isinstance(caught.value, NoSnapshot if (what, damage) == ("current", Path.unlink) else SnapshotDamaged)
    assert "edgeprofile replicate --to URL" in (caught.value.hint or "")
    assert pair.served() == old
    assert pair.replica.leftovers() == []
    assert pair.send(force=True).snapshot == new
    pair.fetch()
    assert pair.served() == new


def relist(pair: Pair, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a snapshot's list in the store, and has CURRENT name what it is then."""
    file = pair.store / snapshot.SNAPSHOTS / name / "manifest.json"
    listing = json.loads(file.read_bytes())
    change(listing)
    file.write_text(json.dumps(listing))
    (pair.store / snapshot.CURRENT).write_text(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n")


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        (lambda listing: listing.update(format=2), FormatUnsupported, "was sent in format 2; this build reads 1"),
        (lambda listing: listing["manifest"].update(format=99), FormatUnsupported, "has format 99; this build reads"),
        (
            lambda listing: listing["manifest"].update(name="20250101T000000.000000Z-00000000"),
            SnapshotDamaged,
            "another",
        ),
        (
            lambda listing: listing["manifest"].update(sha256="0" * 64),
            SnapshotDamaged,
            "fetched does not match its SHA",
        ),
        (lambda listing: listing["manifest"].update(profiles=3), SnapshotDamaged, "has 500 profiles, not 3"),
        (lambda listing: listing["manifest"].pop("schema"), SnapshotDamaged, "manifest.json is damaged"),
        (lambda listing: listing["parts"].pop(), SnapshotDamaged, "its list in the store is damaged"),
        (lambda listing: listing["parts"].append("../../CURRENT"), SnapshotDamaged, "its list in the store is damaged"),
        (lambda listing: listing["parts"].reverse(), SnapshotDamaged, "store is larger|does not match its SHA-256"),
        (lambda listing: listing.update(part_bytes=0), SnapshotDamaged, "its list in the store is damaged"),
    ],
)
def test_a_list_that_is_not_as_it_should_be_is_refused(
    pair: Pair, change: Callable[[dict[str, Any]], None], kind: type[EdgeprofileError], line: str
) -> None:
    name = pair.load("first")
    pair.send()
    relist(pair, name, change)
    with pytest.raises(kind, match=line):
        pair.fetch()
    assert pair.served() is None
    assert pair.replica.leftovers() == []


def test_a_snapshot_that_is_damaged_at_the_source_is_not_sent(pair: Pair) -> None:
    pair.load("first")
    pair.send()
    pair.load("second")
    before = (pair.store / snapshot.CURRENT).read_bytes()
    flip(pair.source.current_folder() / snapshot.PROFILES)
    with pytest.raises(SnapshotDamaged, match=r"profiles\.mdb does not match its SHA-256"):
        pair.send()
    assert (pair.store / snapshot.CURRENT).read_bytes() == before


def test_a_damaged_snapshot_of_the_replica_is_fetched_anew(pair: Pair) -> None:
    name = pair.load("first")
    pair.send()
    pair.fetch()
    cut(pair.replica.current_folder() / snapshot.PROFILES)
    assert pair.fetch().outcome == "published"
    assert pair.served() == name
    flip(pair.replica.current_folder() / snapshot.PROFILES)
    assert pair.fetch().outcome == "unchanged"
    mended = pair.fetch(force=True)
    assert 0 < mended.moved < mended.parts
    assert pair.served() == name
    assert pair.replica.leftovers() == []


# --- refused -------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_something_is_published_nor_fetched_before_something_is_sent(pair: Pair) -> None:
    with pytest.raises(NoSnapshot, match="nothing is published yet"):
        pair.send()
    with pytest.raises(NoSnapshot, match="no snapshot of shop is in the store"):
        pair.fetch()
    assert snapshot.names(pair.replica.home) == []


def test_a_workspace_that_is_loaded_is_no_replica_unless_by_force(pair: Pair) -> None:
    name = pair.load("first")
    pair.send()
    pair.replica.load()
    own = pair.replica.current()
    with pytest.raises(UsageError, match="workspace shop is loaded here, so it cannot be a replica"):
        pair.fetch()
    assert pair.replica.current() == own
    assert pair.fetch(force=True).outcome == "published"
    assert pair.served() == name


def test_a_workspace_is_sent_by_one_process_and_not_fetched_while_it_is_loaded(pair: Pair) -> None:
    pair.load("first")
    refused: list[str] = []

    def send_too(step: str) -> None:
        if step == "parts_sent":
            with pytest.raises(LoaderBusy, match=f"workspace shop is being sent by process {os.getpid()}") as caught:
                pair.send()
            refused.append(str(caught.value))

    assert pair.send(at=send_too).outcome == "sent"
    assert len(refused) == 1
    with locks.loading(pair.replica.home), pytest.raises(LoaderBusy, match="is being loaded by process"):
        pair.fetch()
    assert pair.fetch().outcome == "published"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("ftp://host/x", "an object store's URL begins with s3://, gs://, az://, file://"),
        ("replica", "an object store's URL begins with"),
        ("s3://[x", "the URL of the object store is none"),
        (f"s3://me:{SECRET}@bucket/x", "credentials do not belong into the URL"),
        (f"az://container/x?sig={SECRET}", "credentials do not belong into the URL"),
        ("s3://", "cannot be used: Unable to recognise URL"),
        ("file:///nowhere/at/all", "the object store failed: No such file or directory"),
        ("file:///dev/null/store", "the object store failed: Not a directory"),
    ],
)
def test_a_wrong_url_is_a_line_without_credentials(url: str, line: str) -> None:
    with pytest.raises((UsageError, ObjectStoreError)) as caught:
        Store(url)
    assert line in str(caught.value)
    assert SECRET not in f"{caught.value}{caught.value.hint}"
    assert "\n" not in str(caught.value)


def test_a_bucket_that_there_is_not_and_one_that_is_closed_are_lines(far: Pair, s3: S3) -> None:
    far.load("first")
    url, far.url = far.url, "s3://no-such-bucket/x"
    with pytest.raises(ObjectStoreError, match="has no such bucket or folder"):
        far.send()
    far.url = url
    # From now on it looks at who asks, and knows nobody.
    assert s3.ask("POST", "/moto-api/reset-auth", b"0") == 200
    try:
        with pytest.raises(ObjectStoreError, match="refuses the credentials") as caught:
            far.send()
        ended = far.replica.run("replicate", "--from", url, env=s3.env)
    finally:
        s3.ask("POST", "/moto-api/reset-auth", b"inf")
    assert SECRET not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"
    assert (ended.status, ended.out) == (1, "")
    line = "edgeprofile: shop: the object store refuses the credentials, or what is asked with them"
    assert ended.complaints == [line]
    assert SECRET not in ended.err


def test_a_store_that_is_not_there_is_a_line_and_the_old_snapshot_stays(far: Pair, s3: S3) -> None:
    name = far.load("first")
    far.send()
    far.fetch()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        env = s3.env | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        ended = far.replica.run("replicate", "--from", far.url, env=env)
    assert (ended.status, ended.out) == (1, "")
    assert ended.complaints == ["edgeprofile: shop: the object store failed: Connection refused"]
    assert SECRET not in ended.err
    assert far.served() == name


class Refusal(http.server.BaseHTTPRequestHandler):
    """Answers whatever is asked with one status."""

    status = 400

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (400, "the object store answers with status 400"),
        (401, "the object store refuses the credentials, or what is asked with them"),
        (301, "the object store is in another region than AWS_REGION says"),
        (0, "the object store is to be asked over http, which AWS_ALLOW_HTTP=true allows"),
    ],
)
def test_what_the_store_answers_is_a_line(far: Pair, monkeypatch: pytest.MonkeyPatch, status: int, line: str) -> None:
    kind = type("Refused", (Refusal,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), kind) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        if not status:
            monkeypatch.delenv("AWS_ALLOW_HTTP")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ObjectStoreError) as caught:
                far.fetch()
        finally:
            server.shutdown()
            thread.join()
    assert str(caught.value) == line


def test_a_folder_that_is_made_for_a_store_is_closed_to_others(pair: Pair) -> None:
    pair.load("first")
    pair.send()
    assert pair.store.parent.stat().st_mode & 0o777 == 0o700


def test_a_full_disk_is_a_line_and_the_old_snapshot_stays(pair: Pair) -> None:
    if os.geteuid() != 0:
        return  # only root may mount a disk that is small enough to fill
    old = pair.load("first")
    pair.send()
    pair.fetch()
    pair.load("large", rows=1000)
    shop = pair.source.model("SELECT i AS id, repeat(md5(i::VARCHAR), 9) AS noise FROM range(9000) AS made(i)")
    shop.load(force=True)
    pair.send()
    home, kept = pair.replica.home, pair.replica.folder / "kept"
    shutil.copytree(home, kept)
    script = f"mount -t tmpfs -o size=2m none {home} && cp -a {kept}/. {home}/ && "
    script += f"{sys.executable} -m edgeprofile replicate --from {pair.url}; echo status $?; cp -a {home} {kept}-after"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=pair.replica.folder,
        env=environment(),
        capture_output=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.stdout == b"status 1\n", done.stderr
    assert b"the disk is full; the old snapshot is still served" in done.stderr
    shutil.rmtree(home)
    shutil.copytree(f"{kept}-after", home)
    assert pair.served() == old
    assert pair.replica.leftovers() == []


# --- watched -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(shop: Workshop, *arguments: str) -> Iterator[tuple[Path, int]]:
    """Runs `replicate --watch` meanwhile; gives what it says, and its pid. It ends with 0 when it is told to."""
    log = shop.folder / "watch.log"
    with log.open("wb") as file:
        command = [*COMMAND, "replicate", *arguments, "--watch", "--interval", "1s"]
        process = subprocess.Popen(command, cwd=shop.folder, env=environment(), stdout=file, stderr=file)
    try:
        yield log, process.pid
    finally:
        assert stop(process) == 0
        assert "Traceback" not in log.read_text()


def test_a_watching_pair_follows_each_snapshot_and_says_a_lasting_fault_once(pair: Pair) -> None:
    pair.store.parent.mkdir()
    with (
        watching(pair.replica, "--from", pair.url) as (fetched, pid),
        watching(pair.source, "--to", pair.url) as (sent, _),
    ):
        until(lambda: "no snapshot of shop is in the store" in fetched.read_text())
        until(lambda: "nothing is published yet" in sent.read_text())
        left = os.sched_getaffinity(0) - os.sched_getaffinity(pid)
        assert len(left) == (1 if len(os.sched_getaffinity(0)) > 1 else 0), "lookups have a processor to themselves"
        for word in ("first", "second"):
            name = pair.load(word)
            until(lambda: pair.replica.current() == name)  # noqa: B023
    assert pair.served() == name
    assert sent.read_text().count("shop: sent, ") == 2
    assert sent.read_text().count("nothing is published yet") == 1
    assert fetched.read_text().count("no snapshot of shop is in the store") == 1
    assert "unchanged" not in fetched.read_text()


def test_a_copy_draws_a_bar_on_a_terminal(pair: Pair) -> None:
    pair.load("first")
    ended = pair.source.draw("replicate", "--to", pair.url)
    assert (ended.status, ended.out.split(",")[0]) == (0, "shop: sent")
    assert "━" in ended.err
    assert "stage=" not in ended.err
