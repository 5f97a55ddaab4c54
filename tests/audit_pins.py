"""Asks whether a fault is known of any package that deploy/ pins; a script of its own, which `make audit` runs.

    python tests/audit_pins.py PATH_OF_PIP_AUDIT

What PyPI's service cannot tell, OSV is asked. pip-audit passes where nobody has answered it: so every package has to
have been looked up, and exit status 0 means that none has a known fault. 1: some have. 2: nobody could be asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parent.parent / "deploy"
PINS = [DEPLOY / "requirements.txt", DEPLOY / "build-requirements.txt"]
SERVICES = ("pypi", "osv")
TIMEOUT_S = 15


def ask(program: str, service: str) -> list[dict[str, Any]]:
    """What a service says of each package: `vulns`, or a `skip_reason`. Nothing where it cannot be reached."""
    # The pins are whole, so pip need not be asked what they bring with them.
    options = [
        "--disable-pip",
        "--progress-spinner=off",
        f"--timeout={TIMEOUT_S}",
        "--format=json",
        f"--vulnerability-service={service}",
    ]
    files = [word for pins in PINS for word in ("--requirement", str(pins))]
    done = subprocess.run([program, *options, *files], capture_output=True, text=True, check=False)
    if not done.stdout:
        print(
            f"{service} cannot be asked: {(done.stderr.strip() or 'without a word').splitlines()[-1]}", file=sys.stderr
        )
        return []
    dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return dependencies


def main(program: str) -> int:
    for service in SERVICES:
        found = ask(program, service)
        faults = [(each, fault) for each in found for fault in each.get("vulns", ())]
        for each, fault in faults:
            mended = ", ".join(fault["fix_versions"]) or "no version yet"
            print(f"{each['name']} {each['version']}: {fault['id']}, mended in {mended}")
        if faults:
            return 1
        unknown = [each["name"] for each in found if "skip_reason" in each]
        if found and not unknown:
            print(f"{service} knows of no fault of the {len(found)} packages that are pinned")
            return 0
        if found:
            print(f"{service} knows nothing of {len(unknown)} of {len(found)} packages", file=sys.stderr)
    print("nothing is known of the packages: run this where PyPI's or OSV's service can be reached", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
