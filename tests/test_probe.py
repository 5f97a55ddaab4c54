"""Schemathesis, with all of its checks, finds nothing wrong with any surface; `make probe` has it look for longer."""

from __future__ import annotations

import re

import probe
from service import Service


def test_no_check_of_schemathesis_fails(whole_shop: Service) -> None:
    done = probe.probe(whole_shop, "--max-examples=2", "--workers=2", "--phases=examples,coverage,fuzzing", "--seed=1")
    assert done.returncode == 0, done.stdout
    operations = sum(len(at.keys() - {"servers"}) for at in whole_shop.get("/openapi.json").json()["paths"].values())
    assert re.search(rf"Tested: {operations}\n", done.stdout), done.stdout
