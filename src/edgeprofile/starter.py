"""The file that `edgeprofile init` writes, and the exposure that it prints: a dbt model's workspace as TOML and YAML.

Names, types and descriptions are somebody else's words: whatever is in them, the text stays what it is meant to be.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from edgeprofile.dbt import Column, Described, Workspace, all_meta
from edgeprofile.errors import UsageError

COMMENT_CHARS_MAX = 300
LINE_CHARS_MAX = 116
# What no editor shows as it is: control characters, ends of lines, what turns the direction of writing.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]+")


def settings_text(made: Workspace) -> str:
    """A settings file with this workspace."""
    model, metadata = made.model, made.manifest.metadata
    (key,) = made.of("id")
    lines = [
        *_comment(f"From the dbt model {model.name}, by `edgeprofile init` (dbt {metadata.dbt_version})."),
        *_comment(model.description or ""),
        'data_dir = "var/edgeprofile"',
        "",
        f"[workspaces.{made.name}]",
        f"refresh = {toml_text(made.refresh)}",
        "",
        f"[workspaces.{made.name}.source]",
        *_comment(
            "Each ${NAME} is a variable of the environment, so that no credentials are in this file. In a URL, all "
            "but letters, digits and -._~ are written as % and two digits."
        ),
        f"url = {toml_text(_url(made))}",
        "",
        f"[workspaces.{made.name}.profiles]",
        f"sql = {_toml_lines(_sql(made))}",
        *_comment(_facts(key.column)),
        f"id = {toml_text(key.column.name)}",
    ]
    for updated in made.of("updated_at"):
        lines += [*_comment(_facts(updated.column)), f"updated_at = {toml_text(updated.column.name)}"]
    lines += _list("identifiers", made.of("identifier"))
    lines += _list("audiences", made.of("audience"))
    lines += _list("metrics", made.of("metric"))
    if attributes := made.of("attribute"):
        lines += ["# Every column that is named nowhere is an attribute:"]
        for each in attributes:
            lines += _comment(f"{each.column.name}: {_facts(each.column)}", "#   ")
    return "\n".join(lines) + "\n"


def _list(key: str, found: list[Described]) -> Iterator[str]:
    if not found:
        return
    yield f"{key} = ["
    for column, _, meta in found:
        yield from _comment(_facts(column), "    # ")
        rest = ("" if meta.unique else ", unique = false") + (', normalize = "lower"' if meta.normalize else "")
        name = toml_text(column.name)
        yield f"    {{ column = {name}{rest} }}," if rest else f"    {name},"
    yield "]"


def _sql(made: Workspace) -> str:
    adapter = made.manifest.metadata.adapter_type or ""
    mark = "`" if adapter in ("bigquery", "databricks", "spark") else '"'
    fold = {"snowflake": str.upper, "postgres": str.lower, "redshift": str.lower}.get(adapter, str)
    chosen = []
    for column, _, _ in made.columns:
        # What dbt leaves unquoted has the name in the warehouse that this makes of it, and in an answer its own.
        folds = not column.quote and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", column.name)
        name, stored = (
            mark + text.replace(mark, mark * 2) + mark
            for text in (column.name, fold(column.name) if folds else column.name)
        )
        chosen.append(stored if stored == name else f"{stored} AS {name}")
    # Closed by a semicolon: SQL that ends in .sql would be the name of a file.
    return "SELECT\n    " + ",\n    ".join(chosen) + f"\nFROM {made.model.relation_name};"


def _url(made: Workspace) -> str:
    login = "${PGUSER}:${PGPASSWORD}@${PGHOST}"
    account = "${SNOWFLAKE_USER}:${SNOWFLAKE_PASSWORD}@${SNOWFLAKE_ACCOUNT}"
    database, schema = (quote(name or "", safe="") for name in (made.model.database, made.model.schema))
    return {
        "duckdb": "duckdb:///${DUCKDB_FILE}",
        "postgres": f"postgresql://{login}:5432/{database}",
        "snowflake": f"snowflake://{account}/{database}/{schema}?warehouse=${{SNOWFLAKE_WAREHOUSE}}",
        "bigquery": f"bigquery://{database}/{schema}",
    }.get(made.manifest.metadata.adapter_type or "", "${WAREHOUSE_URL}")


def toml_text(text: str) -> str:
    """Text as TOML: JSON's escapes are TOML's too, but for one character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_lines(text: str) -> str:
    """Text of several lines; quotation marks stand for themselves but where three would end it."""
    lines = [toml_text(line)[1:-1] for line in text.split("\n")]
    lines = [line if '\\"\\"\\"' in line else line.replace('\\"', '"') for line in lines]
    return '"""\n' + "\n".join(lines) + '\n"""'


def _facts(column: Column) -> str:
    """What is known of a column, for a comment."""
    return ", ".join(filter(None, [column.data_type, column.description])) or "of unknown type"


def _said(text: str) -> str:
    """Somebody's words on one line, and not too many."""
    words = " ".join(UNPRINTABLE.sub(" ", text).split())
    return words if len(words) <= COMMENT_CHARS_MAX else words[: COMMENT_CHARS_MAX - 1] + "…"


def _comment(text: str, mark: str = "# ") -> list[str]:
    return [
        mark + line
        for line in textwrap.wrap(_said(text), LINE_CHARS_MAX, break_long_words=False, break_on_hyphens=False)
    ]


# --- the exposure --------------------------------------------------------------------------------------------------


def exposure_text(made: Workspace, url: str) -> str:
    """YAML that tells the dbt project who depends on the model. JSON's strings are YAML's too."""
    model, project = made.model, made.manifest.metadata.project_name
    names = [model.name] if project in (None, model.package_name) else [model.package_name, model.name]
    arguments = ["'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in names]
    if model.version != model.latest_version:
        arguments.append(f"v={model.version!r}")
    values = {
        "name": re.sub(r"\W", "_", f"edgeprofile_{made.name}", flags=re.ASCII),
        "label": f"edgeprofile: {made.name}",
        "type": "application",
        "url": url,
        "description": f"Profiles that edgeprofile serves over HTTP from {model.name}.",
    }
    lines = [f"{key}: {_yaml_text(value)}" for key, value in values.items()]
    lines += ["owner:", *(f"  {key}: {_yaml_text(value)}" for key, value in _owner(made).items())]
    lines += ["depends_on:", f"  - {_yaml_text('ref(' + ', '.join(arguments) + ')')}"]
    return "exposures:\n  - " + "\n    ".join(lines) + "\n"


def _owner(made: Workspace) -> dict[str, str]:
    """The owner of the model's group, or the model's meta's; else the project."""
    model = made.model
    group = next((each for each in made.manifest.groups.values() if each.name == model.group), None)
    meta = all_meta(model).get("owner")
    found = group.owner if group else {"name": meta} if isinstance(meta, str) else meta
    known = {key: found.get(key) for key in ("name", "email")} if isinstance(found, dict) else {}
    owner = {key: _said(value) for key, value in known.items() if isinstance(value, str) and value.strip()}
    return owner or {"name": model.package_name}


def _yaml_text(text: str) -> str:
    return json.dumps(UNPRINTABLE.sub(" ", text), ensure_ascii=False)


def write(file: Path, text: str, *, force: bool) -> None:
    """Writes a settings file at once or not at all. Raises UsageError where there is one, unless by `force`."""
    if os.path.lexists(file) and not force:
        raise UsageError(
            f"{file} is there already",
            hint="--force replaces it; --output - only prints, for a workspace to be added to it by hand",
        )
    temporary = file.with_name(f"{file.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
