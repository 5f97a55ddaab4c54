"""Settings from a dbt project: what its manifest says of a model becomes a file that the settings take."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workshop import Workshop

from edgeprofile import dbt, starter
from edgeprofile.errors import EdgeprofileError, ModelError, UsageError
from edgeprofile.settings import Settings, load

MODEL = "model.shop.customers"
URL = "http://127.0.0.1:8000/v1/profiles"
TABLE = '''CREATE SCHEMA marts;
    CREATE TABLE marts.customers AS SELECT 'c1' AS customer_id, 'Jane@example.com' AS email, '+44' AS phone,
    'Jane' AS "first ""name""", true AS vip, false AS opted_out, 1492.18::DECIMAL(12, 2) AS lifetime_value,
    TIMESTAMP '2025-06-10 12:34:56' AS updated_at'''
COLUMNS: dict[str, dict[str, Any]] = {
    "customer_id": {"data_type": "varchar", "description": "The id.\nNever changes."},
    "email": {"data_type": "varchar", "meta": {"edgeprofile": {"role": "identifier", "normalize": "lower"}}},
    "phone": {"data_type": "varchar", "meta": {"edgeprofile": {"role": "identifier", "unique": False}}},
    'first "name"': {"data_type": "varchar", "description": 'Called "name"\r\n"""\\u0041 by ünï 🙂\x00 people'},
    "vip": {"data_type": "BOOLEAN"},
    "opted_out": {"data_type": "boolean", "meta": {"edgeprofile": {"role": "attribute"}}},
    "lifetime_value": {"data_type": "decimal(12,2)", "meta": {"edgeprofile": {"role": "metric"}}},
    "updated_at": {"data_type": "timestamp"},
}


def column(name: str, said: dict[str, Any], version: int) -> dict[str, Any]:
    """A column as that version has it: the later ones keep its meta in two places, the oldest has no config."""
    meta = said.get("meta", {})
    found = {"name": name, "description": "", "meta": meta, "data_type": None, "constraints": [], "quote": None}
    found |= {"config": {"meta": meta, "tags": []}, "granularity": None, "doc_blocks": []} if version >= 12 else {}
    return found | said


def column_test(name: str, column_name: str, model: str = MODEL, **config: Any) -> dict[str, Any]:
    """A generic test of a column, as dbt's manifest has it."""
    return {
        "test_metadata": {"name": name, "kwargs": {"column_name": column_name}, "namespace": None},
        "name": f"{name}_{column_name}",
        "resource_type": "test",
        "package_name": "shop",
        "unique_id": f"test.shop.{name}_{model}_{column_name}",
        "config": {"enabled": True, "meta": {}, "where": None, **config},
        "columns": {},
        "column_name": column_name,
        "attached_node": model,
    }


def model_node(columns: dict[str, dict[str, Any]], as_of: int = 12, **changes: Any) -> dict[str, Any]:
    return {
        "database": "shop",
        "schema": "marts",
        "name": "customers",
        "resource_type": "model",
        "package_name": "shop",
        "unique_id": MODEL,
        "alias": "customers",
        "config": {"enabled": True, "meta": {}, "materialized": "table"},
        "description": "One row a customer.",
        "columns": {name: column(name, said, as_of) for name, said in columns.items()},
        "meta": {},
        "group": None,
        "relation_name": '"shop"."marts"."customers"',
        "constraints": [],
        "version": None,
        "latest_version": None,
        **changes,
    }


def manifest(*nodes: dict[str, Any], version: int = 12, adapter: str = "duckdb", **changes: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "dbt_schema_version": f"https://schemas.getdbt.com/dbt/manifest/v{version}.json",
            "dbt_version": "1.10.23",
            "project_name": "shop",
            "adapter_type": adapter,
        },
        "nodes": {node["unique_id"]: node for node in nodes},
        "sources": {},
        "groups": {},
        **changes,
    }


TESTS = [column_test("unique", "customer_id"), column_test("not_null", "customer_id")]


def written(folder: Path, document: object) -> Path:
    file = folder / "manifest.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return file


def described(document: dict[str, Any], folder: Path, wanted: str = "customers") -> dbt.Workspace:
    made = dbt.read_manifest(written(folder, document))
    return dbt.describe(made, dbt.select(made, wanted))


def problems(folder: Path, *nodes: dict[str, Any]) -> list[str]:
    with pytest.raises(ModelError) as caught:
        described(manifest(*nodes), folder)
    assert not [line for line in caught.value.problems if "\n" in line]
    return caught.value.problems


# --- what is written -----------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    """A folder with a warehouse that has the model's table, and no settings."""
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute(TABLE)
    return Workshop(tmp_path)


def test_what_init_writes_passes_the_check_loads_and_serves(shop: Workshop) -> None:
    written(shop.folder, manifest(model_node(COLUMNS), *TESTS))
    made = shop.run("init", "--dbt", "manifest.json", "--select", "customers", "--workspace", "shop")
    assert made.status == 0, made.err
    env = {"DUCKDB_FILE": "shop.duckdb"}
    checked = shop.run("config", "check", env=env)
    assert (checked.status, checked.out) == (0, "shop: good, 7 fields, found by customer_id, email, phone\n")
    absolute = {"DUCKDB_FILE": str(shop.folder / "shop.duckdb"), "EDGEPROFILE_DATA_DIR": "var"}
    assert shop.run("load", env=absolute).status == 0
    assert shop.profiles() == {
        "c1": {
            "customer_id": "c1",
            "email": "Jane@example.com",
            "phone": "+44",
            'first "name"': "Jane",
            "opted_out": False,
            "lifetime_value": 1492.18,
            "_audiences": {"vip": True},
            "_updated_at": "2025-06-10T12:34:56Z",
        }
    }
    assert shop.found("email", "JANE@example.com") == ["c1"]


def test_every_version_of_the_manifest_gives_the_same_settings(tmp_path: Path) -> None:
    made = {
        starter.settings_text(described(manifest(model_node(COLUMNS, version), *TESTS, version=version), tmp_path))
        for version in dbt.VERSIONS
    }
    assert len(made) == 1


def test_each_column_brings_its_type_and_its_description_on_lines_of_its_own(tmp_path: Path) -> None:
    text = starter.settings_text(described(manifest(model_node(COLUMNS), *TESTS), tmp_path))
    lines = text.splitlines()
    assert lines[1] == "# One row a customer."
    assert lines[lines.index('id = "customer_id"') - 1] == "# varchar, The id. Never changes."
    assert '    { column = "email", normalize = "lower" },' in lines
    assert '    { column = "phone", unique = false },' in lines
    assert lines[lines.index("audiences = [") :][1:3] == ["    # BOOLEAN", '    "vip",']
    assert r'#   first "name": varchar, Called "name" """\u0041 by ünï 🙂 people' in lines
    assert "#   opted_out: boolean" in lines


def test_a_long_description_is_wrapped_and_cut(tmp_path: Path) -> None:
    columns = {"customer_id": {"description": "word " * 1000}}
    text = starter.settings_text(described(manifest(model_node(columns), *TESTS), tmp_path))
    assert "word…" in text.replace(" …", "…")
    assert max(map(len, text.splitlines())) <= 120
    assert len(text) < 2000


@pytest.mark.parametrize(
    ("adapter", "url", "columns"),
    [
        ("duckdb", "duckdb:///${DUCKDB_FILE}", '"Id", "order"'),
        ("postgres", "postgresql://${PGUSER}:${PGPASSWORD}@${PGHOST}:5432/my%20db", '"id" AS "Id", "order"'),
        (
            "snowflake",
            "snowflake://${SNOWFLAKE_USER}:${SNOWFLAKE_PASSWORD}@${SNOWFLAKE_ACCOUNT}/my%20db/marts"
            "?warehouse=${SNOWFLAKE_WAREHOUSE}",
            '"ID" AS "Id", "order"',
        ),
        ("bigquery", "bigquery://my%20db/marts", "`Id`, `order`"),
        ("sqlserver", "${WAREHOUSE_URL}", '"Id", "order"'),
    ],
)
def test_the_source_and_the_names_are_those_of_the_projects_warehouse(
    tmp_path: Path, adapter: str, url: str, columns: str
) -> None:
    tests = [column_test("unique", "Id"), column_test("not_null", "Id")]
    node = model_node({"Id": {}, "order": {"quote": True}}, database="my db", relation_name="my.relation")
    text = starter.settings_text(described(manifest(node, *tests, adapter=adapter), tmp_path))
    (tmp_path / "edgeprofile.toml").write_text(text, encoding="utf-8")
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", url), "duckdb://" if url.startswith("$") else "x")
    assert load(tmp_path / "edgeprofile.toml", environ).workspaces["customers"].profiles.id == "Id"
    workspace = tomllib.loads(text)["workspaces"]["customers"]
    assert workspace["source"] == {"url": url}
    assert " ".join(workspace["profiles"]["sql"].split()) == f"SELECT {columns} FROM my.relation;"


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.lists(NAMES, min_size=1, max_size=4, unique_by=str.casefold),
    NAMES,
    NAMES,
    st.sampled_from(["identifier", "audience", "metric"]),
)
def test_whatever_names_and_descriptions_hold_the_file_says_what_the_manifest_says(
    names: list[str], description: str, relation: str, role: dbt.Role
) -> None:
    columns = {
        name: dbt.Column(name=name, description=description, data_type=description, quote=True) for name in names
    }
    node = dbt.Node(
        unique_id=MODEL,
        name=description,
        resource_type="model",
        package_name=relation,
        description=description,
        relation_name=relation,
        columns=columns,
    )
    found = dbt.Manifest(dbt.Metadata("v12", "postgres", description), {MODEL: node})
    roles: list[dbt.Role] = ["id", *[role] * (len(names) - 1)]
    described = [
        dbt.Described(column, role, dbt.ColumnMeta()) for column, role in zip(columns.values(), roles, strict=True)
    ]
    made = dbt.Workspace("shop", "5m", found, node, described)
    document = tomllib.loads(starter.settings_text(made))
    assert set(document) == {"data_dir", "workspaces"}
    profiles = document["workspaces"]["shop"]["profiles"]
    assert profiles.pop("sql").endswith(f"\nFROM {relation};\n")
    assert [profiles.pop("id"), *profiles.get(f"{role}s", names[1:])] == names
    assert set(profiles) <= {f"{role}s"}
    lines = starter.exposure_text(made, description).splitlines()
    values = [json.loads(value) for line in lines for value in re.findall(r'^[ -]*(?:[a-z_]+: )?(".*")$', line)]
    assert (len(lines), len(values)) == (10, 7)
    assert values[0] == "edgeprofile_shop"


# --- which column is what ------------------------------------------------------------------------------------------


PLAIN: dict[str, dict[str, Any]] = {"a": {}, "b": {}}


@pytest.mark.parametrize(
    "nodes",
    [
        [model_node({"a": {"meta": {"edgeprofile": {"role": "id"}}}, "b": {}}), *TESTS],
        [model_node({"a": {"config": {"meta": {"edgeprofile": {"role": "id"}}}}, "b": {}})],
        [model_node({"a": {"constraints": [{"type": "primary_key"}]}, "b": {}}), column_test("unique", "b")],
        [model_node(PLAIN, constraints=[{"type": "primary_key", "columns": ["a"]}])],
        [model_node({"a": {"constraints": [{"type": "unique"}, {"type": "not_null"}]}, "b": {}})],
        [model_node(PLAIN), column_test("unique", '"a"'), column_test("not_null", "a"), column_test("unique", "b")],
        [
            model_node({"a": {}, "b": {"meta": {"edgeprofile": {"role": "identifier"}}}}),
            *(column_test(name, of) for name in ("unique", "not_null") for of in ("a", "b")),
        ],
    ],
    ids=["meta", "config", "primary key", "of the model", "constraints", "tests", "not another"],
)
def test_the_id_is_what_meta_constraints_or_tests_say_it_is(tmp_path: Path, nodes: list[dict[str, Any]]) -> None:
    (key,) = described(manifest(*nodes), tmp_path).of("id")
    assert key.column.name == "a"


@pytest.mark.parametrize(
    "nodes",
    [
        [model_node(PLAIN), column_test("unique", "a")],
        [model_node(PLAIN), column_test("unique", "a"), column_test("not_null", "a", where="b > 1")],
        [model_node(PLAIN), column_test("unique", "a"), column_test("not_null", "a", model="model.shop.other")],
        [model_node(PLAIN, constraints=[{"type": "primary_key", "columns": ["a", "b"]}])],
        [model_node(PLAIN, constraints=[{"type": "primary_key", "columns": ["gone"]}])],
    ],
    ids=["null", "where", "another model's", "both", "not a column"],
)
def test_without_an_id_the_line_says_what_to_add(tmp_path: Path, nodes: list[dict[str, Any]]) -> None:
    assert problems(tmp_path, *nodes) == [
        "model customers does not say which column is the id: give one column the tests unique and not_null, "
        "a primary_key constraint, or meta: {edgeprofile: {role: id}}"
    ]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({}, "model customers has no columns in the manifest: list them in the project's YAML"),
        (
            {"a": {"meta": {"edgeprofile": {"role": "id"}}}, "b": {"meta": {"edgeprofile": {"role": "id"}}}},
            "more than one column may be the id (a, b): give one the role id, in its meta",
        ),
        (
            {
                "a": {"meta": {"edgeprofile": {"role": "id"}}},
                "updated_at": {},
                "b": {"meta": {"edgeprofile": {"role": "updated_at"}}},
            },
            "more than one column has the role updated_at (updated_at, b): leave one",
        ),
        (
            {"a": {"meta": {"edgeprofile": {"role": "ids"}}}},
            f'column a: meta.edgeprofile.role: expected {dbt.ROLES}, found "ids"',
        ),
        (
            {"a": {"meta": {"edgeprofile": {"rol": "id"}}}},
            'column a: meta.edgeprofile.rol: expected a known key, found "rol"; did you mean role?',
        ),
        ({"a": {"meta": {"edgeprofile": "id"}}}, "column a: meta.edgeprofile: expected a table, found text"),
        (
            {"a": {"meta": {"edgeprofile": {"role": "metric", "normalize": "lower"}}}},
            "column a: meta.edgeprofile: only an identifier has normalize or unique",
        ),
        (
            {"a": {"meta": {"edgeprofile": {"role": "id", "normalize": "lower"}}}},
            "column a: meta.edgeprofile: the id is unique, and compared exactly",
        ),
    ],
)
def test_what_is_wrong_with_a_model_is_a_line(tmp_path: Path, columns: dict[str, dict[str, Any]], line: str) -> None:
    assert problems(tmp_path, model_node(columns)) == [line]


def test_a_model_without_a_table_is_refused(tmp_path: Path) -> None:
    node = model_node({"a": {"meta": {"edgeprofile": {"role": "id"}}}}, relation_name=None)
    assert problems(tmp_path, node) == ["model customers has no table or view: materialize it as one"]


@pytest.mark.parametrize(
    ("name", "kind", "role"),
    [
        ("updated_at", "TIMESTAMP WITH TIME ZONE", "updated_at"),
        ("updated_at", None, "updated_at"),
        ("updated_at", "date", "updated_at"),
        ("updated_at", "varchar", "attribute"),
        ("flag", "Bool", "audience"),
        ("flag", "boolean[]", "attribute"),
        ("flag", None, "attribute"),
    ],
)
def test_a_column_without_a_role_has_that_of_its_name_and_type(
    tmp_path: Path, name: str, kind: str | None, role: str
) -> None:
    node = model_node({"customer_id": {}, name: {"data_type": kind}})
    assert described(manifest(node, *TESTS), tmp_path).columns[1].role == role


def test_the_models_meta_names_the_workspace_and_its_cadence(tmp_path: Path) -> None:
    node = model_node(COLUMNS, meta={"edgeprofile": {"workspace": "shop", "refresh": "1h"}})
    made = described(manifest(node, *TESTS), tmp_path)
    assert (made.name, made.refresh) == ("shop", "1h")
    node = model_node(COLUMNS, config={"meta": {"edgeprofile": {"workspace": "My Shop"}}})
    (line,) = problems(tmp_path, node, *TESTS)
    assert line.startswith("model customers: meta.edgeprofile.workspace: expected a name of up to 63")


@pytest.mark.parametrize(
    ("name", "workspace"),
    [("Dim Customers", "dim_customers"), ("__x", "x"), ("ü", "profiles"), ("c" * 80, "c" * 63), ("c.v2", "c_v2")],
)
def test_a_models_name_becomes_that_of_a_workspace(tmp_path: Path, name: str, workspace: str) -> None:
    made = described(manifest(model_node(COLUMNS, name=name), *TESTS), tmp_path, name)
    assert made.name == workspace
    (tmp_path / "edgeprofile.toml").write_text(starter.settings_text(made), encoding="utf-8")
    settings: Settings = load(tmp_path / "edgeprofile.toml", {"DUCKDB_FILE": "shop.duckdb"})
    assert list(settings.workspaces) == [workspace]


# --- which model ---------------------------------------------------------------------------------------------------


def versions(latest: int) -> list[dict[str, Any]]:
    return [
        model_node(COLUMNS, unique_id=f"{MODEL}.v{number}", version=number, latest_version=latest) for number in (1, 2)
    ]


def test_a_model_is_selected_by_its_name_its_id_or_as_the_latest_of_its_versions(tmp_path: Path) -> None:
    other = model_node(COLUMNS, unique_id="model.crm.customers", package_name="crm")
    found = dbt.read_manifest(written(tmp_path, manifest(model_node(COLUMNS), other)))
    assert dbt.select(found, "model.crm.customers").package_name == "crm"
    with pytest.raises(UsageError, match=r"there are 2 models called customers: model\.crm\.customers, model\.shop"):
        dbt.select(found, "customers")
    found = dbt.read_manifest(written(tmp_path, manifest(*versions(2))))
    assert dbt.select(found, "customers").version == 2
    assert dbt.select(found, f"{MODEL}.v1").version == 1
    found = dbt.read_manifest(written(tmp_path, manifest(*versions(3))))
    with pytest.raises(UsageError, match="there are 2 models called customers"):
        dbt.select(found, "customers")


@pytest.mark.parametrize(
    ("names", "wanted", "line"),
    [
        (["customers", "orders"], "custmers", "the manifest has no model custmers; there are 2, such as customers"),
        (["b", "a"], "nothing", "the manifest has no model nothing; there are 2, such as a, b"),
        ([], "customers", "the manifest has no model customers, nor any other"),
    ],
)
def test_a_model_that_there_is_not_is_a_line_with_the_near_ones(
    tmp_path: Path, names: list[str], wanted: str, line: str
) -> None:
    nodes = [model_node(COLUMNS, name=name, unique_id=f"model.shop.{name}") for name in names]
    found = dbt.read_manifest(written(tmp_path, manifest(*nodes, column_test("unique", "customers"))))
    with pytest.raises(UsageError) as caught:
        dbt.select(found, wanted)
    assert str(caught.value) == line


# --- the exposure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "groups", "ref", "owner"),
    [
        ({}, {}, "ref('customers')", {"name": "shop"}),
        ({"meta": {"owner": "CRM"}}, {}, "ref('customers')", {"name": "CRM"}),
        (
            {"group": "crm", "meta": {"owner": "no"}},
            {"group.shop.crm": {"name": "crm", "owner": {"email": "crm@example.com", "name": "CRM"}}},
            "ref('customers')",
            {"name": "CRM", "email": "crm@example.com"},
        ),
        ({"version": 1, "latest_version": 2}, {}, "ref('customers', v=1)", {"name": "shop"}),
        ({"version": "a", "latest_version": "b"}, {}, "ref('customers', v='a')", {"name": "shop"}),
        ({"package_name": "crm"}, {}, "ref('crm', 'customers')", {"name": "crm"}),
    ],
)
def test_the_exposure_names_owner_model_and_service(
    tmp_path: Path, changes: dict[str, Any], groups: dict[str, Any], ref: str, owner: dict[str, str]
) -> None:
    made = described(manifest(model_node(COLUMNS, **changes), *TESTS, groups=groups), tmp_path, MODEL)
    lines = [
        "exposures:",
        '  - name: "edgeprofile_customers"',
        '    label: "edgeprofile: customers"',
        '    type: "application"',
        f'    url: "{URL}"',
        '    description: "Profiles that edgeprofile serves over HTTP from customers."',
        "    owner:",
        *(f'      {key}: "{value}"' for key, value in owner.items()),
        "    depends_on:",
        f'      - "{ref}"',
    ]
    assert starter.exposure_text(made, URL) == "\n".join(lines) + "\n"


# --- the command ---------------------------------------------------------------------------------------------------


def test_init_prints_the_exposure_and_overwrites_only_by_force(shop: Workshop) -> None:
    written(shop.folder, manifest(model_node(COLUMNS), *TESTS))
    arguments = ["init", "--dbt", "manifest.json", "--select", "customers"]
    first = shop.run(*arguments, "--url", "https://profiles.example/v1/profiles")
    assert first.out.startswith('exposures:\n  - name: "edgeprofile_customers"\n')
    assert "https://profiles.example/v1/profiles" in first.out
    file = shop.folder / "edgeprofile.toml"
    text = file.read_text()
    file.write_text("mine")
    second = shop.run(*arguments)
    assert (second.status, second.out) == (2, "")
    assert second.complaints == ["edgeprofile: edgeprofile.toml is there already"]
    assert file.read_text() == "mine"
    assert shop.run(*arguments, "--force").status == 0
    assert file.read_text() == text
    assert sorted(os.listdir(shop.folder)) == ["edgeprofile.toml", "manifest.json", "shop.duckdb"]
    printed = shop.run(*arguments, "--output", "-")
    assert (printed.status, printed.out) == (0, text)
    assert printed.err.startswith("exposures:\n")
    gone = shop.run(*arguments, "--output", "gone/a.toml")
    assert (gone.status, gone.out, len(gone.complaints)) == (1, "", 1)
    named = shop.run(*arguments, "--workspace", "My Shop", "--force")
    assert (named.status, len(named.complaints)) == (2, 1)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "is not a manifest of dbt's"),
        ("[1, 2]", "is not a manifest of dbt's"),
        ('{"metadata": {}}', "is not a manifest of dbt's"),
        ("[" * 100_000, "is not a manifest of dbt's"),
        ('{"metadata": {"dbt_schema_version": "' + "\udcff", "is not a manifest of dbt's"),
        (
            '{"metadata": {"dbt_schema_version": "https://schemas.getdbt.com/dbt/catalog/v1.json"}}',
            "is another artifact of dbt's than its manifest",
        ),
        (
            json.dumps(manifest(version=9)),
            "is a manifest of version v9; this build reads v10, v11, v12, v20 (dbt 1.6 and later)",
        ),
        (
            json.dumps(manifest(version=13)),
            "is a manifest of version v13; this build reads v10, v11, v12, v20 (dbt 1.6 and later)",
        ),
        (json.dumps(manifest() | {"nodes": [1]}), "is damaged at .nodes"),
        (json.dumps(manifest(model_node({"a": {"name": 3}}))), "is damaged at .nodes[...].columns[...].name"),
    ],
)
def test_a_file_that_is_no_manifest_of_a_known_version_is_a_line(tmp_path: Path, content: str, line: str) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError) as caught:
        dbt.read_manifest(file)
    assert str(caught.value) == f"{file} {line}"


def test_a_manifest_that_is_not_there_or_too_large_is_a_line(tmp_path: Path) -> None:
    for file, line in ((tmp_path / "gone.json", "cannot be read: No such file"), (tmp_path, "cannot be read: Is a")):
        with pytest.raises(UsageError, match=line):
            dbt.read_manifest(file)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as opened:
        opened.truncate(dbt.FILE_BYTES_MAX + 1)
    with pytest.raises(EdgeprofileError, match="has over 536,870,912 bytes"):
        dbt.read_manifest(huge)
