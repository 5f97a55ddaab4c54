"""A real browser for the tests of our pages: Debian's Chromium without a screen, driven by its ChromeDriver.

A test file that says `pytest_plugins = ("browser",)` has the fixture `browser`, one for the whole run. What a page
asked for and what it complained of are taken from the browser's own logs, which no page can reach.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from service import until

T = TypeVar("T")
DESKTOP, PHONE = (1280, 900), (390, 844)
# It starts as root does in a container, keeps to itself, and asks nobody for updates.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)


class Browser:
    """One window. `driver` is Selenium's, for what is not here."""

    def __init__(self, folder: Path) -> None:
        chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
        assert chromium is not None, "chromium is missing: apt-get install chromium chromium-driver"
        assert chromedriver is not None, "chromedriver is missing: apt-get install chromium-driver"
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options, Driver(chromedriver))

    def open(self, url: str, size: tuple[int, int] = DESKTOP, *, is_dark: bool = False) -> None:
        """Loads a page in a window of that size, for one who likes it light or dark; the logs begin anew."""
        self._resize(*size)
        liked = {"prefers-color-scheme": "dark" if is_dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in liked.items()]
        self.command("Emulation.setEmulatedMedia", features=features)
        self.driver.get("about:blank")
        self.complaints()
        self.requested()
        self.driver.get(url)

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def _resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)

    # What is seen.

    def all(self, css: str) -> list[WebElement]:
        """The elements that are seen, in their order."""
        return [element for element in self.driver.find_elements(By.CSS_SELECTOR, css) if element.is_displayed()]

    def one(self, css: str) -> WebElement:
        """The first that is seen, as soon as there is one."""
        return self.until(lambda: self.all(css), f"{css} is seen")[0]

    def text(self, css: str) -> str:
        return str(self.one(css).text)

    def click(self, css: str) -> None:
        self.one(css).click()

    def type(self, css: str, text: str) -> None:
        """Types into a field what it shall hold."""
        field = self.one(css)
        field.clear()
        field.send_keys(text)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body in JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, look: Callable[[], T], what: str) -> T:
        """Polls, over pages that are drawn anew meanwhile."""

        def looked() -> T | None:
            try:
                return look()
            except StaleElementReferenceException:
                return None

        found = until(looked, what)
        assert found is not None
        return found

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def screenshot(self, file: Path, *, is_whole: bool = False) -> None:
        """The window as PNG, or all of the page."""
        if is_whole:
            height = self.run("return document.documentElement.scrollHeight")
            width = self.run("return window.innerWidth")
            self._resize(width, height)
        self.driver.save_screenshot(str(file))

    # What went on.

    def complaints(self) -> list[str]:
        """What the console has of level warning or worse since the last call: errors, failed loads, broken policies."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] in ("WARNING", "SEVERE")]

    def requested(self) -> list[str]:
        """The URLs that were asked for since the last call, in their order."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def _log(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(name)  # type: ignore[no-untyped-call]
        return found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser, for tests one after the other; each opens what it looks at."""
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.driver.quit()
