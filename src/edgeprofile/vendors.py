"""The settings of the vendors' APIs, a table each, which turn them on for a workspace."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from edgeprofile.kinds import (
    Audience,
    Column,
    Columns,
    Cost,
    Partner,
    Project,
    Rate,
    Segment,
    Switch,
    Text,
    UpdatesBytes,
)
from edgeprofile.tables import Fault, Key, shown


class Insider(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Insider's user profile API. Their identifiers are found in our namespaces.

    A request costs `base_cost` + `event_type_cost` for each type of event that it asks for, times `user_base_factor`.
    """

    partner: Partner
    identifiers: dict[Text, Column] = {}
    custom_identifiers: dict[Text, Column] = {}
    quota_per_minute: Rate = 1000.0
    base_cost: Cost = 1.0
    event_type_cost: Cost = 0.5
    user_base_factor: Cost = 1.0

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespaces that it names, by the keys that do."""
        return _values("identifiers", self.identifiers) | _values("custom_identifiers", self.custom_identifiers)


class MParticle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """mParticle's Profile API. `mpid` is the namespace of the 64-bit id; `created` and what follows it are columns."""

    org: Segment
    account: Segment
    workspace: Segment
    mpid: Column
    user_identities: dict[Text, Columns] = {}
    device_identities: dict[Text, Columns] = {}
    immutable: tuple[Text, ...] = ()
    created: Column | None = None
    opted_out: Column | None = None
    limit_ad_tracking: Column | None = None
    attribution: Column | None = None
    values_as_text: Switch = True
    audience: Audience = "https://api.mparticle.com"

    def __post_init__(self) -> None:
        if self.org == "resolve":
            raise Fault(("org",), "another name than that in the path of resolve", shown(self.org))
        known = {**self.user_identities, **self.device_identities}
        for kind in self.immutable:
            if not isinstance(known.get(kind), str):
                expected = "types of user_identities or device_identities, of one column each"
                raise Fault(("immutable",), expected, shown(kind))

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespaces that it names, by the keys that do."""
        named: dict[Key, str] = {("mpid",): self.mpid}
        for key in ("user_identities", "device_identities"):
            for kind, columns in getattr(self, key).items():
                one = isinstance(columns, str)
                named |= {(key, kind): columns} if one else {(key, kind, at): each for at, each in enumerate(columns)}
        return named

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the model that it names, by the keys that do."""
        return _named(self, "created", "opted_out", "limit_ad_tracking", "attribution")


class Intilery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Intilery's Profiles API. Its `id_types` are found in our namespaces: without them, `id` and `userId` are the
    primary id, and `email` the namespace of that name.

    `created` and `created_by` are columns that only its metadata has, as `createdTime` and `createdBy`; `source` and
    `received` are parameters of the events. Its limits take the place of [limits] for keys that carry none.
    """

    client: Segment
    account: Segment
    brand: Segment
    id_types: dict[Text, Column] = {}
    rate: Rate = 100.0
    burst: Rate = 500.0
    created: Column | None = None
    created_by: Column | None = None
    source: Column | None = None
    received: Column | None = None

    def __post_init__(self) -> None:
        if self.burst < self.rate:
            raise Fault(("burst",), f"a number of at least its rate ({self.rate:.15g})", f"{self.burst:.15g}")

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespaces that it names, by the keys that do."""
        return _values("id_types", self.id_types)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the model that it names, by the keys that do."""
        return _named(self, "created", "created_by")

    @property
    def params(self) -> dict[str, str]:
        """The parameters of events that it names, by the keys that do."""
        return _named(self, "source", "received")


class Batch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Batch's Profile API. `custom_id` is the namespace of its ids, None for the primary one."""

    project: Project
    custom_id: Column | None = None
    request_bytes_max: UpdatesBytes = 32 * 1024 * 1024

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespace that it names, by the key that does."""
        return {} if self.custom_id is None else {("custom_id",): self.custom_id}


def _named(table: Struct, *keys: str) -> dict[str, str]:
    return {key: column for key in keys if (column := getattr(table, key)) is not None}


def _values(name: str, table: Mapping[str, str]) -> dict[Key, str]:
    return {(name, theirs): ours for theirs, ours in table.items()}
