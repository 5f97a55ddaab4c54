"""Profiles that SQL makes out of nothing but their number, as many as wanted, loaded by the real loader."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import loads
from harness import Load, Running, Stage, unlimited_key, walk

from edgeprofile import demo, reader, snapshot
from edgeprofile.record import HEADER

# What a profile takes on disk, roughly, and what the spilled sort of a load takes beside.
PROFILE_BYTES = 800
SCRATCH_BYTES = 1_000
PATHS_MAX = 100_000

# 14 fields and 2 audiences, about 600 bytes of JSON. A hash of the number stands in for chance.
MODEL = """
    SELECT i::VARCHAR AS id, 'customer' || i || '@example.com' AS email,
           ['Anna', 'Bruno', 'Chloé', 'Dmitri', 'Emeka', 'Fatima', 'Goran', 'Hanako'][1 + h % 8] AS first_name,
           ['Smith', 'Müller', 'García', 'Rossi', 'Nowak', 'Okafor', 'Tanaka'][1 + (h >> 4) % 7] AS last_name,
           ['Lisbon', 'Oslo', 'Kraków', 'Graz', 'Lyon'][1 + (h >> 8) % 5] AS city,
           ['PT', 'NO', 'PL', 'AT', 'FR'][1 + (h >> 8) % 5] AS country,
           DATE '1950-01-01' + ((h >> 12) % 20000)::INTEGER AS birthday,
           TIMESTAMP '2015-01-01' + to_seconds((h >> 16) % 300000000) AS signed_up_at,
           [(h >> 20) % 5000, (h >> 24) % 5000, (h >> 28) % 5000, (h >> 32) % 5000] AS last_products,
           md5(i::VARCHAR) || md5(h::VARCHAR) || md5((h + 1)::VARCHAR) AS notes,
           'https://shop.example.com/pictures/' || md5((i + 1)::VARCHAR) || '.jpg' AS picture,
           ((h >> 36) % 1000000)::DECIMAL(12, 2) / 100 AS lifetime_value, (h >> 40) % 50 AS orders,
           (h >> 44) % 1000 / 7 AS average_order_value, h % 10 = 0 AS high_spenders, h % 3 = 0 AS churn_risk
    FROM (SELECT i, (hash(i) >> 1)::BIGINT AS h FROM range({profiles}) AS made(i))
"""
SETTINGS = """
data_dir = "state"
[server]
admin_port = 0
[loader]
memory_limit = "700MB"
threads = 2
"""
WORKSPACE = """
[workspaces.{name}]
keep = 1
source = {{ url = "duckdb://" }}
[workspaces.{name}.profiles]
sql = "{name}.sql"
id = "id"
identifiers = [{{ column = "email", normalize = "lower" }}]
metrics = ["lifetime_value", "orders", "average_order_value"]
audiences = ["high_spenders", "churn_risk"]
"""


class Generated:
    """Settings in `folder` of workspaces with so many profiles each, by name."""

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        folder.mkdir()
        self.file = folder / "edgeprofile.toml"
        self.data_dir = folder / "state"
        self._sizes = sizes
        for name, profiles in sizes.items():
            (folder / f"{name}.sql").write_text(MODEL.format(profiles=profiles), encoding="utf-8")
        self.file.write_text(SETTINGS + "".join(WORKSPACE.format(name=name) for name in sizes), encoding="utf-8")

    def load_command(self, workspace: str) -> list[str]:
        """What an operator runs."""
        return [*demo.COMMAND, "load", "--force", "--config", str(self.file), "--workspace", workspace]

    def load(self, workspace: str) -> loads.Load:
        """Loads it. Raises BenchError."""
        return loads.run_load(self.load_command(workspace), self.file.parent)

    def vary(self, workspace: str) -> None:
        """Has each load of it give another result from now on, so that it is published."""
        model = self.file.with_name(f"{workspace}.sql")
        model.write_text(f"SELECT *, now() AS loaded_at FROM ({model.read_text(encoding='utf-8')})", encoding="utf-8")

    def watch(self, stage: Stage, workspace: str, every_s: int) -> Running:
        """Starts `edgeprofile load --watch` of it, which loads so often, or else one load after the other."""
        command = [*demo.COMMAND, "load", "--watch", "--config", str(self.file), "--workspace", workspace]
        cadence = {f"EDGEPROFILE_WORKSPACES__{workspace.upper()}__REFRESH": f"{every_s}s"}
        watcher = stage.start(command, cadence)
        watcher.wait_until(lambda: "outcome=watching" in watcher.log.read_text())
        return watcher

    def snapshot(self, workspace: str) -> Path:
        """The folder of its current snapshot."""
        return snapshot.folder(self.home(workspace), snapshot.current(self.home(workspace)))

    def home(self, workspace: str) -> Path:
        """Where its snapshots are."""
        return snapshot.home(self.data_dir, workspace)

    def paths(self, workspace: str) -> Iterator[str]:
        """Lookups by id, drawn at random from the whole range."""
        drawn, profiles = random.Random(1), self._sizes[workspace]
        for _ in range(min(profiles, PATHS_MAX)):
            yield f"/v1/profiles/id/{drawn.randrange(profiles)}"

    def lookups(self, workspace: str) -> Load:
        """These, with a key of the workspace."""
        return walk(self.file.parent, self.paths(workspace), self.header(workspace))

    def header(self, workspace: str) -> str:
        """That of a new key that no limit touches. A service that runs already takes a moment to know it."""
        return f"Authorization: Bearer {unlimited_key(self.data_dir, workspace)}"


def lacking_room(folder: Path, profiles: int) -> str:
    """Why so many profiles cannot be kept at once while some are loaded, as words for a row; empty where they can."""
    needed, free = profiles * PROFILE_BYTES + profiles * SCRATCH_BYTES, shutil.disk_usage(folder).free
    return f"needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free" if needed > free else ""


def json_bytes(folder: Path) -> int:
    """The sum of the bodies of all records of a snapshot: the JSON itself, and nothing around it."""
    total = 0
    opened = reader.Reader(folder)
    try:
        with opened.txn.cursor(opened.profiles) as cursor:
            for place in cursor.iternext(keys=False):
                segment, offset, _ = reader.PLACE.unpack(place)
                total += HEADER.unpack_from(opened.segments[segment], offset)[3]
        return total
    finally:
        opened.close()
