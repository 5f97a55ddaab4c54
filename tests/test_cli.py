"""Every command, run as a process of its own, as an operator does."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from workshop import COMMAND, WAIT_SECONDS_MAX, Ended, Workshop, environment, side_by_side, stop, until, values

from edgeprofile import locks, outcomes
from edgeprofile.loader.rows import REJECTS_LISTED

MODEL = values("1, 'a@x', true", "2, 'b@x', false", "3, 'c@x', NULL", columns="id, email, vip")
SLOW = "SELECT max(a.i + b.i) AS id FROM range(3000000) AS a(i), range(3000000) AS b(i)"
COMMANDS = ["", "demo", "init", "load", "replicate", "serve", "keys", "keys create", "keys list", "keys revoke"]
COMMANDS += [
    "snapshots",
    "status",
    "snapshots list",
    "snapshots verify",
    "snapshots rollback",
    "config",
    "config check",
]
# Arguments, and what the line about them says.
MISUSES = {
    "": "COMMAND",
    "fly": "'fly'",
    "init --select customers": "--dbt",
    "init --dbt none.json": "--select",
    "init --dbt none.json --select customers": "none.json cannot be read",
    "load --fast": "--fast",
    "load --watch --force": "--force is for one load",
    "replicate": "--to --from is required",
    "replicate --to file:///a --from file:///b": "not allowed with",
    "replicate --to file:///a --watch --force": "--force is for one copy",
    "replicate --to file:///a --interval soon": "--interval takes a duration such as",
    "replicate --from ftp://a": "an object store's URL begins with s3://",
    "replicate --from file:///a --workspace nix": "there is no workspace nix; there are: shop",
    "keys": "COMMAND",
    "keys create": "--workspace",
    "keys create --workspace shop --scope admin": "'admin'",
    "keys create --workspace shop --rate fast": "'fast'",
    "keys create --workspace shop --expires soon": "90d, 12h or 30m",
    "keys create --workspace nix": "there is no workspace nix; there are: shop",
    "load --workspace nix": "there is no workspace nix; there are: shop",
    "snapshots list --workspace nix": "there is no workspace nix; there are: shop",
    "load --config none.toml": "none.toml: expected a settings file in UTF-8",
    "config check --config broken.toml": "broken.toml: expected valid TOML",
    "status --config unknown.toml": "unknown.toml: server.prot: expected a known key",
    "load --config empty.toml": "empty.toml has no workspace",
    "demo --profiles 0 --dir other": "--profiles takes a number from 1 to",
    "demo --dir .": "holds something else than a demo",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workspace that has loaded once. Tests that change it bring it back."""
    made = Workshop(tmp_path_factory.mktemp("cli")).model(MODEL, identifiers=["email"], audiences=["vip"])
    made.load()
    return made


@pytest.fixture
def fresh(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path).model(MODEL, identifiers=["email"], audiences=["vip"])


# --- usage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def helped(shop: Workshop) -> dict[str, Ended]:
    """What each command says when it is asked for help."""
    return dict(zip(COMMANDS, side_by_side(lambda each: shop.run(*each.split(), "--help"), COMMANDS), strict=True))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command or "top")
def test_every_command_explains_itself(helped: dict[str, Ended], command: str) -> None:
    ended = helped[command]
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"usage: edgeprofile {command}".rstrip())
    assert "None" not in ended.out


@pytest.fixture(scope="module")
def misused(shop: Workshop) -> dict[str, Ended]:
    """How each misuse ended."""
    (shop.folder / "broken.toml").write_text("[server\n")
    (shop.folder / "unknown.toml").write_text("[server]\nprot = 1\n")
    (shop.folder / "empty.toml").write_text("")
    return dict(zip(MISUSES, side_by_side(lambda each: shop.run(*each.split()), MISUSES), strict=True))


