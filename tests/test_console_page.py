"""The console's page in a real browser: what an operator sees of a service, and can do with a keyboard or a phone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from conftest import PROFILES, MakeService
from selenium.webdriver.common.keys import Keys
from service import DECLARED, Service, request
from workshop import roll_back

from edgeprofile import locks, outcomes

if TYPE_CHECKING:
    from browser import Browser

pytest_plugins = ("browser",)
WINDOWS = {"desktop": (1280, 900), "phone": (390, 844)}
MARKUP = '<img src=x onerror="document.title=1"> ärger 接続'
# Of every element that shows text: its colour and the first ground behind it that can be seen, as they are painted.
CONTRASTS = """
function channels(colour) { return colour.match(/[0-9.]+/g).map(Number); }
function luminance(colour) {
  const [r, g, b] = channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ground(element) {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if ((channels(colour)[3] ?? 1) === 1) return colour;
  }
  return "rgb(255, 255, 255)";
}
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility() || element.closest(".unseen")) continue;
  const style = getComputedStyle(element);
  const colours = [element instanceof SVGElement ? style.fill : style.color, ground(element)];
  const [high, low] = colours.map(luminance).sort((a, b) => b - a);
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio < 4.5) found.push(`${element.tagName} ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return found;
"""


def made(service: Service) -> Service:
    service.run_sql(PROFILES.replace("{ids}", "['a', 'b']"))
    service.load()
    return service


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.admin_port}/console"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A shop that is watched, and a bank that has published nothing; for tests that only look."""
    service = Service(tmp_path_factory.mktemp("page"), {"shop": DECLARED, "bank": DECLARED}, with_admin=True)
    made(service)
    with locks.watching(service.home()):
        yield service.start()
    service.stop()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    """One that a test may change."""
    return made(make_service(with_admin=True)).start()


def is_fine(browser: Browser, service: Service) -> None:
    """Whether nothing was complained of, and nobody else asked for anything."""
    assert browser.complaints() == []
    assert {
        each for each in browser.requested() if not each.startswith(f"http://127.0.0.1:{service.admin_port}/")
    } == set()


def figure(browser: Browser, name: str) -> str:
    """A number of the workspace in full."""
    script = "return [...document.querySelectorAll('.figures div')].find((e) => e.textContent.startsWith(arguments[0]))"
    return str(browser.run(f"{script}?.lastChild.textContent ?? ''", name))


# --- what is shown -------------------------------------------------------------------------------------------------


def test_the_page_shows_a_workspace_as_it_is(browser: Browser, running: Service) -> None:
    browser.open(f"{url(running)}#shop")
    browser.until(lambda: browser.text("#detail h2") == "shop", "the shop is shown")
    assert browser.text("#detail .badge") == "Fresh"
    assert figure(browser, "Profiles") == f"{outcomes.read(running.home()).last[-1].profiles}"
    assert "Next refresh within" in browser.text(".freshness")
    assert browser.text("#verdict") == "bank: Nothing published"
    assert [row.text.split("\n")[0] for row in browser.all("#list li")] == ["bank", "shop"], "the one in need is first"
    assert browser.run("return document.title") == "(1) edgeprofile console"
    assert len(browser.all(".chart svg")) == 3
    is_fine(browser, running)


def test_the_page_follows_loads_failures_and_rollbacks(browser: Browser, service: Service) -> None:
    browser.open(url(service))
    browser.until(lambda: browser.text("#verdict") == "All is well", "it is shown")
    assert browser.text("#detail .badge") == "Nobody watches"
    service.run_sql("INSERT INTO profiles BY NAME SELECT unnest(range(2000))::VARCHAR AS profile_id")
    published = service.load()
    browser.until(lambda: figure(browser, "Profiles") == f"{published.profiles:,}", "the new snapshot is shown")
    with locks.loading(service.home()):
        browser.until(lambda: "Being loaded for" in browser.text(".freshness"), "the load is seen")
        outcomes.note(service.home(), outcomes.Attempt.begin().ended("source_error", message=MARKUP))
    browser.until(lambda: browser.text("#detail .badge") == "Refresh failed", "the failure is shown")
    assert MARKUP in browser.text(".problems")
    assert browser.text("#verdict") == "shop: Refresh failed"
    browser.until(lambda: len(browser.all(".history button")) == 3, "there are three bars")
    assert [str(bar.get_attribute("class")).split(" ")[0] for bar in browser.all(".history button")] == [
        "published",
        "published",
        "failed",
    ]
    with locks.loading(service.home()):
        old = roll_back(service.home())
        outcomes.note(service.home(), outcomes.Attempt.begin().ended("rolled_back", snapshot=old.name))
    browser.until(lambda: browser.text("#detail .badge") == "Rolled back", "the rollback is shown")
    assert old.name in browser.text(".snapshot")
    assert browser.run("return document.querySelectorAll('img').length") == 0
    is_fine(browser, service)


def test_the_charts_follow_requests_and_can_be_read_off(browser: Browser, service: Service) -> None:
    key = service.key()
    browser.open(url(service))
    with service.connect() as connection:

        def shown() -> str:
            for target in ["/v1/profiles/id/12345"] * 20 + ["/v1/profiles/id/nobody"]:
                connection.ask(request(target, key))
            return browser.text(".charts")

        browser.until(lambda: all(text in shown() for text in ("4xx", "2xx", "µs")), "requests are drawn")
    areas = browser.run("return [...document.querySelectorAll('.area')].map((each) => each.getBBox().height)")
    assert max(areas) > 20
    picture = browser.one(".chart svg")
    for key_, cursors in ((Keys.HOME, 1), (Keys.ARROW_RIGHT, 1), (Keys.ESCAPE, 0)):
        picture.send_keys(key_)
        assert browser.run("return document.querySelectorAll('.cursor').length") == cursors
        spoken = browser.run("return document.querySelector('.chart [role=status]').textContent")
        assert ("a second" in spoken) == bool(cursors)
    is_fine(browser, service)


def test_a_service_that_does_not_answer_is_said_and_the_last_state_stays(browser: Browser, service: Service) -> None:
    browser.open(url(service))
    browser.until(lambda: figure(browser, "Profiles"), "it is shown")
    profiles = figure(browser, "Profiles")
    service.stop()
    browser.until(lambda: browser.all("#silence"), "the silence is said")
    assert "does not answer" in browser.text("#silence")
    assert browser.run("return getComputedStyle(document.getElementById('shown')).filter") == "grayscale(1)"
    assert (figure(browser, "Profiles"), browser.text("#verdict")) == (profiles, "No answer")
    service.start()
    browser.until(lambda: not browser.all("#silence"), "it is back")
    assert browser.run("return getComputedStyle(document.getElementById('shown')).filter") == "none"


def test_a_tab_that_nobody_sees_asks_nothing(browser: Browser, running: Service) -> None:
    browser.open(url(running))

    def asked() -> int:
        return sum("/console/state" in each for each in browser.requested())

    browser.until(lambda: asked() > 0, "it asks")
    browser.until(lambda: asked() > 0, "it asks again")
    browser.driver.minimize_window()
    browser.until(lambda: browser.run("return document.hidden"), "it is hidden")
    browser.requested()
    browser.run("setTimeout(() => { window.isOver = true; }, 5000)")
    browser.until(lambda: browser.run("return window.isOver"), "the time of two more is over")
    assert asked() == 0
    browser.driver.set_window_rect(0, 0, *WINDOWS["desktop"])
    browser.until(lambda: asked() > 0, "it asks again")


# --- lookups -------------------------------------------------------------------------------------------------------


def look_up(browser: Browser, key: str, value: str, namespace: str = "") -> None:
    for name, text in (("key", key), ("namespace", namespace), ("value", value)):
        browser.type(f"#lookup [name={name}]", text)
    browser.one("#lookup [name=value]").send_keys(Keys.ENTER)


def test_a_profile_is_looked_up_and_shown_to_the_last_digit(browser: Browser, running: Service) -> None:
    key = running.key()
    browser.open(url(running))
    look_up(browser, key, "types")
    browser.until(lambda: browser.text("#outcome").startswith("200 · "), "it is answered")
    assert "ETag" in browser.text("#outcome")
    for digits in ("9223372036854775807", "1234567890123456789012345678.0123456789", "12345678901234567890", "1.50"):
        assert digits in browser.text("#body")
    plain = running.get("/v1/profiles/id/types", key).body.decode()
    shown = browser.run("return document.getElementById('body').textContent")
    assert "".join(shown.split()) == "".join(plain.split())
    look_up(browser, key, "JANE@example.com", "email")
    browser.until(lambda: "Jane" in browser.text("#body"), "it is found by another identifier")
    is_fine(browser, running)


def test_a_lookup_that_fails_says_why(browser: Browser, running: Service) -> None:
    key = running.key()
    browser.open(url(running))
    for token, value, status, code in ((key, "nobody", 404, "profile_not_found"), (key[:-1], "x", 401, "unauthorized")):
        look_up(browser, token, value)
        browser.until(lambda: browser.text("#outcome").startswith(f"{status} · "), "it is answered")  # noqa: B023
        assert code in browser.text("#body")
    complaints = browser.complaints()
    assert [f"{status} (" in each for status, each in zip((404, 401), complaints, strict=True)] == [True, True]


def test_a_key_is_nowhere_but_in_its_field(browser: Browser, running: Service) -> None:
    key = running.key()
    browser.open(url(running))
    look_up(browser, key, "12345")
    browser.until(lambda: "Jane" in browser.text("#body"), "it is answered")
    kept = "return JSON.stringify([localStorage, sessionStorage, document.cookie, location.href, history.state])"
    assert key not in browser.run(kept)
    assert key not in browser.run("return document.documentElement.outerHTML")
    assert not [each for each in browser.requested() if key in each or "12345" in each]
    browser.click("#lookup [type=reset]")
    fields = "return [...document.querySelectorAll('#lookup input')].map((each) => each.value).join('')"
    assert browser.run(fields) == ""
    assert not browser.all("#body")


# --- for everybody -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_page_fits_its_window_and_can_be_read(
    browser: Browser, running: Service, window: str, is_dark: bool
) -> None:
    key = running.key()
    browser.open(f"{url(running)}#shop", WINDOWS[window], is_dark=is_dark)
    browser.until(lambda: browser.text("#detail h2") == "shop", "the shop is shown")
    look_up(browser, key, "12345")
    browser.until(lambda: browser.all("#body span"), "it is answered")
    assert browser.overflow() <= 0
    assert browser.run(CONTRASTS) == []
    is_fine(browser, running)


def test_fifty_workspaces_are_chosen_among_by_the_keyboard_alone(browser: Browser, make_service: MakeService) -> None:
    names = [f"market-{number:02d}" for number in range(49)] + ["x" * 63]
    service = make_service(dict.fromkeys(names, DECLARED), with_admin=True).start(ready=503)
    browser.open(url(service))
    browser.until(lambda: browser.text("#detail h2") == "market-00", "the first is shown")
    assert browser.text("#verdict") == "50 of 50 workspaces need attention"
    assert browser.overflow() <= 0
    rows = browser.driver.find_elements("css selector", "#list li")
    assert [row.get_attribute("tabindex") for row in rows].count("0") == 1, "Tab leads past them by one stop"
    browser.one("#filter").send_keys(Keys.TAB)
    active = browser.driver.switch_to.active_element
    active.send_keys(Keys.ARROW_DOWN)
    browser.until(lambda: browser.text("#detail h2") == "market-01", "the next is shown")
    browser.driver.switch_to.active_element.send_keys(Keys.END)
    browser.until(lambda: browser.text("#detail h2") == "x" * 63, "the last is shown")
    assert browser.run("return location.hash") == "#" + "x" * 63
    browser.type("#filter", "MARKET-4")
    browser.until(lambda: len([row for row in rows if row.is_displayed()]) == 9, "some are left")
    assert browser.overflow() <= 0
    is_fine(browser, service)


def test_a_bar_of_the_history_is_told_of_when_it_has_the_focus(browser: Browser, service: Service) -> None:
    with locks.loading(service.home()):
        outcomes.note(service.home(), outcomes.Attempt.begin().ended("timed_out", message="ended after 6h"))
    browser.open(url(service))
    browser.until(lambda: len(browser.all(".history button")) == 2, "there are two bars")
    assert "timed out" in browser.text(".about")
    browser.run("document.querySelector('.history button[tabindex=\"0\"]').focus()")
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    browser.until(lambda: "published" in browser.text(".about"), "the one before is told of")
    assert "profiles" in browser.text(".about")


def test_nothing_moves_for_those_who_do_not_want_it(browser: Browser, running: Service) -> None:
    browser.open(f"{url(running)}#shop")
    with locks.loading(running.home()):
        browser.until(lambda: browser.all(".running"), "it is being loaded")
        for wish, moving in (("no-preference", 1), ("reduce", 0)):
            liked = {"name": "prefers-reduced-motion", "value": wish}
            browser.command("Emulation.setEmulatedMedia", features=[liked])
            assert browser.run("return document.getAnimations().length") == moving
