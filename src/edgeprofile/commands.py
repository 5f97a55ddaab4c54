"""What each command of the command line does, with its arguments read; it returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path

from edgeprofile import keys, locks, logs, outcomes, reader, snapshot, status
from edgeprofile.errors import EdgeprofileError, ModelError, UsageError
from edgeprofile.kinds import DURATION_UNITS_S
from edgeprofile.settings import Server, Settings, load

Arguments = argparse.Namespace


def complain(error: EdgeprofileError, about: str = "") -> None:
    """Says what is wrong, a line for each thing, and what to do."""
    prefix = f"edgeprofile: {about}: " if about else "edgeprofile: "
    for line in error.problems if isinstance(error, ModelError) else [str(error)]:
        print(f"{prefix}{line}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)


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
    if arguments.make:
        print(f"made {arguments.profiles:,} customers in {arguments.dir}: the settings are {file}")
        return 0
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

        logs.configure(settings.log)
        watch(settings, names, partial(status.say_refresh, settings.log.format))
        return 0
    return _load_once(settings, names, force=arguments.force)


def _load_once(settings: Settings, names: list[str], *, force: bool) -> int:
    from edgeprofile.loader.process import interruptible
    from edgeprofile.loader.refresh import refresh
    from edgeprofile.priority import be_gentle

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
    from edgeprofile.loader.process import interruptible
    from edgeprofile.objectstore import Store
    from edgeprofile.priority import be_gentle, leave_a_processor
    from edgeprofile.replicas import Copied, fetch, send

    if arguments.watch and arguments.force:
        raise UsageError("--force is for one copy that somebody looks at, not for --watch")
    settings, interval_s = _settings(arguments), _seconds("--interval", arguments.interval)
    store = Store(arguments.to or arguments.source, make=arguments.to is not None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    be_gentle()
    if arguments.watch:
        leave_a_processor()
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
    # Imported here: of all commands, only this one, `serve` and `config check` need cryptography.
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
    from edgeprofile import tls
    from edgeprofile.loader.refresh import describe

    settings = _settings(arguments)
    tls.read(settings)
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
