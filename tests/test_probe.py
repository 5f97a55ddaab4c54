"""Schemathesis, with all of its checks, finds nothing wrong with any surface; `make probe` has it look for longer.

There it asks by HEAD too, which is GET without the body, and for the examples, which other tests hold to their answers.
"""

from __future__ import annotations

import re

import probe
import pytest
from conftest import MakeService

# As many cases as the boundaries of the schemas have, and a few that are made up.
QUICK = ("--phases=coverage,fuzzing,stateful", "--max-examples=2", "--seed=1")


@pytest.mark.timeout(300)
def test_no_check_of_schemathesis_fails(make_service: MakeService) -> None:
    shop = probe.shop(make_service())
    done = probe.probe(shop, "--exclude-method=HEAD", *QUICK)
    assert done.returncode == 0, done.stdout
    # It has read the description itself to begin with, and does not ask for it again.
    paths = [at for path, at in shop.get("/openapi.json").json()["paths"].items() if path != "/openapi.json"]
    operations = sum(len(at.keys() - {"servers", "head"}) for at in paths)
    assert re.search(rf"Tested: +{operations}\n", done.stdout), done.stdout
