"""Has Schemathesis ask a service all that its description allows and much that it forbids, with all of its checks.

As a script it makes a sample shop of its own and goes on for as long as it is told: `make probe ARGS="--max-time 600"`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sampled import sampled
from service import UNLIMITED, Service, request

TESTS = Path(__file__).parent
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
# What would only be in the way: a quota that is used up in a second.
MORE = f"[limits]\n{UNLIMITED}\n"
QUOTA = {"EDGEPROFILE_WORKSPACES__SHOP__INSIDER__QUOTA_PER_MINUTE": "1000000"}


def shop(service: Service) -> Service:
    """Serves the sample shop without limits, and its loader."""
    sampled(service, server="ready_delay_seconds = 0", more=MORE)
    service.start(env={**os.environ, **QUOTA})
    service.watch()
    return service


def probe(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Schemathesis against such a service. Its exit status tells whether all is well, its output what is not."""
    key = service.key(scopes=("read", "write"))
    client = key.split("_")[2]
    form = f"grant_type=client_credentials&client_id={client}&client_secret={key}".encode()
    length = ("Content-Length", str(len(form)))
    token = service.ask(request("/oauth/token", None, length, method="POST", body=form)).json()["access_token"]
    command = [
        str(SCHEMATHESIS),
        f"--config-file={TESTS / 'schemathesis.toml'}",
        "run",
        f"http://127.0.0.1:{service.port}/openapi.json",
        "--checks=all",
        "--continue-on-failure",
        "--no-color",
        *arguments,
    ]
    told = {"PROBE_KEY": key, "PROBE_CLIENT": client, "PROBE_TOKEN": token, "SCHEMATHESIS_HOOKS": "probe_hooks"}
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **told, "PYTHONPATH": path}
    # It leaves files of its own where it is run.
    return subprocess.run(
        command,
        check=False,
        text=True,
        env=environment,
        cwd=service.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        served = shop(Service(Path(folder)))
        try:
            done = probe(served, *sys.argv[1:])
            print(done.stdout)
        finally:
            served.stop()
    sys.exit(done.returncode)
