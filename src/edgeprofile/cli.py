"""The command line. Exit status: 0 done, 1 failed, 2 misused; errors are one line on standard error, and a hint."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeprofile import commands, keys
from edgeprofile.commands import Arguments
from edgeprofile.errors import EdgeprofileError
from edgeprofile.settings import FILE

DEFAULT_URL = "http://127.0.0.1:8000/v1/profiles"


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point: ends the process with the command's exit status."""
    arguments = parser().parse_args(argv)
    run: Callable[[Arguments], int] = arguments.run
    try:
        sys.exit(run(arguments))
    except EdgeprofileError as error:
        commands.complain(error)
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


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="edgeprofile", description="Serve customer profiles from a data warehouse over HTTP, at the edge."
    )
    top.add_argument("--version", action=_Version)
    added = top.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings (default: $EDGEPROFILE_CONFIG, or edgeprofile.toml)"
    )

    command = added.add_parser("demo", help="make a sample shop, load it, serve it, and print a request that works")
    command.add_argument("--profiles", type=int, default=5_000, metavar="N", help="customers (default: 5000)")
    command.add_argument(
        "--port", type=_port, metavar="P", help="port to serve on (default: 8000, or the next free one)"
    )
    command.add_argument("--dir", type=Path, default=Path("demo"), help="where to keep it (default: demo)")
    command.add_argument("--make", action="store_true", help="make the shop, and neither load nor serve it")
    command.set_defaults(run=commands.run_demo)

    command = added.add_parser("init", help="write a workspace's settings from a model of a dbt project")
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
    command.set_defaults(run=commands.run_init)

    command = added.add_parser("load", parents=[common], help="run the model and publish what it gives")
    command.add_argument("--workspace", metavar="W", help="only this workspace (default: all)")
    command.add_argument("--watch", action="store_true", help="do so by each workspace's cadence, until SIGTERM")
    command.add_argument("--force", action="store_true", help="publish even an empty, shrunk or unchanged result")
    command.set_defaults(run=commands.run_load)

    command = added.add_parser(
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
    command.set_defaults(run=commands.run_replicate)

    command = added.add_parser("serve", parents=[common], help="serve until SIGTERM, then drain")
    command.set_defaults(run=commands.run_serve)

    command = added.add_parser("status", parents=[common], help="say what each workspace serves, and how old it is")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=commands.run_status)

    _keys_parser(added.add_parser("keys", help="create, list and revoke API keys, rotate signing keys"), common)
    _snapshots_parser(added.add_parser("snapshots", help="list, verify and roll back snapshots"), common)
    _erased_parser(added.add_parser("erased", help="list and restore erased profiles"), common)
    config = added.add_parser("config", help="check the settings").add_subparsers(required=True, metavar="COMMAND")
    command = config.add_parser("check", parents=[common], help="read the settings, plan the model, name every problem")
    command.set_defaults(run=commands.run_config_check)
    return top


class _Version(argparse.Action):
    """Prints the version, which is read from the package's metadata only then: that takes as long as all the rest."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show program's version number and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"edgeprofile {version('edgeprofile')}")
        parser.exit()


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
    create.set_defaults(run=commands.run_keys_create)
    listed = actions.add_parser("list", parents=[common], help="all keys, without their secrets")
    listed.add_argument("--workspace", metavar="W", help="only this workspace's")
    listed.add_argument("--json", action="store_true", help="for programs")
    listed.set_defaults(run=commands.run_keys_list)
    revoke = actions.add_parser("revoke", parents=[common], help="refuse a key from now on, within a second everywhere")
    revoke.add_argument("public_id", metavar="PUBLIC_ID", help="the 12 characters behind sk_live_")
    revoke.add_argument("--workspace", metavar="W", help="only if the key is this workspace's")
    revoke.set_defaults(run=commands.run_keys_revoke)
    rotate = actions.add_parser(
        "rotate-signing", parents=[common], help="sign access tokens by a new key; those that were given out stay good"
    )
    rotate.add_argument("--drop-old", action="store_true", help="end those at once: for a key that leaked")
    rotate.set_defaults(run=commands.run_keys_rotate_signing)


def _snapshots_parser(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(required=True, metavar="COMMAND")
    for name, run, what in (
        ("list", commands.run_snapshots_list, "what is published, the newest first"),
        ("verify", commands.run_snapshots_verify, "read every byte, record, identifier and event of what is published"),
        ("rollback", commands.run_snapshots_rollback, "serve the snapshot before the current one"),
    ):
        action = actions.add_parser(name, parents=[common], help=what)
        action.add_argument("--workspace", required=True, metavar="W")
        action.set_defaults(run=run)


def _erased_parser(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(required=True, metavar="COMMAND")
    for name, run, what in (
        ("list", commands.run_erased_list, "which profiles are erased, by hashes of their ids"),
        (
            "restore",
            commands.run_erased_restore,
            "let erased profiles come back with the next load",
        ),
    ):
        action = actions.add_parser(name, parents=[common], help=what)
        action.add_argument("--workspace", required=True, metavar="W")
        action.add_argument("--id", metavar="ID", help="only the profile of this primary id")
        action.set_defaults(run=run)
