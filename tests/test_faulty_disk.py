"""A disk that fails at a call, of each kind, by strace: what was there is served, and the next try works."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from batches import BATCHED, UPDATE, call
from conftest import PROFILES, MakeService
from workshop import COMMAND, WAIT_SECONDS_MAX, Workshop, environment

from edgeprofile import reader

FIRST = "SELECT i AS id, 'first' AS word FROM range(200) AS made(i)"
SECOND = "SELECT i AS id, 'second' AS word FROM range(150) AS made(i)"
KINDS = ("fsync", "fdatasync", "pwrite64", "writev", "write", "rename", "truncate")
LINE = re.compile(r"(\d+) +(\w+)\((.*)")


class Call(NamedTuple):
    """A system call of a process's: its kind, which one of that kind it is, and what it was about."""

    kind: str
    number: int
    about: str


def calls(shop: Workshop) -> list[Call]:
    """Those that a load makes which write to the workspace, in order. Another load of as many rows makes the same."""
    trace = shop.folder / "trace"
    done = traced(shop, "-y", "-o", str(trace), "-e", f"trace={','.join(KINDS)}")
    assert done.returncode == 0, done.stderr
    lines = [found.groups() for line in trace.read_text().splitlines() if (found := LINE.match(line))]
    counts, made = dict[str, int](), []
    for pid, kind, rest in lines:
        if pid == lines[0][0]:  # strace counts each thread's by itself, and it is the first one that writes
            counts[kind] = counts.get(kind, 0) + 1
            if str(shop.home) in rest:
                made.append(Call(kind, counts[kind], rest))
    return made


def traced(shop: Workshop, *options: str) -> subprocess.CompletedProcess[str]:
    """A load under strace."""
    command = ["strace", "-f", "-qq", "--seccomp-bpf", *options, *COMMAND, "load"]
    return subprocess.run(
        command,
        cwd=shop.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


def served(shop: Workshop) -> str:
    reader.verify(shop.current_folder())
    (word,) = {profile["word"] for profile in shop.profiles().values()}
    return str(word)


def prepared(folder: Path) -> Workshop:
    folder.mkdir()
    shop = Workshop(folder).model(FIRST)
    shop.load()
    return shop.model(SECOND)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """All the calls of a load that nothing befalls."""
    return calls(prepared(tmp_path_factory.mktemp("calls") / "shop"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_whose_disk_fails_leaves_the_old_snapshot_or_the_new_one(
    tmp_path: Path, made: list[Call], kind: str
) -> None:
    swap = next(at for at, each in enumerate(made) if each.kind == "rename" and "CURRENT.new" in each.about)
    of_kind = [each for each in made if each.kind == kind]
    for failing in sorted({of_kind[0], of_kind[-1]}):
        is_swapped = made.index(failing) > swap
        shop = prepared(tmp_path / str(failing.number))
        inject = f"inject={kind}:error=EIO:when={failing.number}"
        ended = traced(shop, "-o", "/dev/null", "-e", f"trace={kind}", "-e", inject)
        complaints = [line for line in ended.stderr.splitlines() if not line.startswith(("stage=", "  hint: "))]
        assert len(complaints) == ended.returncode <= 1, failing
        assert ended.returncode == 1 or is_swapped, failing
        assert all("Input/output error" in line for line in complaints), failing
        assert served(shop) == ("second" if is_swapped else "first"), failing
        assert shop.load() == ("unchanged" if is_swapped else "published"), failing
        assert served(shop) == "second"
        assert shop.leftovers() == []


def test_an_update_whose_disk_fails_is_refused_and_the_next_one_is_taken(make_service: MakeService) -> None:
    service = make_service({"shop": BATCHED})
    service.run_sql(PROFILES.replace("{ids}", "['a']"))
    service.load()
    key = service.key(scopes=("read", "write"))
    # Two in a row, which are those of one update or of two.
    failing = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"]
    failing += ["-e", "inject=fdatasync:error=EIO:when=6..7"]
    service.watch(under=failing)
    service.start()
    statuses = []
    for number in range(8):
        sent = [{"identifiers": {"custom_id": f"made-{number}"}, "attributes": {"number": number}}]
        statuses.append(service.ask(call(UPDATE, key, sent)).status)
    assert set(statuses) == {202, 503}
    assert statuses[0] == statuses[-1] == 202

    def found(number: int) -> bool:
        return service.get(f"/v1/profiles/id/made-{number}", key).status == 200

    assert all(found(number) for number, status in enumerate(statuses) if status == 202)
    assert service.load().outcome == "published"
    assert all(found(number) for number, status in enumerate(statuses) if status == 202)
