"""What operators see: the alerts and the dashboard of deploy/, held against what a real service exposes, by promtool's
measure and by a Prometheus that scrapes one.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from authority import Authority
from batches import BATCHED, UPDATE, call, updates
from conftest import PROFILES
from service import HOST, Service, exchange, free_port, many, request, until

from edgeprofile.errors import ModelError

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
RULES, TESTS, CONFIG = (DEPLOY / f"prometheus{name}.yml" for name in ("-rules", "-rules-test", ""))
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
OPERATING = (ROOT / "docs" / "operating.md").read_text()
PANELS = {"row", "stat", "timeseries", "heatmap", "state-timeline", "table"}
JANE = "/v1/profiles/id/12345"
Rule = dict[str, Any]


def read_yaml(path: Path) -> Any:
    return msgspec.yaml.decode(path.read_bytes())


def rules(kind: str) -> dict[str, Rule]:
    """Those of a kind, `alert` or `record`, by name."""
    return {rule[kind]: rule for group in read_yaml(RULES)["groups"] for rule in group["rules"] if kind in rule}


ALERTS, RECORDS = rules("alert"), rules("record")


def queries() -> Iterator[str]:
    """The dashboard's, with what Grafana puts in for its variables."""
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    expressions += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    for expression in expressions:
        chosen = re.sub(r"\$(job|instance|workspace)\b", ".*", expression)
        chosen = chosen.replace("$__rate_interval", "1m").replace("$__interval", "1m")
        assert "$" not in chosen
        yield chosen


def promtool(*arguments: str | Path) -> str:
    """What it says. Fails the test where it finds fault."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- rules -----------------------------------------------------------------------------------------------------------


def test_prometheus_takes_the_rules_and_the_settings() -> None:
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in promtool("check", "rules", RULES)
    promtool("check", "config", CONFIG)


def test_every_alert_fires_when_it_should_and_is_silent_when_it_should_not() -> None:
    promtool("test", "rules", TESTS)
    checks = [check for test in read_yaml(TESTS)["tests"] for check in test["alert_rule_test"]]
    for expected in (True, False):
        checked = {check["alertname"] for check in checks if bool(check.get("exp_alerts")) is expected}
        assert checked == set(ALERTS), f"each is tested where expected is {expected}"


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_and_where_it_stands_what_to_do(name: str) -> None:
    labels, notes = ALERTS[name]["labels"], ALERTS[name]["annotations"]
    assert labels["severity"] in {"critical", "warning"}
    assert notes["summary"]
    assert notes["description"].endswith(".")
    page, _, section = notes["runbook_url"].partition("#")
    assert (ROOT / page).read_text() == OPERATING
    assert section in {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", OPERATING, re.MULTILINE)}


def test_the_operating_page_has_every_alert_with_its_severity_and_what_to_do() -> None:
    rows = re.findall(r"^\| `(Edgeprofile\w+)` \| (\w+) \| (.+?) \| (.+) \|$", OPERATING, re.MULTILINE)
    assert [(name, severity) for name, severity, *_ in rows] == [
        (name, rule["labels"]["severity"]) for name, rule in ALERTS.items()
    ]


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_the_dashboards_panels_lie_beside_each_other_and_have_what_theirs_need() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        where = panel["gridPos"]
        cells = {(where["x"] + x, where["y"] + y) for x in range(where["w"]) for y in range(where["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] in PANELS
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references) > 0
            assert {json.dumps(each["datasource"]) for each in (panel, *panel["targets"])} == {
                json.dumps({"type": "prometheus", "uid": "${datasource}"})
            }


def test_the_dashboard_has_the_variables_that_it_uses() -> None:
    declared = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD["panels"])))
    assert used == set(declared)


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    made = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_bytes(msgspec.yaml.encode({"groups": [{"name": "dashboard", "rules": made}]}))
    assert f"{len(made)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")


# --- a service, and a Prometheus that scrapes it ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that has had requests of every kind: good ones, refused and limited ones, and such as failed."""
    folder, authority = tmp_path_factory.mktemp("monitored"), Authority()
    authority.issue().write(folder, "server")
    tls = 'tls_certificate = "server.pem"\ntls_key = "server.key"\nready_delay_seconds = 0'
    made = Service(folder, {"shop": BATCHED}, server=tls, with_admin=True, context=authority.client())
    made.run_sql(PROFILES.replace("{ids}", "list_append(range(200)::VARCHAR[], NULL)"))
    made.load()
    made.start()
    provoke(made)
    yield made
    made.stop()


