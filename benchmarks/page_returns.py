"""How long the page of a default server takes to be live again, in Chromium: `python -m benchmarks.page_returns`.

A session plays at 16 frames/s. The page sleeps, hides behind another tab, is left and come back to, is loaded
again, and its person's token is taken away and given back. It is live once it shows a frame that is at most two
seconds older than the newest one that had been made when it came back, and another one after that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.browser import Page, browsing
from benchmarks.overload import measure_and_keep
from serving.client.blocking import Client
from serving.deployments.server_process import local_server

PROMPT = "a red balloon drifting steadily to the right over rolling hills at noon under a clear sky"
BEHIND_FRAMES = 32
PATIENCE_S = 30.0
REPEATS = 3
TOKEN, STRANGERS = "of-anna", "of-berta"
"""As the server's file has them."""


@contextmanager
def _behind_another_tab(page: Page) -> Iterator[None]:
    own = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    yield
    page.driver.close()
    page.driver.switch_to.window(own)


@contextmanager
def _left(page: Page) -> Iterator[None]:
    page.driver.get("data:text/html,elsewhere")
    yield
    page.driver.back()


@contextmanager
def _loaded_again(page: Page) -> Iterator[None]:
    yield
    page.driver.refresh()


@contextmanager
def _without_token(page: Page) -> Iterator[None]:
    page.write("token", f"{STRANGERS}\n")
    page.until(lambda: "no session" in page.part("notices").text.lower())
    yield
    page.write("token", f"{TOKEN}\n")


AWAY: dict[str, Callable[[Page], AbstractContextManager[None]]] = {
    "without its token": _without_token,
    "asleep": Page.asleep,
    "behind another tab": _behind_another_tab,
    "left and come back to": _left,
    "loaded again": _loaded_again,
}
"""A page that is loaded again shows no field for a token that is right, so that comes first."""


def returned(
    page: Page, client: Client, away: Callable[[Page], AbstractContextManager[None]], seconds: float
) -> float:
    """Seconds from when the page comes back until it is live. Raises AssertionError if it is not in 30 s."""
    session = page.session
    with away(page):
        time.sleep(seconds)
        newest = client.get(session).current_start_frame
        began = time.monotonic()
    page.until(lambda: page.state == "running" and page.frame >= newest - BEHIND_FRAMES, PATIENCE_S)
    frame, pictures = page.frame, _pictures(page)
    page.until(lambda: page.frame > frame and _pictures(page) > pictures, PATIENCE_S)
    return time.monotonic() - began


def _pictures(page: Page) -> int:
    """How many the browser has put on the screen."""
    script = "const q = document.querySelector('#video').getVideoPlaybackQuality();"
    return int(page.driver.execute_script(f"{script} return q.totalVideoFrames - q.droppedVideoFrames"))


def measure(seconds: float, folder: Path) -> dict[str, Any]:
    """Each way to be away, some times over."""
    tokens = folder / "tokens"
    tokens.write_text(f"anna {TOKEN}\nberta {STRANGERS}\n")
    options = ("--tokens", str(tokens), "--recordings", str(folder / "recordings"))
    found: dict[str, list[float]] = {}
    with (
        local_server(options) as server,
        Client(server.address, token=TOKEN) as client,
        browsing(server.page.rstrip("/"), folder / "profile") as page,
    ):
        page.open()
        page.write("text", PROMPT)
        page.press("go")
        page.until(lambda: "a token is missing" in page.part("notices").text.lower())
        page.write("token", f"{TOKEN}\n")
        page.press("go")
        page.until_frame(48)
        for name, away in AWAY.items():
            found[name] = [round(returned(page, client, away, seconds), 2) for _ in range(REPEATS)]
            print(name, found[name], flush=True)
    return {"away_s": seconds, "live_again_s": found}


def main() -> None:
    """Measure, print and keep."""
    measure_and_keep(measure, "page_returns_cpu", 20, __doc__)


if __name__ == "__main__":
    main()