@pytest.mark.parametrize("arguments", MISUSES, ids=lambda arguments: arguments or "nothing")
def test_misuse_is_one_line_and_status_2(misused: dict[str, Ended], arguments: str) -> None:
    ended = misused[arguments]
    assert (ended.status, ended.out) == (2, "")
    errors = [line for line in ended.complaints if not line.startswith(("usage: ", " "))]
    assert len(errors) == 1
    assert re.match(r"edgeprofile( [a-z ]+)?: ", errors[0])
    assert MISUSES[arguments] in errors[0]


def test_the_version_is_told(shop: Workshop) -> None:
    assert re.fullmatch(r"edgeprofile \d+\.\d+\.\d+\S*\n", shop.run("--version").out)


def test_a_variable_names_the_settings_and_overrides_them(shop: Workshop, tmp_path: Path) -> None:
    env = environment() | {
        "EDGEPROFILE_CONFIG": str(shop.folder / "edgeprofile.toml"),
        "EDGEPROFILE_DATA_DIR": "elsewhere",
    }
    done = subprocess.run([*COMMAND, "status", "--json"], cwd=tmp_path, env=env, capture_output=True, check=True)
    assert json.loads(done.stdout)[0]["snapshot"] is None


# --- load ----------------------------------------------------------------------------------------------------------


def test_load_logs_a_line_a_stage_and_a_line_for_what_it_did(fresh: Workshop) -> None:
    ended = fresh.run("load")
    assert ended.status == 0
    assert re.fullmatch(
        rf"shop: published, 3 profiles in [\d.]+ s, [\d,]+ a second \(snapshot {fresh.current()}\)\n", ended.out
    )
    stages = [line.split("'")[1] for line in ended.err.splitlines()]
    assert list(dict.fromkeys(stages)) == ["model", "records", "identifiers: email", "publish"]
    assert all(re.fullmatch(r"stage='[^']+' done=[\d.]+ total=[\d.]+", line) for line in ended.err.splitlines())
    again = fresh.run("load")
    assert (again.status, again.out.split(",")[0]) == (0, "shop: unchanged")


def test_load_says_how_many_rows_it_refused(fresh: Workshop) -> None:
    count = REJECTS_LISTED + 50
    fresh.model(f"SELECT NULLIF(greatest(i, {count}), {count}) AS id FROM range(100000) AS made(i)", rejects_max=0.5)
    ended = fresh.run("load")
    assert f", {count + 1} rows refused (snapshot " in ended.out
    assert len(fresh.rejects()) == REJECTS_LISTED


def test_load_draws_a_progress_bar_on_a_terminal(fresh: Workshop) -> None:
    fresh.model("SELECT i AS id, md5(i::VARCHAR) AS word FROM range(200000) AS made(i)")
    ended = fresh.draw("load")
    assert ended.status == 0
    assert ended.out.startswith("shop: published, 200,000 profiles")
    assert "━" in ended.err
    assert "records" in ended.err
    assert "of 200,000" in ended.err
    assert "stage=" not in ended.err


def test_one_bad_workspace_does_not_keep_the_others_from_loading(fresh: Workshop) -> None:
    settings = fresh.folder / "edgeprofile.toml"
    good = settings.read_text()
    bad = good[good.index("[workspaces.shop]") :].replace("workspaces.shop", "workspaces.a-bad-one")
    settings.write_text(good + bad.replace("model.sql", "SELECT 1"))
    ended = fresh.run("load")
    assert ended.status == 1
    assert ended.out.startswith("shop: published")
    assert all(line.startswith("edgeprofile: a-bad-one: column ") for line in ended.complaints)
    assert fresh.run("load", "--workspace", "shop").status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_load_ends_it_and_the_old_snapshot_stays(
    fresh: Workshop, number: signal.Signals
) -> None:
    fresh.load()
    before = fresh.bodies()
    fresh.model(SLOW)
    process = subprocess.Popen(
        [*COMMAND, "load"], cwd=fresh.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"stage='model'")
        status = stop(process, number)
        err = process.stderr.read().decode()
    assert status in (130, 128 + number)
    assert [line for line in err.splitlines() if not line.startswith("stage=")] == ["edgeprofile: interrupted"]
    assert fresh.bodies() == before
    assert fresh.leftovers() == []
    assert outcomes.read(fresh.home).last[-1].outcome == "interrupted"


