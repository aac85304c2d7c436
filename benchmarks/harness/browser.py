"""The page in a real browser, as a person would use it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)

PATIENCE_S = 20.0

_LOOK = """
const video = document.querySelector("#video");
const canvas = new OffscreenCanvas(video.videoWidth || 1, video.videoHeight || 1);
const context = canvas.getContext("2d");
context.drawImage(video, 0, 0);
return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
"""

_SOCKETS = """
const Opened = WebSocket;
window.sockets = [];
window.WebSocket = class extends Opened {
  constructor(...address) { super(...address); window.sockets.push(this); }
};
"""


class Page:
    """One tab that shows the page of the server at `address`."""

    def __init__(self, driver: webdriver.Chrome, address: str, downloads: Path) -> None:
        self.driver = driver
        self.address = address
        self.downloads = downloads

    def open(self, place: str = "") -> None:
        """Load the page anew, at `place` below its address."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/{place}")

    def part(self, name: str) -> WebElement:
        """The element with this `data-testid`."""
        return self.driver.find_element(By.CSS_SELECTOR, f'[data-testid="{name}"]')

    def press(self, name: str) -> None:
        """Click on an element."""
        self.part(name).click()

    def write(self, name: str, text: str) -> None:
        """Put `text` into a field, in place of what is in it."""
        self.part(name).clear()
        self.part(name).send_keys(text)

    def add(self, prompt: str, frame: int | None = None) -> None:
        """Schedule a prompt, now or at a frame, and wait until the server has it."""
        self.write("text", prompt)
        self.press("now" if frame is None else "at-frame")
        if frame is not None:
            self.write("frame", str(frame))
        self.press("add")
        self.until(lambda: not self.part("text").get_property("value"))

    def start(self, prompt: str) -> None:
        """Begin a session with a prompt, and wait for its second chunk."""
        self.write("text", prompt)
        self.press("go")
        self.until(lambda: self.frame >= 9)

    def cues(self, name: str) -> dict[int, str]:
        """The cues of a list by their frames."""
        rows = "return [...document.querySelectorAll(`[data-testid=${arguments[0]}] li[data-frame]`)]"
        fields = ".map((row) => [row.dataset.frame, row.querySelector('.said').textContent])"
        return {int(frame): text for frame, text in self.driver.execute_script(rows + fields, name)}

    def recordings(self) -> list[str]:
        """The names of those that are listed, the newest first."""
        rows = "return [...document.querySelectorAll('[data-testid=recordings-list] li')]"
        names: list[str] = self.driver.execute_script(f"{rows}.map((row) => row.dataset.name).filter(Boolean)")
        return names

    @property
    def state(self) -> str | None:
        """Of the session, as the page names it."""
        return self.part("state").get_attribute("data-state")

    @property
    def frame(self) -> int:
        """The one on the screen; -1 where there is none."""
        return int(self.part("clock").get_attribute("data-frame") or -1)

    @property
    def time(self) -> float:
        """Where the video is, in seconds."""
        return float(self.driver.execute_script("return document.querySelector('#video').currentTime"))

    @property
    def session(self) -> str:
        """The id of the session that the address leads to."""
        return str(self.driver.execute_script("return new URLSearchParams(location.hash.slice(1)).get('session')"))

    def picture(self) -> NDArray[np.uint8]:
        """What is on the screen, [height, width, 4]."""
        size = self.driver.execute_script(
            "const v = document.querySelector('#video'); return [v.videoHeight, v.videoWidth]"
        )
        pixels: NDArray[np.uint8] = np.array(self.driver.execute_script(_LOOK), np.uint8)
        return pixels.reshape(*size, 4)

    def until(self, reached: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
        """Wait until something is so. Raises AssertionError, with how things stand, if it is not in time."""
        end = time.monotonic() + patience_s
        while not reached():
            if time.monotonic() > end:
                raise AssertionError(f"it never came to that: {self.condition()}")
            time.sleep(0.05)

    def until_frame(self, frame: int) -> None:
        """Wait until a frame is on the screen."""
        self.until(lambda: self.frame >= frame)

    def condition(self) -> str:
        """How things stand, for whoever has to find out why they do."""
        video = """
          const v = document.querySelector("#video");
          const parts = [...Array(v.buffered.length).keys()].map((n) => [v.buffered.start(n), v.buffered.end(n)]);
          return JSON.stringify([v.readyState, v.paused, v.seeking, v.currentTime, parts, v.error?.message]);
        """
        said = self.part("notices").text
        return f"{self.state}, frame {self.frame}, {said!r}, {self.driver.execute_script(video)}, {self.errors()}"

    def errors(self) -> list[str]:
        """What the browser's console complained of."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """All processes of the browser stand still."""
        processes = psutil.Process(self.driver.service.process.pid).children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def wait_for_download(self, name: str) -> Path:
        """A file that the browser was told to save, once it is whole."""
        self.until(lambda: (self.downloads / name).is_file())
        return self.downloads / name

    def cut(self) -> None:
        """Lose the connection."""
        self.driver.execute_script("sockets.at(-1).close()")


@contextmanager
def browsing(address: str, profile: Path, *arguments: str) -> Iterator[Page]:
    """A browser with an empty profile; `arguments` are Chromium's."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, *arguments, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _SOCKETS})
    downloads = profile / "downloads"
    saving = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", saving)
    try:
        yield Page(driver, address, downloads)
    finally:
        driver.quit()
