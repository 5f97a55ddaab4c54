"""One refresh in a process of its own, as a watcher starts it: how it ended is all that it prints, as JSON.

What it takes of memory goes with it, and a crash of it is nobody else's. The settings and the models are read anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

import msgspec

from edgeprofile import logs
from edgeprofile.errors import EdgeprofileError, LoaderBusy, SettingsError
from edgeprofile.loader.process import end_with_parent, interruptible
from edgeprofile.loader.refresh import refresh
from edgeprofile.outcomes import BUSY, Attempt, Outcome
from edgeprofile.priority import be_gentle, leave_a_processor
from edgeprofile.settings import Log, load

log = logging.getLogger("edgeprofile")


def main(file: str, workspace: str, parent: str, *begun: str) -> None:
    """Refreshes a workspace of the settings in `file` for the process `parent`. `begun` is its Attempt, if any."""
    end_with_parent(int(parent))
    be_gentle()
    leave_a_processor()
    logs.configure(Log())
    attempt = Attempt(*map(float, begun)) if begun else Attempt.begin()
    outcome: Outcome | None = None
    try:
        with interruptible() as at:
            settings = load(Path(file))
            logs.configure(settings.log)
            if workspace not in settings.workspaces:
                raise SettingsError(f"{file} has no workspace {workspace} any more")
            outcome = refresh(
                settings, workspace, force=False, delta=True, progress=lambda *_: None, at=at, attempt=attempt
            )
    except LoaderBusy as error:
        outcome = attempt.ended(BUSY, message=str(error))
    except (Exception, KeyboardInterrupt) as error:
        outcome = outcome or attempt.failed(error)
        if not isinstance(error, EdgeprofileError | KeyboardInterrupt):
            log.exception("workspace %s: the refresh crashed", workspace)
    # The watcher may be gone; what it would do with this is only to say it.
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), msgspec.json.encode(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
