"""Docs that cannot rot: the commands, settings, codes, files and dependencies in them are those that there are."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from described import sessions
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from workshop import Workshop

from edgeprofile import cli, errors, logs, openapi, settings
from edgeprofile._limiter import SharedMap
from edgeprofile._metrics import Recorder
from edgeprofile.exposition import Exposition
from edgeprofile.metrics import Surface, slots

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*/README.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Suffixes of files that are ours; others that the docs name are files of a running system.
OURS = "py|pyx|pxd|pyi|md|sql"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def command_lines(page: str) -> Iterator[str]:
    """What the page has its reader type: the lines of ```sh blocks, and those behind a `$` in ```console blocks."""
    for language, block in FENCE.findall(page):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        elif language == "sh":
            yield from (line for line in lines if line.strip())


def invocations(line: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of `program` in a line of shell."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    for is_operator, group in itertools.groupby(words, lambda word: set(word) <= set("();<>|&")):
        arguments = list(group)
        while arguments and re.match(r"\w+=|sudo$|exec$", arguments[0]):
            arguments.pop(0)
        if not is_operator and arguments and arguments[0].rsplit("/", 1)[-1] == program:
            yield arguments[1:]


def documented(program: str) -> list[tuple[str, list[str]]]:
    """(page, arguments) of every call of `program` in all pages."""
    return [
        (page.name, arguments)
        for page in PAGES
        for line in command_lines(read(page))
        for arguments in invocations(line, program)
    ]


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Every command of a parser with the options that it takes: ("edgeprofile keys list", ["--config", …])."""
    options: list[str] = []
    is_leaf = True
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            is_leaf = False
            for name, inner in action.choices.items():
                yield from commands(inner, (*words, name))
        options += [option for option in action.option_strings if option.startswith("--") and option != "--help"]
    if is_leaf:
        yield " ".join(words), options


def named_commands(page: str) -> set[str]:
    """The words that follow `edgeprofile` anywhere in a page; of alternatives behind a bar, each."""
    found = set()
    for text in re.findall(r"\bedgeprofile ([a-z][^\n`]*)", page.replace("\\|", "|")):
        words = re.match(r"[a-z|]+(?:[ -][a-z|]+)*", text)
        assert words is not None
        found |= {" ".join(choice) for choice in itertools.product(*(w.split("|") for w in words[0].split(" ")))}
    return found


def table(page: str, first: str) -> list[list[str]]:
    """The rows of the table whose first column is called `first`, cell by cell."""
    rows = re.search(rf"^\| *{re.escape(first)} *\|.*\n\|[-| ]+\n((?:\|.*\n?)+)", page, re.MULTILINE)
    assert rows is not None, f"there is no table that begins with {first!r}"
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows[1].splitlines()]


COMMANDS = dict(commands(cli.parser()))
ALL_PAGES = "\n".join(map(read, PAGES))


def test_calls_are_found_in_lines_of_shell() -> None:
    line = "export KEY=$(A=1 .venv/bin/edgeprofile keys create --name 'a b') && edgeprofile status | edgeprofile # no"
    assert list(invocations(line, "edgeprofile")) == [["keys", "create", "--name", "a b"], ["status"], []]


def test_the_parser_has_the_commands_of_the_design() -> None:
    assert {"demo", "load", "serve", "keys revoke", "snapshots verify", "status", "config check"} <= set(COMMANDS)


def test_the_docs_show_calls() -> None:
    assert documented("edgeprofile")
    assert documented("make")


@pytest.mark.parametrize(("page", "arguments"), documented("edgeprofile"), ids=lambda value: str(value))
def test_a_documented_call_is_one_that_the_command_line_takes(page: str, arguments: list[str]) -> None:
    if "--help" in arguments or "--version" in arguments:
        with pytest.raises(SystemExit, match="0"):
            cli.parser().parse_args(arguments)
    else:
        cli.parser().parse_args(arguments)
        options = {option for options in COMMANDS.values() for option in options}
        # argparse takes abbreviations, which the docs should not teach.
        assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= options


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_and_all_its_options_are_documented(command: str) -> None:
    assert any(f"{name} ".startswith(f"{command} ") for name in named_commands(ALL_PAGES))
    undocumented = [option for option in COMMANDS[command] if not re.search(rf"(?<!\S|\w){option}\b(?!-)", spaced())]
    assert undocumented == []


def spaced() -> str:
    """All pages with everything that can stand around an option made a space."""
    return re.sub(r"[`\[\]()|,;:'\"]", " ", ALL_PAGES)


def test_options_in_running_text_exist() -> None:
    known = {option for options in COMMANDS.values() for option in options} | {"--help", "--version"}
    for span in re.findall(r"`(?:edgeprofile )?[^`\n]*`", FENCE.sub("", ALL_PAGES)):
        if span.startswith(("`edgeprofile ", "`--")):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)) <= known, span


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.MULTILINE))
    called = {argument for _, arguments in documented("make") for argument in arguments if "=" not in argument}
    called |= set(re.findall(r"`make ([a-z]+)", ALL_PAGES))
    assert {"run", "test"} <= called <= targets


