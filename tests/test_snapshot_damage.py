"""Damaged snapshots: every damage is noticed, no reader crashes of it, and none ever yields a wrong value."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from workshop import WAIT_SECONDS_MAX, Workshop, environment

from edgeprofile import reader, record, snapshot
from edgeprofile.errors import FormatUnsupported, NoSnapshot, SnapshotDamaged, StoreError
from edgeprofile.reader import Reader

IDS, FLIPS = 3000, 100
# Opens each copy in turn and reads every profile, by its id and by its email. Says, for each, how that went.
READ_ALL = """
import sys
from pathlib import Path
import lmdb
from edgeprofile._record import check
from edgeprofile.errors import StoreError
from edgeprofile.reader import Reader
good, ids = Path(sys.argv[1]), [str(i) for i in range(int(sys.argv[2]))]
def read(folder):
    wrong = failed = 0
    try:
        opened = Reader(folder)
    except StoreError:
        return "refused"
    for primary in ids:
        try:
            found = opened.record(primary)
            if found is not None:
                check(found, primary.encode())
                wrong += bytes(found) != truth[primary]
            wrong += any(each != primary for each in opened.primaries("email", f"m{primary}@x"))
            failed += found is None
        except (StoreError, lmdb.Error, UnicodeDecodeError):
            failed += 1
    return f"wrong {wrong}" if wrong else f"failed {failed}"
first = Reader(good)
truth = {primary: bytes(first.record(primary)) for primary in ids}
for line in sys.stdin:
    print(read(Path(line.strip())), flush=True)
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A snapshot with records of several lengths and an index, over more than a hundred pages."""
    shop = Workshop(tmp_path_factory.mktemp("good"))
    sql = f"""
        SELECT i AS id, 'm' || i || '@x' AS email, repeat(md5(i::VARCHAR), (i % 9)::INTEGER) AS story, i % 3 AS class
        FROM range({IDS}) AS made(i)
    """
    shop.model(sql, identifiers=["email", {"column": "class", "unique": False}]).load()
    return shop


@pytest.fixture
def shop(good: Workshop, tmp_path: Path) -> Workshop:
    """A copy of it, to be damaged."""
    shutil.copytree(good.folder, tmp_path, dirs_exist_ok=True)
    return Workshop(tmp_path)


def read_all(good: Workshop, folders: list[Path]) -> list[str]:
    """What becomes of a process that reads these folders one after another: a line each, then its status."""
    paths = "".join(f"{folder}\n" for folder in folders)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(good.current_folder()), str(IDS)],
        input=paths.encode(),
        env=environment() | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    return [*done.stdout.decode().splitlines(), f"status {done.returncode}{done.stderr.decode()[-300:]}"]


def test_flipped_bytes_are_always_noticed_and_never_read_as_a_value(good: Workshop, tmp_path: Path) -> None:
    original = (good.current_folder() / snapshot.PROFILES).read_bytes()
    chance = random.Random(4)
    folders = []
    for number in range(FLIPS):
        place = min(len(original) * number // FLIPS + chance.randrange(len(original) // FLIPS), len(original) - 1)
        folder = tmp_path / str(number) / good.current_folder().name
        folder.mkdir(parents=True)
        shutil.copy(good.current_folder() / snapshot.MANIFEST, folder)
        damaged = bytearray(original)
        damaged[place] ^= chance.randrange(1, 256)
        (folder / snapshot.PROFILES).write_bytes(damaged)
        with pytest.raises(SnapshotDamaged, match=r"does not match its SHA-256"):
            reader.verify(folder)
        folders.append(folder)
    said = read_all(good, folders)
    assert said[-1] == "status 0"
    assert [line for line in said[:-1] if line.startswith("wrong")] == []
    assert len(said) == FLIPS + 1


def test_a_damaged_index_never_leads_to_another_profile(good: Workshop, shop: Workshop) -> None:
    file = shop.current_folder() / snapshot.PROFILES
    content = file.read_bytes()
    key = b"\x00\x01m1234@x"
    entry = key + record.index_entry(key, ["1234"])
    assert content.count(entry) == 1
    file.write_bytes(content.replace(entry, entry[:-1] + b"5"))
    assert [line for line in read_all(good, [shop.current_folder()]) if "wrong" in line] == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.97, 0.999999])
def test_a_truncated_file_is_refused_before_a_page_of_it_is_touched(
    good: Workshop, shop: Workshop, share: float
) -> None:
    file = shop.current_folder() / snapshot.PROFILES
    size = int(file.stat().st_size * share)
    file.write_bytes(file.read_bytes()[:size])
    for refuse in (reader.verify, Reader):
        with pytest.raises(SnapshotDamaged, match=rf"profiles.mdb has {size} bytes, not "):
            refuse(shop.current_folder())
    assert read_all(good, [shop.current_folder()]) == ["refused", "status 0"]


def test_a_file_that_grew_is_refused(shop: Workshop) -> None:
    with (shop.current_folder() / snapshot.PROFILES).open("ab") as file:
        file.write(b"more")
    with pytest.raises(SnapshotDamaged, match=r"profiles.mdb has "):
        Reader(shop.current_folder())


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"noise "])
def test_a_file_of_something_else_is_refused_even_with_the_right_length(
    good: Workshop, shop: Workshop, filler: bytes
) -> None:
    file = shop.current_folder() / snapshot.PROFILES
    size = file.stat().st_size
    file.write_bytes((filler * size)[:size])
    with pytest.raises(StoreError):
        Reader(shop.current_folder())
    assert read_all(good, [shop.current_folder()]) == ["refused", "status 0"]


# --- the manifest and CURRENT --------------------------------------------------------------------------------------


def changed(**members: object) -> Callable[[Path], None]:
    """Changes members of a manifest."""

    def change(folder: Path) -> None:
        file = folder / snapshot.MANIFEST
        file.write_bytes(msgspec.json.encode(json.loads(file.read_bytes()) | members))

    return change


def other_manifest(folder: Path) -> None:
    """Puts the manifest of another snapshot of the workspace in the place of this one's."""
    shop = Workshop(folder.parents[3])
    shop.model("SELECT i AS id FROM range(2500) AS made(i)").load()
    shutil.copy(shop.current_folder() / snapshot.MANIFEST, folder)
    (shop.home / snapshot.CURRENT).write_text(folder.name + "\n")


