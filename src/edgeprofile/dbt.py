"""What a dbt project already says of a model, as that of a workspace: which column is what to a profile.

Nothing of dbt is imported. Its manifest.json has, for each model, the columns with types, descriptions, constraints
and `meta`; which column is the id comes from that, or from the tests. Of `meta`, only the key `edgeprofile` is read:
`{role: …, normalize: lower, unique: false}` of a column, `{workspace: …, refresh: …}` of the model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from edgeprofile.errors import ModelError, UsageError
from edgeprofile.kinds import Duration, Lower, Name, Switch
from edgeprofile.tables import Fault, described, read_struct

Read = TypeVar("Read", bound=Struct)

# 10 is dbt 1.6, 11 is 1.7, 12 everything since; Fusion called its first ones 20, and then 12 as well.
VERSIONS = (10, 11, 12, 20)
FILE_BYTES_MAX = 512 * 1024 * 1024
BOOLEANS = ("boolean", "bool")
UPDATED_AT = "updated_at"

ROLES = "id, identifier, audience, metric, updated_at or attribute"
Role = Literal["id", "identifier", "audience", "metric", "updated_at", "attribute"]


class Constraint(Struct, frozen=True):
    """A constraint of a column, or of the model's `columns`."""

    type: str
    columns: list[str] | None = None


class Config(Struct, frozen=True):
    """What dbt calls config: newer versions keep `meta` here. A test's `where` leaves rows out of it."""

    meta: dict[str, Any] | None = None
    where: str | None = None


class Column(Struct, frozen=True):
    """A column, as far as the project describes it."""

    name: str
    description: str | None = None
    data_type: str | None = None
    meta: dict[str, Any] | None = None
    config: Config | None = None
    constraints: list[Constraint] | None = None
    quote: bool | None = None


class TestMetadata(Struct, frozen=True):
    """Which generic test a test is."""

    name: str
    namespace: str | None = None


class Node(Struct, frozen=True):
    """A model, a test, or one of the other kinds, of which little is read."""

    unique_id: str
    name: str
    resource_type: str
    package_name: str
    description: str | None = None
    relation_name: str | None = None
    database: str | None = None
    schema: str | None = None
    columns: dict[str, Column] = {}
    meta: dict[str, Any] | None = None
    config: Config | None = None
    constraints: list[Constraint] | None = None
    group: str | None = None
    version: str | int | float | None = None
    latest_version: str | int | float | None = None
    attached_node: str | None = None
    column_name: str | None = None
    test_metadata: TestMetadata | None = None


class Group(Struct, frozen=True):
    """A group of models, which has an owner."""

    name: str
    owner: dict[str, Any] = {}


class Metadata(Struct, frozen=True):
    """What wrote the manifest, and for which warehouse."""

    dbt_schema_version: str
    adapter_type: str | None = None
    dbt_version: str = "unknown"
    project_name: str | None = None


class Manifest(Struct, frozen=True):
    """target/manifest.json."""

    metadata: Metadata
    nodes: dict[str, Node]
    groups: dict[str, Group] = {}


class ColumnMeta(Struct, frozen=True):
    """What `meta.edgeprofile` may say of a column."""

    role: Annotated[Role, Meta(extra={"expected": ROLES})] | None = None
    normalize: Lower | None = None
    unique: Switch = True


class ModelMeta(Struct, frozen=True):
    """What `meta.edgeprofile` may say of a model."""

    workspace: Name | None = None
    refresh: Duration | None = None


class Described(NamedTuple):
    """A column and what it is to a profile."""

    column: Column
    role: Role
    meta: ColumnMeta


class Workspace(NamedTuple):
    """A model as a workspace: `columns` in the manifest's order, one of them the id and at most one the time."""

    name: str
    refresh: str
    manifest: Manifest
    model: Node
    columns: list[Described]

    def of(self, role: Role) -> list[Described]:
        return [each for each in self.columns if each.role == role]


def read_manifest(file: Path) -> Manifest:
    """A manifest. Raises UsageError where the file is none, or one of a version that this build does not know."""
    hint = "dbt writes it: run `dbt parse`, and name target/manifest.json"
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise UsageError(f"{file} has over {FILE_BYTES_MAX:,} bytes, which no manifest of dbt's has", hint=hint)
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint=hint) from None
    try:
        # The version first: in another one, anything else may look otherwise.
        metadata = msgspec.json.decode(content, type=dict[str, msgspec.Raw])["metadata"]
        schema = msgspec.json.decode(metadata, type=Metadata).dbt_schema_version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        raise UsageError(f"{file} is not a manifest of dbt's", hint=hint) from None
    version = re.search(r"/manifest/v([0-9]{1,4})(\.json|/|$)", schema)
    if version is None:
        raise UsageError(f"{file} is another artifact of dbt's than its manifest", hint=hint)
    if int(version[1]) not in VERSIONS:
        known = ", ".join(f"v{number}" for number in VERSIONS)
        raise UsageError(f"{file} is a manifest of version v{version[1]}; this build reads {known} (dbt 1.6 and later)")
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        where = re.search(r"at `\$([^`]*)`", str(error))
        raise UsageError(f"{file} is damaged{f' at {where[1]}' if where else ''}", hint=hint) from None


