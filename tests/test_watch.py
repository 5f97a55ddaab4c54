"""What a worker's watcher does beside serving: which retired snapshots it may unmap."""

from __future__ import annotations

from pathlib import Path

from workshop import Workshop

from edgeprofile._store import Store, Workspace, take_unheld
from edgeprofile.metrics import limited_slot
from edgeprofile.reader import open_current


def test_only_stores_that_nobody_holds_are_taken_to_be_closed(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id")
    shop.load()
    reader = open_current(shop.home)
    workspace = Workspace("shop", limited_slot(0))
    workspace.store = Store(reader)
    retired = [workspace.store]
    assert take_unheld(retired) == []
    workspace.store = None
    held = retired[0]
    assert take_unheld(retired) == []
    del held
    assert [store.reader for store in take_unheld(retired)] == [reader]
    assert retired == []
    reader.close()
