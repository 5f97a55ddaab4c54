"""The command line. Exit status: 0 done, 1 failed, 2 misused; errors are one line on standard error, and a hint."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from edgeprofile import keys, locks, outcomes, reader, snapshot, status
from edgeprofile.errors import EdgeprofileError, ModelError, UsageError
from edgeprofile.settings import DURATION_UNITS_S, FILE, Server, Settings, load

DEFAULT_URL = "http://127.0.0.1:8000/v1/profiles"

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point: ends the process with the command's exit status."""
    arguments = parser().parse_args(argv)
    run: Callable[[Arguments], int] = arguments.run
    try:
        sys.exit(run(arguments))
    except EdgeprofileError as error:
        complain(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("edgeprofile: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        print(f"edgeprofile: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def complain(error: EdgeprofileError, about: str = "") -> None:
    """Says what is wrong, a line for each thing, and what to do."""
    prefix = f"edgeprofile: {about}: " if about else "edgeprofile: "
    for line in error.problems if isinstance(error, ModelError) else [str(error)]:
        print(f"{prefix}{line}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="edgeprofile", description="Serve customer profiles from a data warehouse over HTTP, at the edge."
    )
    top.add_argument("--version", action="version", version=f"edgeprofile {version('edgeprofile')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings (default: $EDGEPROFILE_CONFIG, or edgeprofile.toml)"
    )

    command = commands.add_parser("demo", help="make a sample shop, load it, serve it, and print a request that works")
    command.add_argument("--profiles", type=int, default=5_000, metavar="N", help="customers (default: 5000)")
    command.add_argument(
        "--port", type=_port, metavar="P", help="port to serve on (default: 8000, or the next free one)"
    )
    command.add_argument("--dir", type=Path, default=Path("demo"), help="where to keep it (default: demo)")
    command.set_defaults(run=run_demo)

    command = commands.add_parser("init", help="write a workspace's settings from a model of a dbt project")
    command.add_argument(
        "--dbt", type=Path, required=True, metavar="MANIFEST", help="the project's target/manifest.json"
    )
    command.add_argument("--select", required=True, metavar="MODEL", help="the model's name, or its unique_id")
    command.add_argument("--workspace", metavar="W", help="what to call the workspace (default: as the model)")
    command.add_argument(
        "--output", type=Path, default=Path(FILE), metavar="FILE", help=f"where to; - prints it (default: {FILE})"
    )
    command.add_argument("--force", action="store_true", help="replace the file if there is one")
    command.add_argument("--url", default=DEFAULT_URL, help=f"the service's, for the exposure (default: {DEFAULT_URL})")
    command.set_defaults(run=run_init)

    command = commands.add_parser("load", parents=[common], help="run the model and publish what it gives")
    command.add_argument("--workspace", metavar="W", help="only this workspace (default: all)")
    command.add_argument("--watch", action="store_true", help="do so by each workspace's cadence, until SIGTERM")
    command.add_argument("--force", action="store_true", help="publish even an empty, shrunk or unchanged result")
    command.set_defaults(run=run_load)

    command = commands.add_parser(
        "replicate", parents=[common], help="copy snapshots to other machines by way of an object store"
    )
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", metavar="URL", help="send what is published here (s3://…, gs://…, az://…, file:///…)")
    way.add_argument("--from", dest="source", metavar="URL", help="publish here what was sent there")
    command.add_argument("--workspace", metavar="W", help="only this workspace (default: all)")
    command.add_argument("--watch", action="store_true", help="do so again and again, until SIGTERM")
    command.add_argument(
        "--interval", default="30s", metavar="DURATION", help="how often to look, for --watch (default: 30s)"
    )
    command.add_argument(
        "--force", action="store_true", help="copy what is there already, and over what was loaded here"
    )
    command.set_defaults(run=run_replicate)

    command = commands.add_parser("serve", parents=[common], help="serve until SIGTERM, then drain")
    command.set_defaults(run=run_serve)

    command = commands.add_parser("status", parents=[common], help="say what each workspace serves, and how old it is")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=run_status)

    _keys_parser(commands.add_parser("keys", help="create, list and revoke API keys, rotate signing keys"), common)
    _snapshots_parser(commands.add_parser("snapshots", help="list, verify and roll back snapshots"), common)
    _erased_parser(commands.add_parser("erased", help="list and restore erased profiles"), common)
    config = commands.add_parser("config", help="check the settings").add_subparsers(required=True, metavar="COMMAND")
    command = config.add_parser("check", parents=[common], help="read the settings, plan the model, name every problem")
    command.set_defaults(run=run_config_check)
    return top


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return port


def _keys_parser(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(required=True, metavar="COMMAND")
    create = actions.add_parser(
        "create", parents=[common], help="mint a key; its secret is printed once, alone on a line"
    )
    create.add_argument("--workspace", required=True, metavar="W", help="the workspace that the key opens")
    create.add_argument("--name", default="", metavar="N", help="who has it, for the list")
    create.add_argument("--scope", action="append", choices=keys.SCOPES, help="may be repeated (default: read)")
    create.add_argument("--rate", type=float, metavar="R", help="requests a second, sustained (default: limits.rate)")
    create.add_argument("--burst-rate", type=float, metavar="B", help="requests a second, at most")
    create.add_argument("--burst-seconds", type=float, metavar="S", help="how long the burst may last after a rest")
    create.add_argument("--expires", metavar="DURATION", help="such as 90d (default: never)")
    create.set_defaults(run=run_keys_create)
    listed = actions.add_parser("list", parents=[common], help="all keys, without their secrets")
    listed.add_argument("--workspace", metavar="W", help="only this workspace's")
    listed.add_argument("--json", action="store_true", help="for programs")
    listed.set_defaults(run=run_keys_list)
    revoke = actions.add_parser("revoke", parents=[common], help="refuse a key from now on, within a second everywhere")
    revoke.add_argument("public_id", metavar="PUBLIC_ID", help="the 12 characters behind sk_live_")
    revoke.add_argument("--workspace", metavar="W", help="only if the key is this workspace's")
    revoke.set_defaults(run=run_keys_revoke)
    rotate = actions.add_parser(
        "rotate-signing", parents=[common], help="sign access tokens by a new key; those that were given out stay good"
    )
    rotate.add_argument("--drop-old", action="store_true", help="end those at once: for a key that leaked")
    rotate.set_defaults(run=run_keys_rotate_signing)


def _snapshots_parser(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(required=True, metavar="COMMAND")
    for name, run, what in (
        ("list", run_snapshots_list, "what is published, the newest first"),
        ("verify", run_snapshots_verify, "read every byte, record, identifier and event of what is published"),
        ("rollback", run_snapshots_rollback, "serve the snapshot before the current one"),
    ):
        action = actions.add_parser(name, parents=[common], help=what)
        action.add_argument("--workspace", required=True, metavar="W")
        action.set_defaults(run=run)


def _erased_parser(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(required=True, metavar="COMMAND")
    for name, run, what in (
        ("list", run_erased_list, "which profiles are erased, by hashes of their ids"),
        (
            "restore",
            run_erased_restore,
            "let erased profiles come back with the next load",
        ),
    ):
        action = actions.add_parser(name, parents=[common], help=what)
        action.add_argument("--workspace", required=True, metavar="W")
        action.add_argument("--id", metavar="ID", help="only the profile of this primary id")
        action.set_defaults(run=run)


def _settings(arguments: Arguments) -> Settings:
    settings = load(arguments.config)
    if not settings.workspaces:
        raise UsageError(f"{settings.file.name} has no workspace", hint="add a [workspaces.NAME] table")
    workspace = getattr(arguments, "workspace", None)
    if workspace is not None and workspace not in settings.workspaces:
        raise UsageError(f"there is no workspace {workspace}; there are: {', '.join(settings.workspaces)}")
    return settings


def _home(settings: Settings, arguments: Arguments) -> Path:
    return snapshot.home(settings.data_dir, arguments.workspace)


# --- the commands --------------------------------------------------------------------------------------------------


def run_demo(arguments: Arguments) -> int:
    # Imported here, like all that loads, because a server and the small commands have no use for DuckDB.
    from edgeprofile import demo
    from edgeprofile.server import free_port, is_free

    # Asked before the minutes that a large shop takes to make.
    if arguments.port is not None and not is_free(Server().host, arguments.port):
        raise UsageError(f"port {arguments.port} is in use", hint="name a free one by --port, or leave it out")
    with status.progress(sys.stderr) as progress:
        progress("sample warehouse", 0, 0)
        file = demo.make_shop(arguments.dir, arguments.profiles)
    settings = load(file)
    server = settings.server
    port = arguments.port or free_port(server.host, server.port)
    admin_port = server.admin_port and free_port(server.admin_host, server.admin_port, besides=port)
    failed = demo.load_shop(file)
    return failed or demo.serve_and_announce(settings, port, admin_port, demo.fresh_key(settings.data_dir))


def run_init(arguments: Arguments) -> int:
    from edgeprofile import dbt, starter

    manifest = dbt.read_manifest(arguments.dbt)
    made = dbt.describe(manifest, dbt.select(manifest, arguments.select), arguments.workspace)
    text, exposure = starter.settings_text(made), starter.exposure_text(made, arguments.url)
    if arguments.output == Path("-"):
        print(text, end="")
        print(exposure, end="", file=sys.stderr)
        return 0
    starter.write(arguments.output, text, force=arguments.force)
    print(f"try it: edgeprofile config check --config {arguments.output}", file=sys.stderr)
    print("for the dbt project's YAML, so that it knows who depends on the model:", file=sys.stderr)
    print(exposure, end="")
    return 0


def run_load(arguments: Arguments) -> int:
    if arguments.watch and arguments.force:
        raise UsageError("--force is for one load that somebody looks at, not for --watch")
    settings = _settings(arguments)
    names = [arguments.workspace] if arguments.workspace else list(settings.workspaces)
    if arguments.watch:
        from edgeprofile.loader.watch import watch

        logging.basicConfig(format="%(asctime)s %(levelname)s [%(process)d] %(message)s")
        watch(settings, names, status.say_refresh)
        return 0
    return _load_once(settings, names, force=arguments.force)


def _load_once(settings: Settings, names: list[str], *, force: bool) -> int:
    from edgeprofile.loader.process import be_gentle, interruptible
    from edgeprofile.loader.refresh import refresh

    be_gentle()
    worst = 0
    for name in names:
        try:
            with interruptible() as at:
                with status.progress(sys.stderr) as progress:
                    outcome = refresh(settings, name, force=force, progress=progress, at=at)
                print(status.outcome_line(name, outcome))
        except EdgeprofileError as error:
            complain(error, name)
            worst = max(worst, error.exit_status)
    return worst


def run_replicate(arguments: Arguments) -> int:
    from edgeprofile.loader.process import be_gentle, interruptible
    from edgeprofile.objectstore import Store
    from edgeprofile.replicas import Copied, fetch, send

    if arguments.watch and arguments.force:
        raise UsageError("--force is for one copy that somebody looks at, not for --watch")
    settings, interval_s = _settings(arguments), _seconds("--interval", arguments.interval)
    store = Store(arguments.to or arguments.source, make=arguments.to is not None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    be_gentle()
    said: dict[str, str] = {}

    def copy(name: str) -> Copied:
        with interruptible() as at, status.progress(sys.stderr) as progress:
            if arguments.to:
                return send(store, settings, name, force=arguments.force, progress=progress)
            return fetch(store, settings, name, force=arguments.force, progress=progress, at=at)

    def copy_all() -> int:
        """Copies each workspace once. Of what goes on and on, --watch says only that it has begun."""
        worst = 0
        for name in [arguments.workspace] if arguments.workspace else settings.workspaces:
            try:
                copied = copy(name)
                said.pop(name, None)
                if copied.outcome != "unchanged" or not arguments.watch:
                    print(copied.line(name), flush=True)
            except EdgeprofileError as error:
                worst = max(worst, error.exit_status)
                if said.get(name) != str(error):
                    complain(error, name)
                said[name] = str(error)
        return worst

    if not arguments.watch:
        return copy_all()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            copy_all()
            time.sleep(interval_s)
    return 0


def run_serve(arguments: Arguments) -> int:
    from edgeprofile.server import serve

    serve(_settings(arguments))
    return 0


def run_status(arguments: Arguments) -> int:
    settings = _settings(arguments)
    found = [status.of_workspace(settings, name) for name in settings.workspaces]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        status.print_status(found)
    return 1 if any(each["problem"] for each in found) else 0


def run_keys_create(arguments: Arguments) -> int:
    settings = _settings(arguments)
    secret, key = keys.create(
        settings.data_dir,
        arguments.workspace,
        name=arguments.name,
        scopes=tuple(arguments.scope or ("read",)),
        rate=arguments.rate,
        burst_rate=arguments.burst_rate,
        burst_seconds=arguments.burst_seconds,
        expires_at=_expiry(arguments.expires),
    )
    print(secret)
    print(f"key {key.public_id} of workspace {key.workspace}: keep it, it is not shown again", file=sys.stderr)
    return 0


def _expiry(duration: str | None) -> int | None:
    return None if duration is None else int(time.time()) + _seconds("--expires", duration)


def _seconds(option: str, duration: str) -> int:
    parts = re.fullmatch(r"([1-9][0-9]{0,5})([dhms])", duration)
    if parts is None:
        raise UsageError(f"{option} takes a duration such as 90d, 12h or 30m")
    return int(parts[1]) * DURATION_UNITS_S[parts[2]]


def run_keys_list(arguments: Arguments) -> int:
    settings = _settings(arguments)
    found = keys.listing(settings.data_dir, arguments.workspace)
    if arguments.json:
        print(json.dumps([status.key_facts(key) for key in found], indent=2))
    else:
        status.print_keys(found)
    return 0


def run_keys_revoke(arguments: Arguments) -> int:
    settings = _settings(arguments)
    key = keys.revoke(settings.data_dir, arguments.public_id, arguments.workspace)
    print(f"key {key.public_id} of workspace {key.workspace} is revoked")
    return 0


def run_keys_rotate_signing(arguments: Arguments) -> int:
    # Imported here: of all commands, only this one and `serve` need cryptography.
    from edgeprofile import signing

    *old, new = signing.rotate(_settings(arguments).data_dir, drop_old=arguments.drop_old)
    print(f"key {new.kid} signs from now on; {len(old)} older ones go on verifying what they signed")
    return 0


def run_snapshots_list(arguments: Arguments) -> int:
    status.print_snapshots(_home(_settings(arguments), arguments))
    return 0


def run_snapshots_verify(arguments: Arguments) -> int:
    home = _home(_settings(arguments), arguments)
    snapshot.current(home)
    damaged = 0
    for name in snapshot.names(home):
        try:
            manifest = reader.verify(snapshot.folder(home, name))
            events = "" if manifest.events_schema is None else f", {manifest.events} events"
            print(f"{name}: whole, {manifest.profiles} profiles{events}")
        except EdgeprofileError as error:
            damaged += 1
            complain(error)
    return 1 if damaged else 0


def run_snapshots_rollback(arguments: Arguments) -> int:
    from edgeprofile.loader.following import follow

    home = _home(_settings(arguments), arguments)
    attempt = outcomes.Attempt.begin()
    with locks.loading(home):
        manifest = snapshot.rollback(home, partial(follow, home))
        with contextlib.suppress(OSError):
            outcomes.note(home, attempt.ended(outcomes.ROLLED_BACK, snapshot=manifest.name, profiles=manifest.profiles))
    when = dt.datetime.fromtimestamp(manifest.finished_at, dt.UTC)
    print(f"serving {manifest.name} again, {manifest.profiles} profiles as of {when:%Y-%m-%d %H:%M:%S} UTC")
    print("the next edgeprofile load will publish what the model gives then: mend it first", file=sys.stderr)
    print("load --watch leaves this workspace alone until that", file=sys.stderr)
    return 0


def run_erased_list(arguments: Arguments) -> int:
    from edgeprofile.loader.following import erasures

    found = erasures(_home(_settings(arguments), arguments), arguments.id)
    status.print_erased([(key, erasure.time_us / 1e6) for key, erasure in found])
    return 0


def run_erased_restore(arguments: Arguments) -> int:
    from edgeprofile.loader.following import restore

    count = restore(_home(_settings(arguments), arguments), arguments.id)
    print(f"restored {count} profiles: what the model has of them comes back with the next load")
    return 0 if count else 1


def run_config_check(arguments: Arguments) -> int:
    from edgeprofile.loader.refresh import describe

    settings = _settings(arguments)
    worst = 0
    for name in settings.workspaces:
        try:
            made = describe(settings, name)
        except EdgeprofileError as error:
            complain(error, name)
            worst = max(worst, error.exit_status)
            continue
        schema = made.plan.schema
        spaces = ", ".join(space.name for space in schema.namespaces)
        params = f", events of {len(made.events_plan.schema.fields)} parameters" if made.events_plan else ""
        print(f"{name}: good, {len(schema.fields)} fields, found by {spaces}{params}")
    return worst