def select(manifest: Manifest, wanted: str) -> Node:
    """The model of that name or unique_id; of a model with versions, the latest. Raises UsageError."""
    models = {node.unique_id: node for node in manifest.nodes.values() if node.resource_type == "model"}
    if wanted in models:
        return models[wanted]
    found = [node for node in models.values() if node.name == wanted]
    latest = [node for node in found if node.version == node.latest_version]
    if len(latest) == 1:
        return latest[0]
    if found:
        ids = ", ".join(sorted(node.unique_id for node in found))
        raise UsageError(f"there are {len(found)} models called {wanted}: {ids}", hint="select one by that id")
    names = sorted({node.name for node in models.values()})
    near = difflib.get_close_matches(wanted, names, 3) or names[:3]
    advice = f"; there are {len(names)}, such as {', '.join(near)}" if near else ", nor any other"
    raise UsageError(f"the manifest has no model {wanted}{advice}")


def describe(manifest: Manifest, model: Node, workspace: str | None = None) -> Workspace:
    """What each column is, by its `meta`, its type and its tests. Raises ModelError with a line a problem."""
    if workspace is not None:
        try:
            msgspec.convert(workspace, Name)
        except msgspec.ValidationError:
            raise UsageError(f"--workspace takes {described(Name)}") from None
    problems: list[str] = []
    if model.relation_name is None:
        problems.append(f"model {model.name} has no table or view: materialize it as one")
    if not model.columns:
        problems.append(f"model {model.name} has no columns in the manifest: list them in the project's YAML")
    columns = list(_roles(model, problems))
    ids = [each.column.name for each in columns if each.role == "id"]
    if not ids:
        ids = _tested_ids(manifest, model, columns)
        columns = [each._replace(role="id") if each.column.name in ids else each for each in columns]
    if not problems and not ids:
        problems.append(
            f"model {model.name} does not say which column is the id: give one column the tests unique and not_null, "
            "a primary_key constraint, or meta: {edgeprofile: {role: id}}"
        )
    if len(ids) > 1:
        problems.append(f"more than one column may be the id ({', '.join(ids)}): give one the role id, in its meta")
    times = [each.column.name for each in columns if each.role == "updated_at"]
    if len(times) > 1:
        problems.append(f"more than one column has the role updated_at ({', '.join(times)}): leave one")
    meta = _meta(ModelMeta, model, f"model {model.name}", problems)
    if problems:
        raise ModelError(problems)
    name = workspace or meta.workspace or _workspace_name(model.name)
    return Workspace(name, meta.refresh or "5m", manifest, model, columns)


def _roles(model: Node, problems: list[str]) -> Iterator[Described]:
    for column in model.columns.values():
        if not column.name:
            problems.append(f"model {model.name} has a column without a name")
        meta = _meta(ColumnMeta, column, f"column {column.name}", problems)
        role = meta.role
        if role is None and (column.data_type or "").lower() in BOOLEANS:
            role = "audience"
        elif role is None and column.name == UPDATED_AT and re.match(r"(?i)timestamp|date|\Z", column.data_type or ""):
            role = "updated_at"
        if role not in ("id", "identifier") and (meta.normalize or not meta.unique):
            problems.append(f"column {column.name}: meta.edgeprofile: only an identifier has normalize or unique")
        elif role == "id" and meta != ColumnMeta(role="id"):
            problems.append(f"column {column.name}: meta.edgeprofile: the id is unique, and compared exactly")
        yield Described(column, role or "attribute", meta)


def _meta(kind: type[Read], node: Node | Column, what: str, problems: list[str]) -> Read:
    """The key `edgeprofile` of a column's or a model's meta."""
    try:
        read: Read = read_struct(kind, all_meta(node).get("edgeprofile", {}), ("meta", "edgeprofile"), {})
    except Fault as fault:
        problems.append(f"{what}: {'.'.join(map(str, fault.key))}: {fault}")
        return kind()
    return read


def all_meta(node: Node | Column) -> dict[str, Any]:
    """All that is in its meta, wherever its version of dbt keeps that."""
    kept = None if node.config is None else node.config.meta
    return (kept or {}) | (node.meta or {})


def _tested_ids(manifest: Manifest, model: Node, known: list[Described]) -> list[str]:
    """Of the columns whose meta gives no role, those that are a primary key alone; else those that are both unique
    and never null."""
    columns = [each.column for each in known if each.meta.role is None]
    facts = {column.name: {each.type for each in column.constraints or ()} for column in columns}
    for constraint in model.constraints or ():
        if constraint.columns and len(constraint.columns) == 1:
            facts.get(constraint.columns[0], set()).add(constraint.type)
    for test in manifest.nodes.values():
        # One with a `where` says nothing of the other rows; one with a namespace is a package's, not dbt's own.
        narrowed = test.config is not None and test.config.where is not None
        if test.attached_node == model.unique_id and test.test_metadata and not narrowed:
            name = (test.column_name or "").strip('"`')  # dbt quotes it where its column is to be
            if test.test_metadata.namespace is None:
                facts.get(name, set()).add(test.test_metadata.name)
    keys = [name for name, said in facts.items() if "primary_key" in said]
    return keys or [name for name, said in facts.items() if {"unique", "not_null"} <= said]


def _workspace_name(model: str) -> str:
    """A model's name as that of a workspace, which is also a folder's."""
    return re.sub(r"[^a-z0-9_-]", "_", model.lower()).lstrip("_-")[:63] or "profiles"
