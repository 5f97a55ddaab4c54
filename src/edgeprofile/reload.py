"""What of changed settings a running service takes over, when SIGHUP tells it to: all but what its sockets and files
hang on.
"""

from __future__ import annotations

import logging

from msgspec import structs

from edgeprofile.errors import SettingsError
from edgeprofile.settings import Settings, load

FIXED = ("host", "port", "workers", "admin_host", "admin_port")

log = logging.getLogger("edgeprofile")


def reread(old: Settings) -> Settings:
    """The settings as they are now. Those that only a restart can change stay as they were, and are logged.

    Raises SettingsError.
    """
    new = load(old.file)
    # A workspace's place among them is that of its counter in the workers' shared file.
    if list(new.workspaces)[: len(old.workspaces)] != list(old.workspaces):
        raise SettingsError(f"{old.file}: to remove or rename a workspace, or to move it forward, needs a restart")
    kept = {name: getattr(old.server, name) for name in FIXED if getattr(old.server, name) != getattr(new.server, name)}
    changed = [f"server.{name}" for name in kept] + ["data_dir"] * (old.data_dir != new.data_dir)
    if changed:
        log.warning("%s: needs a restart to change: %s", old.file, ", ".join(changed))
    return structs.replace(new, data_dir=old.data_dir, server=structs.replace(new.server, **kept))