# --- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_is_created_listed_and_revoked(fresh: Workshop) -> None:
    created = fresh.run("keys", "create", "--workspace", "shop", "--name", "till", "--rate", "5", "--expires", "90d")
    assert created.status == 0
    assert re.fullmatch(r"sk_live_\S{20,}\n", created.out)
    secret = created.out.strip()
    public_id = secret.removeprefix("sk_live_")[:12]
    assert secret not in created.err
    assert public_id in created.err
    listed = fresh.run("keys", "list")
    assert listed.status == 0
    assert public_id in listed.out
    assert "till" in listed.out
    (key,) = json.loads(fresh.run("keys", "list", "--json").out)
    assert (key["public_id"], key["workspace"], key["rate"], key["state"]) == (public_id, "shop", 5.0, "usable")
    assert "hash" not in key
    kept = (fresh.folder / "var" / "keys.json").read_text()
    assert secret not in kept + listed.out + json.dumps(key)
    assert fresh.run("keys", "revoke", public_id).status == 0
    assert json.loads(fresh.run("keys", "list", "--json").out)[0]["state"] == "revoked"
    unknown = fresh.run("keys", "revoke", "000000000000")
    assert unknown.status in (1, 2)
    assert len(unknown.complaints) == 1


# --- snapshots, status, config -------------------------------------------------------------------------------------


def test_snapshots_are_listed_verified_and_rolled_back(fresh: Workshop) -> None:
    for command in ("list", "verify", "rollback"):
        nothing = fresh.run("snapshots", command, "--workspace", "shop")
        assert (nothing.status, nothing.complaints) == (1, ["edgeprofile: nothing is published yet"])
    names = []
    for _ in range(2):
        fresh.load(force=True)
        names.append(str(fresh.current()))
    lines = fresh.run("snapshots", "list", "--workspace", "shop").out.splitlines()
    assert [next((name for name in names if name in line), None) for line in lines if "Z-" in line] == names[::-1]
    assert [("→" in line) for line in lines if "Z-" in line] == [True, False]
    verified = fresh.run("snapshots", "verify", "--workspace", "shop")
    assert verified.out == "".join(f"{name}: whole, 3 profiles\n" for name in names)
    rolled = fresh.run("snapshots", "rollback", "--workspace", "shop")
    assert rolled.status == 0
    assert rolled.out.startswith(f"serving {names[0]} again, 3 profiles as of ")
    assert fresh.current() == names[0]
    again = fresh.run("snapshots", "rollback", "--workspace", "shop")
    assert again.complaints == [f"edgeprofile: there is no snapshot before {names[0]}"]


def test_a_list_of_snapshots_tells_what_each_evicted_and_whether_it_was_forced(fresh: Workshop) -> None:
    fresh.load()
    fresh.model("SELECT 1 AS id").load(force=True)
    lines = fresh.run("snapshots", "list", "--workspace", "shop").out.splitlines()
    assert [[cell.strip() for cell in line.split("│")[-3:-1]] for line in lines if "Z-" in line] == [
        ["2", "forced"],
        ["0", ""],
    ]


def test_status_tells_of_each_workspace_for_people_and_for_programs(fresh: Workshop) -> None:
    (never,) = json.loads(fresh.run("status", "--json").out)
    assert (never["workspace"], never["snapshot"], never["last_refresh"]) == ("shop", None, None)
    assert "none yet: run edgeprofile load" in fresh.run("status").out
    fresh.load()
    (found,) = json.loads(fresh.run("status", "--json").out)
    assert found["snapshot"] == fresh.current()
    assert (found["profiles"], found["identifiers"], found["live_profiles"]) == (3, {"email": 3}, 0)
    assert (found["rejected"], found["problem"]) == ({}, None)
    assert found["file_bytes"] == (fresh.current_folder() / "profiles.mdb").stat().st_size
    assert 0 <= found["age"] < 600
    assert (found["last_refresh"]["outcome"], found["last_refresh"]["profiles"]) == ("published", 3)
    shown = fresh.run("status").out
    assert str(fresh.current()) in shown
    assert "published" in shown
    (fresh.current_folder() / "profiles.mdb").unlink()
    damaged = fresh.run("status")
    assert damaged.status == 1
    assert "no profiles.mdb" in damaged.out