def provoke(service: Service) -> None:
    """Has something happen of all that is counted, but for damage: requests, good and bad, and a load that fails."""
    service.run_sql("ALTER TABLE profiles RENAME TO gone")
    with pytest.raises(ModelError):
        service.load()
    service.run_sql("ALTER TABLE gone RENAME TO profiles")
    key = service.key(scopes=("read", "write"))
    limited = service.key(rate=0.001, burst_rate=1, burst_seconds=0)
    asked = [request(JANE, key), request(JANE, limited), request(JANE, limited), request(JANE)]
    asked += [many({"profiles": [{"id": "12345"}]}, key), call(UPDATE, key, updates(1)), request("/livez")]
    assert [service.ask(each).status for each in asked] == [200, 200, 429, 401, 200, 503, 200]


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one that has the rules and the settings of deploy/, but for their hurry and its target."""
    folder, address = tmp_path_factory.mktemp("prometheus"), f"{HOST}:{free_port()}"
    config = read_yaml(CONFIG)
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"{HOST}:{service.admin_port}"]
    (folder / "prometheus.yml").write_bytes(msgspec.yaml.encode(config))
    options = ("--log.level=error", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}")
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", *options]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        yield f"http://{address}"
        process.terminate()
    assert (folder / "log").read_text() == ""


def told(address: str, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus's; None while it does not answer."""
    url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url) as answer:
        return json.load(answer)["data"]
    return None


def test_every_metric_that_is_looked_at_is_one_of_a_service(service: Service) -> None:
    text = exchange(service.admin_port, request("/metrics")).body.decode()
    served = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    asked = " ".join([*queries(), *(rule["expr"] for rule in (*ALERTS.values(), *RECORDS.values()))])
    names = set(re.findall(r"(?<![\w:])edgeprofile_\w+(?![\w:])", asked))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} <= served
    assert set(re.findall(r"\w+:edgeprofile_\w+:\w+", asked)) <= set(RECORDS)


def test_promtool_finds_no_fault_in_what_is_exposed(service: Service) -> None:
    text = exchange(service.admin_port, request("/metrics")).body
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_real_prometheus_has_something_for_every_rule_and_query(service: Service, prometheus: str) -> None:
    def found(query: str) -> Any:
        return (told(prometheus, "query", query=query) or {}).get("result")

    until(lambda: found("up{job='edgeprofile'} == 1"), "it is scraped")
    provoke(service)
    for query in (*RECORDS, *queries()):
        # Of what happens seldom there may be nothing to show.
        seldom = query.removesuffix(" > 0") if "changes(" in query else query
        until(lambda: found(seldom), query)  # noqa: B023


def test_no_rule_fails_and_a_good_service_raises_none_but_what_was_provoked(prometheus: str) -> None:
    def evaluated() -> list[Rule]:
        groups = (told(prometheus, "rules") or {"groups": []})["groups"]
        return [rule for group in groups for rule in group["rules"]]

    until(lambda: evaluated() and all(rule["health"] != "unknown" for rule in evaluated()), "all have been evaluated")
    assert [rule for rule in evaluated() if rule["health"] != "ok"] == []
    raised = {rule["name"] for rule in evaluated() if rule.get("alerts")}
    provoked = {f"Edgeprofile{name}" for name in ("Unwatched", "UpdatesFailing", "CallersLimited", "RefreshFailing")}
    assert raised - provoked <= {"EdgeprofileSlow", "EdgeprofileDown"}, "which depend on the machine, for a moment"
