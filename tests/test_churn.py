"""What `make churn` shows in ten minutes, for some seconds: nothing is lost of what changes all the time."""

from __future__ import annotations

from pathlib import Path

from churn import MARKED, REMOVED, churn


def test_what_is_served_is_the_table_however_it_changed_and_whatever_became_of_its_server(tmp_path: Path) -> None:
    found = churn(tmp_path, seconds=12, refresh_s=1, seed=1)
    assert found.wrong == []
    refreshes = {fact.partition(",")[0]: fact for fact in found.facts if "refreshes" in fact}
    assert all(outcome in refreshes[MARKED] for outcome in ("delta", "published", "source_error"))
    assert all(outcome in refreshes[REMOVED] for outcome in ("published", "source_error"))