def test_config_check_names_the_namespaces_or_every_problem(fresh: Workshop) -> None:
    good = fresh.run("config", "check")
    assert (good.status, good.out, good.err) == (0, "shop: good, 3 fields, found by id, email\n", "")
    fresh.model("SELECT 1 AS id, 2 AS vip", identifiers=["email"], audiences=["vip"])
    bad = fresh.run("config", "check")
    assert (bad.status, bad.out) == (1, "")
    assert len(bad.complaints) == 2
    assert all(line.startswith("edgeprofile: shop: column ") for line in bad.complaints)
    assert not fresh.home.exists() or fresh.current() is None


# --- demo ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def demo(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Runs a demo that would like a port until it has told how to ask it; gives its process and the `curl` line."""
    log = folder / "demo.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, "demo", "--dir", "shop", "--profiles", "200"],
            cwd=folder,
            # Its admin listener would like the port that the demo will find for the other.
            env=environment() | {f"EDGEPROFILE_SERVER__{n}PORT": str(p) for n, p in (("", port), ("ADMIN_", port + 1))},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    told: list[str] = []

    def is_told() -> bool:
        told[:] = re.findall(r"^curl .*/12345$", log.read_text(), re.MULTILINE)
        return bool(told)

    try:
        until(is_told, process)
        yield process, told[0]
    finally:
        if process.poll() is None:
            stop(process)
        assert "Traceback" not in log.read_text()


def ask(line: str) -> tuple[str, dict[str, object]]:
    """What the `curl` line answers: its status and its JSON."""
    command = ["sh", "-c", f"{line} -s -w '\\n%{{http_code}}'"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=WAIT_SECONDS_MAX)
    answer, status = done.stdout.decode().rsplit("\n", 1)
    return status, json.loads(answer)


def test_the_demo_prints_a_request_that_works_again_and_again(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        keys = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with demo(tmp_path, port) as (process, line):
                status, profile = ask(line)
                assert status == "200"
                assert profile["profile_id"] == "12345"
                assert "Jane" in json.dumps(profile)
                assert port < int(re.findall(r":(\d+)/", line)[0]) < port + 20
                metrics = re.findall(r"metrics on (http://\S+)", (tmp_path / "demo.log").read_text())[0]
                assert "edgeprofile_profiles{" in urllib.request.urlopen(metrics, timeout=10).read().decode()
                keys.append(line.split("'")[1])
                home = tmp_path / "shop" / "var" / "edgeprofile" / "shop"
                until(lambda: "outcome=watching" in (tmp_path / "demo.log").read_text(), process)
                assert locks.watcher(home) is not None
                assert stop(process, number) in (0, 130)
                assert locks.watcher(home) is None
        assert len(set(keys)) == 2


def test_a_demo_that_only_makes_the_shop_leaves_what_can_be_loaded(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    made = workshop.run("demo", "--make", "--dir", "shop", "--profiles", "20")
    assert made.status == 0, made.err
    assert "20 customers" in made.out
    assert not (tmp_path / "shop" / "var").exists()
    assert workshop.run("load", "--config", "shop/edgeprofile.toml").status == 0


def test_a_demo_on_a_port_that_is_taken_ends_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = Workshop(tmp_path).run(
            "demo", "--dir", "shop", "--profiles", "20", "--port", str(taken.getsockname()[1])
        )
    assert ended.status in (1, 2)
    assert "Traceback" not in ended.err
    assert "curl" not in ended.out
    assert len([line for line in ended.complaints if line.startswith("edgeprofile: ")]) == 1