DAMAGES: list[tuple[str, Callable[[Path], object], str, type[StoreError]]] = [
    ("no manifest", lambda f: (f / snapshot.MANIFEST).unlink(), "no manifest.json", SnapshotDamaged),
    (
        "an empty manifest",
        lambda f: (f / snapshot.MANIFEST).write_bytes(b""),
        "manifest.json is damaged",
        SnapshotDamaged,
    ),
    ("noise", lambda f: (f / snapshot.MANIFEST).write_bytes(b"\xff{}"), "manifest.json is damaged", SnapshotDamaged),
    ("a list", lambda f: (f / snapshot.MANIFEST).write_bytes(b"[1]"), "manifest.json is damaged", SnapshotDamaged),
    ("half of it", lambda f: (f / snapshot.MANIFEST).write_bytes(b'{"format":3,'), "is damaged", SnapshotDamaged),
    ("too little", lambda f: (f / snapshot.MANIFEST).write_bytes(b'{"format":3}'), "is damaged", SnapshotDamaged),
    ("a later format", changed(format=4), "has format 4; this build reads 3", FormatUnsupported),
    ("the format before there were events", changed(format=1), "has format 1; this build reads 3", FormatUnsupported),
    ("a format of the wrong kind", changed(format="1"), "has format", FormatUnsupported),
    ("members of the wrong kind", changed(profiles="many"), "manifest.json is damaged", SnapshotDamaged),
    ("another count", changed(profiles=IDS - 1), f"has {IDS} profiles, not {IDS - 1}", SnapshotDamaged),
    ("more segments", changed(segments=99), "lacks segment", SnapshotDamaged),
    ("a schema of something else", changed(schema={"fields": 7}), "cannot be opened", SnapshotDamaged),
    ("another's manifest", other_manifest, "another snapshot's|profiles.mdb has ", SnapshotDamaged),
    ("no file of profiles", lambda f: (f / snapshot.PROFILES).unlink(), "no profiles.mdb", SnapshotDamaged),
]


