"""The page after it was away: asleep, in another tab, left and come back to."""

from __future__ import annotations

import re
import threading
import time

import pytest

from benchmarks.harness.browser import CHROMIUM, DRIVER, Page
from tests.serving.live.scenes import NOON, chunks, described, playing, watch
from tests.serving.live.test_page import session_of
from tests.serving.live.test_steering import Stub

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed: `make .venv/browser`"
)

ASLEEP_S = 40

BACK_S = 5 * 2.5
"""The page is live again in 5 s; on a machine that has other things to do in two or three times that."""


@pytest.mark.slow
def test_a_page_that_slept_goes_on_at_a_frame_that_exists_and_says_what_was_skipped(
    page: Page, stub: Stub
) -> None:
    page.start(NOON)
    page.until_frame(30)
    before = page.frame
    with page.asleep():
        time.sleep(ASLEEP_S)
    page.until(lambda: "was asleep for" in page.part("notices").text and page.frame > before, BACK_S)
    assert "skipped" in page.part("notices").text
    assert page.frame < session_of(stub, page).current_start_frame
    page.until_frame(page.frame + 24)
    session = session_of(stub, page)
    assert page.frame < session.current_start_frame
    page.until(lambda: page.frame >= session.shown_frame)


@pytest.mark.slow
def test_a_spectator_that_slept_is_live_again(page: Page, stub: Stub) -> None:
    page.start(NOON)
    session = session_of(stub, page)
    page.open(f"#watch={session.id}")
    page.until_frame(session.current_start_frame)
    with page.asleep():
        time.sleep(ASLEEP_S)
        end = described(stub, session).current_start_frame
    page.until(lambda: "was asleep for" in page.part("notices").text and page.frame > end - 60, BACK_S)
    before = page.frame
    page.until_frame(before + 16)


@pytest.mark.slow
def test_a_page_that_was_hidden_by_another_tab_goes_on(page: Page, stub: Stub) -> None:
    page.start(NOON)
    first, session = page.driver.current_window_handle, session_of(stub, page)
    page.driver.switch_to.new_window("tab")
    page.open(f"#session={session.id}")
    page.until(lambda: page.state == "running" and page.frame > 0)
    page.until_frame(page.frame + 150)
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.until(lambda: page.frame > described(stub, session).current_start_frame - 60, BACK_S)
    page.press("take-over")
    page.until(lambda: page.part("go").is_enabled())
    page.until_frame(page.frame + 16)
    page.driver.switch_to.window(second)
    page.driver.close()
    page.driver.switch_to.window(first)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["as it was", "loaded again"])
def test_a_page_that_is_come_back_to_is_where_it_was(page: Page, stub: Stub, kept: bool) -> None:
    page.start(NOON)
    page.until_frame(30)
    session = page.session
    page.driver.execute_script("window.kept = true" if kept else "addEventListener('unload', () => {})")
    page.driver.get("data:text/html,elsewhere")
    time.sleep(2)
    page.driver.back()
    page.until(lambda: page.state == "running" and page.session == session and page.frame > 0, BACK_S)
    page.until_frame(page.frame + 24)
    assert page.frame < session_of(stub, page).current_start_frame
    assert bool(page.driver.execute_script("return window.kept")) is kept


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["as it was", "loaded again"])
def test_a_spectator_that_comes_back_is_told_what_it_missed(page: Page, stub: Stub, kept: bool) -> None:
    session = playing(stub)
    # Without anybody who watches, the session would wait.
    watching = threading.Thread(target=lambda: chunks(watch(stub, session), 400))
    watching.start()
    page.open(f"#watch={session.id}")
    page.until_frame(20)
    page.driver.execute_script("0" if kept else "addEventListener('unload', () => {})")
    page.driver.get("data:text/html,elsewhere")
    time.sleep(6)
    page.driver.back()
    page.until(lambda: re.search(r"\d+ frames (were )?skipped", page.part("notices").text), BACK_S)
    page.until(lambda: page.frame > described(stub, session).current_start_frame - 60)
    watching.join()
