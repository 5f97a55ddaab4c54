"""Has sslyze look at the service's TLS, by Mozilla's intermediate configuration: `make scan`.

Run as `python tests/scan_tls.py SSLYZE`. sslyze wants an older version of what the service itself wants, and so it is
a program of an environment of its own. Its findings are printed; the exit status is 1 where it complains.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from authority import Authority
from service import Service

TLS = 'tls_certificate = "server.pem"\ntls_key = "server.key"\nready_delay_seconds = 0'
CONFIGURATION = "intermediate"  # which has TLS 1.2


def scan(sslyze: str, folder: Path) -> int:
    authority = Authority()
    authority.issue().write(folder, "server")
    root, _ = authority.root.write(folder, "root")
    service = Service(folder, server=TLS, context=authority.client())
    service.start(ready=503)
    try:
        command = [sslyze, f"--mozilla_config={CONFIGURATION}", f"--certinfo_ca_file={root}"]
        return subprocess.run([*command, f"localhost:{service.port}"], check=False).returncode
    finally:
        service.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(scan(sys.argv[1], Path(folder)))