def test_the_settings_page_has_every_key_as_it_is() -> None:
    rows = table(read(ROOT / "docs" / "settings.md"), "key")
    expected = [[f"`{key}`", kind, f"`{default}`"] for key, kind, default in settings.reference()]
    as_text = "\n".join("| " + " | ".join(row) + " | … |" for row in expected)
    assert [row[:3] for row in rows] == expected, f"docs/settings.md should have these rows:\n{as_text}"
    assert all(len(row) == 4 and row[3] for row in rows), "every key has a word on what it does"


def test_settings_in_the_docs_can_be_read() -> None:
    for language, block in FENCE.findall(ALL_PAGES):
        if language == "toml":
            assert set(tomllib.loads(block)) <= set(settings.Settings.__struct_fields__), block


def test_the_api_page_has_every_error_code_with_its_status() -> None:
    rows = table(read(ROOT / "docs" / "api.md"), "status")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ApiError)]
    expected = {(str(kind.status), f"`{kind.code}`") for kind in kinds}
    assert {(row[0], row[1]) for row in rows} == expected
    assert len(rows) == len(expected)


def test_the_api_page_has_the_examples_of_every_route_as_they_are_described() -> None:
    document = openapi.describe(settings.load(ROOT / "examples" / "shop" / "edgeprofile.toml", {}))
    expected = sessions(msgspec.json.decode(msgspec.json.encode(document)))
    section = read(ROOT / "docs" / "api.md").partition("## Every route by example\n")[2]
    start = section.index("### ")
    assert section[start:] == expected, f"docs/api.md should end with:\n{expected}"


def test_the_operating_page_has_every_metric_with_its_type_and_labels(tmp_path: Path) -> None:
    shop, shared = Workshop(tmp_path), SharedMap(tmp_path / "shared.map")
    shop.model("SELECT unnest([1, NULL]) AS id", rejects_max=1).load()
    Recorder(shared, *slots(Surface.NATIVE)).record(200, 0)
    registry = CollectorRegistry()
    registry.register(Exposition(shop.settings(), shared, started_at=0, workers=1, expires_at=0))
    text = generate_latest(registry).decode()
    labels = {
        re.sub(r"_(bucket|count|sum)$", "", sample.name): sample.labels.keys() - {"le"}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    served = [(name, kind, labels[name]) for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)]
    rows = table(read(ROOT / "docs" / "operating.md"), "metric")
    documented = [(name.strip("`"), kind, set(re.findall(r"`(\w+)`", of))) for name, kind, of, _ in rows]
    assert documented == served


def test_the_operating_page_has_every_field_of_a_log_entry() -> None:
    rows = table(read(ROOT / "docs" / "operating.md"), "field")
    record = logging.LogRecord("other", logging.ERROR, "", 0, "", (), None)
    record.__dict__.update(request_id="r", traceback="t")
    made = set(json.loads(logs.Formatter("json").format(record)))
    assert {row[0].strip("`") for row in rows} == made | set(re.findall(r'"(\w+)":', logs.REQUEST["json"]))


def test_the_tree_of_errors_in_their_docstring_is_the_one_that_is_raised() -> None:
    kinds = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
    ours = {name: kind for name, kind in kinds.items() if issubclass(kind, errors.EdgeprofileError)}
    lines = dict(re.findall(r"^[│├└─ ]*([A-Z]\w+)  +(.*)$", errors.__doc__ or "", re.MULTILINE))
    assert set(lines) == set(ours)
    for name, kind in ours.items():
        if issubclass(kind, errors.ApiError) and kind is not errors.ApiError:
            assert lines[name] == f"{kind.status} {kind.code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_file_that_a_page_names_exists(page: Path) -> None:
    text = read(page)
    prose = FENCE.sub(lambda block: "" if block[1] in {"toml", "sh", "console", "sql", "json"} else block[0], text)
    for name in set(re.findall(rf"(?<![\w./*<>…-])[\w./-]*\w\.(?:{OURS})\b(?!\.\w)", prose)):
        there = [folder / name for folder in (ROOT, page.parent, ROOT / "src" / "edgeprofile")]
        anywhere = [ROOT / "src", ROOT / "ext", ROOT / "examples", ROOT / "tests", ROOT / "loadtest", ROOT / "docs"]
        assert any(path.exists() for path in there) or any(any(top.rglob(name)) for top in anywhere), name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), target


def test_the_architecture_page_names_every_module() -> None:
    page = read(ROOT / "ARCHITECTURE.md")
    modules = [*(ROOT / "src").rglob("*.py"), *(ROOT / "ext").glob("*.p[yx]?")]
    unnamed = [path.name for path in modules if not path.name.startswith("__") and path.name not in page]
    assert unnamed == []


def test_every_test_that_the_security_page_names_exists_and_every_risk_has_one() -> None:
    rows = table(read(ROOT / "docs" / "security.md"), "risk")
    assert [row[0].split(":")[0] for row in rows] == [f"API{number}" for number in range(1, 11)]
    for risk, _, shown in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown)
        assert len(named) == shown.count("`") // 2 > 0, risk
        for file, test in named:
            assert re.search(rf"^def {test}\(", read(ROOT / "tests" / file), re.MULTILINE), f"{file}::{test}"


def test_every_dependency_earns_its_place_in_a_line_of_the_architecture_page() -> None:
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    requirements = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}
    lines = read(ROOT / "ARCHITECTURE.md").lower()
    assert {name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", lines)} == set()