@pytest.mark.parametrize(("damage", "says", "error"), [each[1:] for each in DAMAGES], ids=[each[0] for each in DAMAGES])
def test_a_damaged_manifest_is_a_clear_error(
    shop: Workshop, damage: Callable[[Path], object], says: str, error: type[StoreError]
) -> None:
    folder = shop.current_folder()
    damage(folder)
    with pytest.raises(error, match=says) as raised:
        reader.open_current(shop.home)
    assert folder.name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_manifest_of_another_snapshot_is_noticed_even_where_the_counts_agree(shop: Workshop) -> None:
    folder = shop.current_folder()
    manifest = json.loads((folder / snapshot.MANIFEST).read_bytes())
    changed(sha256="0" * 64)(folder)
    with pytest.raises(SnapshotDamaged, match=r"does not match its SHA-256"):
        reader.verify(folder)
    changed(**manifest | {"name": "20200101T000000.000000Z-00000000"})(folder)
    with pytest.raises(SnapshotDamaged):
        reader.verify(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\xfe", b"../../etc", b"x" * 5000, b"20200101T000000.000000Z-0000000/"]
)
def test_a_current_that_makes_no_sense_is_a_clear_error_that_a_load_mends(shop: Workshop, content: bytes) -> None:
    (shop.home / snapshot.CURRENT).write_bytes(content)
    with pytest.raises(SnapshotDamaged, match=r"^CURRENT does not hold the name of a snapshot$"):
        reader.open_current(shop.home)
    assert shop.load() == "published"
    assert len(shop.bodies()) == IDS


def test_a_current_that_leads_nowhere_is_a_clear_error_that_a_load_mends(shop: Workshop) -> None:
    (shop.home / snapshot.CURRENT).write_text("20200101T000000.000000Z-00000000\n")
    with pytest.raises(SnapshotDamaged, match=r"^snapshot 20200101T000000.000000Z-00000000: no manifest.json"):
        reader.open_current(shop.home)
    assert shop.load() == "published"
    assert len(shop.bodies()) == IDS


def test_a_workspace_that_never_loaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoSnapshot, match=r"^nothing is published yet$"):
        reader.open_current(tmp_path)


def test_stray_files_and_folders_are_left_alone(shop: Workshop) -> None:
    strays = [
        shop.snapshots / "notes.txt",
        shop.snapshots / "20200101",
        shop.home / "extra",
        shop.snapshots / ".hidden",
    ]
    for stray in strays:
        stray.mkdir() if stray.name == "20200101" else stray.write_text("keep me")
    empty = shop.snapshots / "20200101T000000.000000Z-00000000"
    empty.mkdir()
    assert snapshot.manifests(shop.home) == [shop.manifest()]
    assert shop.run("snapshots", "list", "--workspace", "shop").status == 0
    assert shop.load(force=True) == "published"
    assert [stray for stray in strays if not stray.exists()] == []
    assert len(shop.bodies()) == IDS


def test_verify_names_each_damaged_snapshot_and_fails(shop: Workshop) -> None:
    old = shop.current_folder()
    shop.load(force=True)
    with (old / snapshot.PROFILES).open("r+b") as file:
        file.seek(9000)
        file.write(b"damage")
    ended = shop.run("snapshots", "verify", "--workspace", "shop")
    assert ended.status == 1
    assert ended.complaints == [f"edgeprofile: snapshot {old.name}: profiles.mdb does not match its SHA-256"]
    assert ended.out == f"{shop.current()}: whole, {IDS} profiles\n"
