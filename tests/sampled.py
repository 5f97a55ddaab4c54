"""The sample shop, served with every surface on: what the docs show answers of, and what is probed."""

from __future__ import annotations

from service import Service

from edgeprofile import demo, settings

CUSTOMERS = 20


def sampled(service: Service, server: str = "", more: str = "") -> Service:
    """Makes a service that is not started that of the sample shop. `server` has lines of that table, `more` others."""
    service.file = demo.make_shop(service.folder / "shop", CUSTOMERS)
    with service.file.open("a") as file:
        file.write(f"[server]\nport = {service.port}\nadmin_port = 0\n{server}\n{more}\n")
    service.settings = settings.load(service.file, {})
    service.load()
    return service
