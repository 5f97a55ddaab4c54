"""`edgeprofile demo`: a sample shop of any size, loaded, served and kept fresh, with a request to try it by."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

from edgeprofile import keys
from edgeprofile.errors import UsageError
from edgeprofile.loader.source import run_script
from edgeprofile.settings import Settings

COMMAND = (sys.executable, "-P", "-m", "edgeprofile")
WORKSPACE = "shop"
# The customer whom the sample always has.
PROFILE_ID = "12345"
PROFILES_MAX = 50_000_000
READY_SECONDS_MAX = 30
KEY_SECONDS = 7 * 86_400


def make_shop(folder: Path, profiles: int) -> Path:
    """Makes the sample's warehouse and settings in `folder`, and returns the settings file.

    What is there already, of the same size, is used again. Raises UsageError for a folder of something else.
    """
    if not 1 <= profiles <= PROFILES_MAX:
        raise UsageError(f"--profiles takes a number from 1 to {PROFILES_MAX}")
    settings, warehouse, size = folder / "edgeprofile.toml", folder / "shop.duckdb", folder / ".profiles"
    if folder.exists() and any(folder.iterdir()) and not size.exists():
        raise UsageError(f"{folder} holds something else than a demo", hint="name another folder by --dir")
    sample = files("edgeprofile.sample")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("edgeprofile.toml", "profiles.sql", "events.sql"):
        (folder / name).write_bytes((sample / name).read_bytes())
    # A warehouse that was made before there were events in it is made anew.
    wanted = f"{profiles} with events"
    if size.exists() and size.read_text() == wanted and warehouse.exists():
        return settings
    size.write_text("unfinished")
    building = folder / "building.duckdb"
    for old in (building, warehouse):
        old.unlink(missing_ok=True)
    run_script(building, (sample / "warehouse.sql").read_text(encoding="utf-8"), {"profiles": profiles})
    building.rename(warehouse)
    size.write_text(wanted)
    return settings


def load_shop(file: Path) -> int:
    """Runs `edgeprofile load` as a process of its own, as an operator would; returns its exit status."""
    return subprocess.run([*COMMAND, "load", "--config", str(file), "--force"], check=False).returncode


def fresh_key(data_dir: Path) -> str:
    """A key for this run of the demo, which ends by itself; those of other runs, which may go on, stay good."""
    expires_at = int(time.time()) + KEY_SECONDS
    return keys.create(data_dir, WORKSPACE, name="demo", scopes=keys.SCOPES, expires_at=expires_at)[0]


def serve_and_announce(settings: Settings, port: int, admin_port: int, key: str) -> int:
    """Runs the server and the loader's watcher, each as a process of its own, as an operator would, and prints a
    request that works once the server is ready. Waits for the server's end, and returns its exit status.

    Another demo may be watching the same folder already; then this one's watcher says so and ends.
    """
    host = settings.server.host
    ports = {"EDGEPROFILE_SERVER__PORT": str(port), "EDGEPROFILE_SERVER__ADMIN_PORT": str(admin_port)}
    config = ("--config", str(settings.file))
    server = subprocess.Popen([*COMMAND, "serve", *config], env=os.environ | ports)
    watcher = subprocess.Popen([*COMMAND, "load", "--watch", *config])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: server.terminate())
    try:
        if _is_ready(server, host, port):
            where = f" How it fares: http://{settings.server.admin_host}:{admin_port}/console" if admin_port else ""
            print(f"\nServing; Ctrl-C ends it.{where}\nAsk, in another terminal, who customer {PROFILE_ID} is:\n")
            print(f"curl -H 'Authorization: Bearer {key}' http://{host}:{port}/v1/profiles/id/{PROFILE_ID}", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        # The terminal has sent it to the others too.
        server.terminate()
        server.wait()
        return 0
    finally:
        watcher.terminate()
        watcher.wait()


def _is_ready(server: subprocess.Popen[bytes], host: str, port: int) -> bool:
    """Asks until the server is ready; gives up when it has ended, or after half a minute."""
    give_up = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < give_up and server.poll() is None:
        connection = http.client.HTTPConnection(host, port, timeout=1)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return True
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    return False
