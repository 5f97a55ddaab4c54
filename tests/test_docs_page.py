"""`/docs` in a real browser: it shows all that is described, asks nobody but its own server, and tries requests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from service import Service

if TYPE_CHECKING:  # pytest imports it itself, to have its fixture
    from browser import Browser

pytest_plugins = ("browser",)
DESKTOP, PHONE = (1280, 900), (390, 844)
SHOWN = ".inside > div:last-child .example"


@pytest.fixture
def origin(whole_shop: Service) -> str:
    return f"http://127.0.0.1:{whole_shop.port}"


@pytest.fixture
def page(browser: Browser, origin: str) -> Browser:
    """The page at the size of a desk, with all operations drawn."""
    browser.open(f"{origin}/docs")
    browser.one(".operation")
    return browser


def described(service: Service) -> list[str]:
    """The ids of all operations, without those that differ from another by HEAD alone."""
    paths: dict[str, Any] = service.get("/openapi.json").json()["paths"]
    found = [(name, at) for each in paths.values() for name, at in each.items() if name != "servers"]
    return [at["operationId"] for name, at in found if name != "head"]


def opened(page: Browser) -> None:
    """Opens every operation, and every answer in it."""
    page.run("for (const each of document.querySelectorAll('.operation')) each.open = true")
    page.until(lambda: len(page.all(".inside")) == len(page.all(".operation")), "all are drawn")
    page.run("for (const each of document.querySelectorAll('.answer')) each.open = true")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_the_page_shows_every_operation_and_complains_of_nothing(
    browser: Browser, whole_shop: Service, origin: str, size: tuple[int, int], is_dark: bool
) -> None:
    browser.open(f"{origin}/docs", size, is_dark=is_dark)
    browser.one(".operation")
    opened(browser)
    assert [each.get_attribute("id") for each in browser.all(".operation")] == described(whole_shop)
    assert browser.overflow() <= 0
    assert browser.complaints() == []
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(", "))) < 384) == is_dark


def test_the_page_asks_nobody_but_its_own_server(browser: Browser, origin: str) -> None:
    browser.open(f"{origin}/docs")
    browser.one(".operation")
    opened(browser)
    asked = [url for url in browser.requested() if not url.startswith("data:")]
    assert sorted(asked) == sorted(
        f"{origin}/{path}" for path in ("docs", "docs/common.css", "docs/docs.css", "docs/docs.js", "openapi.json")
    )


def test_its_policy_allows_no_script_and_no_site_but_its_own(page: Browser) -> None:
    page.run("""
        const script = document.createElement("script");
        script.textContent = "window.injected = true";
        document.body.append(script);
        const picture = new Image();
        picture.src = "http://127.0.0.2:9/x.png";
        document.body.append(picture);
        fetch("http://127.0.0.2:9/").catch(() => window.refused = true);
    """)
    page.until(lambda: page.run("return window.refused"), "the request is refused")
    assert page.run("return window.injected") is None
    told = "\n".join(page.complaints())
    for directive in ("script-src 'self'", "img-src data:", "connect-src 'self'"):
        assert directive in told


def test_an_operation_shows_its_parameters_body_answers_and_an_example(page: Browser, whole_shop: Service) -> None:
    document = whole_shop.get("/openapi.json").json()
    opened(page)
    for at in document["paths"].values():
        for operation in (each for name, each in at.items() if name not in ("servers", "head")):
            text = page.run("return document.getElementById(arguments[0]).textContent", operation["operationId"])
            assert all(each["name"] in text for each in operation.get("parameters", []))
            assert all(status in text for status in operation["responses"])
            assert operation["summary"] in text
            assert "curl" in text
            assert ("Body" in text) == ("requestBody" in operation)
    assert "'X-Batch-Project: project_demo'" in page.text(f"#batchUpdate {SHOWN}")
    assert "/2.4/profiles/update" in page.text(f"#batchUpdate {SHOWN}")
    assert "?fields=identifiers.profile_id,attributes.first_name,audiences'" in page.text(f"#profile {SHOWN}")


def test_the_filter_leaves_one_surface_and_the_search_what_has_the_words(page: Browser) -> None:
    def surfaces() -> set[str | None]:
        return {each.get_attribute("data-surface") for each in page.all(".operation")}

    assert len(surfaces()) == 7
    buttons = {button.text: button for button in page.all("#filters button")}
    buttons["Intilery"].click()
    assert surfaces() == {"Intilery"}
    assert buttons["Intilery"].get_attribute("aria-pressed") == "true"
    assert {link.get_attribute("data-surface") for link in page.all("nav a[data-surface]")} == {"Intilery"}
    page.type("#search", "names of its audiences")
    assert [each.get_attribute("id") for each in page.all(".operation")] == ["intileryAudiences"]
    buttons["All"].click()
    page.type("#search", "no such words")
    assert page.all(".operation") == []
    assert page.text(".nothing") == "Nothing is found."


def test_an_address_opens_what_it_names(browser: Browser, origin: str) -> None:
    browser.open(f"{origin}/docs#eventsByIdentifier")
    assert "namespace" in browser.text("#eventsByIdentifier .inside")
    assert len(browser.all(".inside")) == 1
    # As the `type` of a problem does.
    browser.open(f"{origin}/docs#rate_limited")
    assert "429" in browser.text("tr#rate_limited")
    top = browser.run("return document.getElementById('rate_limited').getBoundingClientRect().top")
    assert 0 <= top < DESKTOP[1]


def test_a_request_is_tried_with_a_key_that_the_page_forgets(page: Browser, whole_shop: Service, origin: str) -> None:
    page.type("#key", whole_shop.key())
    page.click("#profile summary")
    page.click("#profile .try button.primary")
    page.until(lambda: "200" in page.text("#profile .try [role=status]"), "the profile is there")
    answer = page.all("#profile .try [role=status] pre")[-1].text
    assert json.loads(answer)["first_name"] == "Jane"
    page.click("#profiles summary")
    page.click("#profiles .try button.primary")
    page.until(lambda: "200" in page.text("#profiles .try [role=status]"), "the profiles are there")
    assert page.complaints() == []
    assert page.run("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    page.open(f"{origin}/docs")
    assert page.one("#key").get_attribute("value") == ""
    assert page.one("#key").get_attribute("type") == "password"


def test_it_is_read_by_keyboard_and_ear(page: Browser) -> None:
    assert page.run("return document.documentElement.lang") == "en"
    unnamed = page.run("""
        return [...document.querySelectorAll("input, button, textarea")].filter((each) =>
            !each.ariaLabel && !each.textContent.trim() && !each.closest("label")).length
    """)
    assert unnamed == 0
    page.one("#profile summary").send_keys("\n")
    assert page.one("#profile .inside").is_displayed()


def test_the_page_and_its_files_are_sent_with_their_policy(whole_shop: Service) -> None:
    answer = whole_shop.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = whole_shop.get("/docs", None, ("If-None-Match", answer.headers["etag"]))
    assert (again.status, again.body) == (304, b"")
    for name, kind in (("docs.js", "text/javascript; charset=utf-8"), ("common.css", "text/css; charset=utf-8")):
        assert whole_shop.get(f"/docs/{name}").headers["content-type"] == kind
