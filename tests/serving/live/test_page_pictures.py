"""A camera, the screen and a clip restyled by the page in Chromium, which makes a camera and a screen up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import text_to_be_present_in_element
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks.harness.browser import CHROMIUM, DRIVER, PATIENCE_S, Page, browsing
from serving.pb.longtake.v1 import sessions_pb2 as pb
from tests.serving.live.conftest import Server
from tests.serving.live.scenes import NIGHT, NOON
from tests.serving.live.test_page import session_of
from tests.serving.live.test_steering import Stub
from tests.serving.media.clips.clips import write_clip

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed: `make .venv/browser`"
)

MADE_UP = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")

KEEP_SENT = """
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  if (data instanceof Blob) window.sent = data;
  send.call(this, data);
};
"""

LOOK_AT_SENT = """
const done = arguments[0];
createImageBitmap(sent.slice(20)).then((picture) => {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
  done([canvas.height, canvas.width, pixels]);
});
"""


@pytest.fixture(scope="module")
def seeing(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("seeing")
    with browsing(f"http://127.0.0.1:{server.http_port}", profile, *MADE_UP) as page:
        yield page


@pytest.fixture
def camera(seeing: Page, stub: Stub) -> Iterator[Page]:
    """The page in a browser that has a camera, which shows its time in the upper left corner."""
    seeing.open("#seed=7")
    seeing.until(lambda: seeing.part("source").is_displayed())
    seeing.driver.execute_script(KEEP_SENT)
    yield seeing
    assert seeing.errors() == []


def choose(page: Page, source: str) -> None:
    page.part("source").send_keys(source)
    page.until(lambda: page.driver.execute_script("return document.querySelector('#input').videoWidth > 0"))


def sent(page: Page) -> NDArray[np.uint8]:
    """The picture that was sent last, [height, width, 4]."""
    page.until(lambda: page.driver.execute_script("return Boolean(window.sent)"))
    height, width, pixels = page.driver.execute_async_script(LOOK_AT_SENT)
    return np.array(pixels, np.uint8).reshape(height, width, 4)


def number(page: Page, meter: str) -> float:
    found = re.match(r"[\d.]+", page.part(meter).text)
    return float(found[0]) if found else 0.0


def has_clock_left(picture: NDArray[np.uint8]) -> bool:
    """Whether there is more writing on the left than on the right of a picture of the camera."""
    top = picture[3:12, 20:-20, :3].astype(int)
    middle = top.shape[1] // 2
    return bool(top[:, :middle].std() > top[:, middle:].std())


def test_a_camera_is_restyled_beside_its_pictures(camera: Page, stub: Stub) -> None:
    choose(camera, "camera")
    camera.start(NIGHT)
    camera.until(lambda: 16 <= number(camera, "sent") <= 30)
    assert 0.1 < number(camera, "age") < 3
    assert camera.part("dropped").text.startswith("0 of ")
    assert camera.part("input").is_displayed()
    assert camera.part("video").is_displayed()
    assert session_of(stub, camera).options.input == pb.INPUT_KIND_VIDEO
    assert has_clock_left(sent(camera))
    assert not camera.part("copy").is_enabled()


def test_a_camera_may_be_mirrored_and_takes_turns_with_the_screen(camera: Page) -> None:
    choose(camera, "camera, m")
    camera.start(NOON)
    assert not has_clock_left(sent(camera))
    camera.part("source").send_keys("prompts only")
    camera.until(lambda: "Waiting for pictures" in camera.part("waiting").text)
    choose(camera, "screen")
    camera.until_frame(camera.frame + 8)
    assert not camera.part("waiting").is_displayed()


def test_a_cut_begins_anew_with_the_next_picture(camera: Page, stub: Stub) -> None:
    choose(camera, "camera")
    assert not camera.part("cut").is_displayed()
    camera.start(NOON)
    camera.until_frame(8)
    camera.press("cut")
    camera.until(lambda: len(session_of(stub, camera).applied) == 2)
    cue = session_of(stub, camera).applied[-1].cue
    assert (cue.prompts[0].text, cue.restyling.cuts) == (NOON, True)
    camera.until_frame(camera.frame + 8)


def test_strength_and_what_motion_does_to_it_are_changed_while_it_runs(camera: Page, stub: Stub) -> None:
    choose(camera, "camera")
    camera.start(NOON)
    camera.until_frame(8)
    before = session_of(stub, camera).restyling
    camera.part("strength").send_keys(Keys.ARROW_LEFT)
    camera.until(lambda: session_of(stub, camera).restyling.noise_scale < before.noise_scale)
    less = session_of(stub, camera).restyling.noise_scale
    assert less == pytest.approx(before.noise_scale - 0.05)
    camera.part("follows-motion").click()
    camera.until(lambda: session_of(stub, camera).restyling.follows_motion != before.follows_motion)
    camera.until(lambda: float(camera.part("strength-value").text) == pytest.approx(less))
    camera.until(lambda: 0 < number(camera, "mixed") <= less + 0.01)
    assert session_of(stub, camera).prompt == NOON


def test_a_bypass_shows_the_pictures_in_place_of_the_video(camera: Page) -> None:
    seen = """
      const { left, right, top, bottom } = document.querySelector("#video").getBoundingClientRect();
      return document.elementFromPoint((left + right) / 2, (top + bottom) / 2).id;
    """
    choose(camera, "camera")
    assert camera.driver.execute_script(seen) == "video"
    camera.press("bypass")
    assert camera.driver.execute_script(seen) == "input"
    camera.press("bypass")
    assert camera.driver.execute_script(seen) == "video"


def test_a_clip_is_restyled_as_the_settings_say_and_a_bare_page_shows_the_video_alone(
    camera: Page, stub: Stub, tmp_path: Path
) -> None:
    pictures = [np.full((120, 90, 3), (200, 40, 40), np.uint8)] * 20
    write_clip(tmp_path / "clip.mp4", pictures, 20)
    camera.driver.find_element("css selector", "#new-session summary").click()
    camera.write("noise-scale", "0.5")
    camera.part("fit").send_keys("stretched")
    camera.part("clip").send_keys(str(tmp_path / "clip.mp4"))
    camera.start(NOON)
    camera.until_frame(40)
    options = session_of(stub, camera).options
    assert (options.noise_scale, options.fit) == (0.5, pb.PICTURE_FIT_STRETCH)
    assert camera.part("strength-value").text == "0.5"
    assert np.abs(sent(camera)[..., :3].mean((0, 1)) - (200, 40, 40)).max() < 12
    camera.open(f"bare#watch={camera.session}")
    camera.until(lambda: camera.time > 1)
    assert camera.picture()[..., :3].std() > 20
    assert camera.driver.execute_script("return document.body.innerText.trim()") == ""


def test_a_bare_page_says_why_it_shows_nothing(camera: Page) -> None:
    for place, words in (("bare", "names no session"), ("bare#watch=nobody", "nobody")):
        camera.open(place)
        wait = WebDriverWait(camera.driver, PATIENCE_S)
        wait.until(text_to_be_present_in_element((By.ID, "said"), words))


def test_a_session_of_prompts_takes_no_pictures(camera: Page) -> None:
    camera.start(NOON)
    assert not camera.part("source").is_enabled()
    assert not camera.part("picture-meters").is_displayed()


def test_where_there_is_no_camera_the_page_says_so(page: Page) -> None:
    page.until(lambda: page.part("source").is_displayed())
    page.part("source").send_keys("camera")
    page.until(lambda: page.part("notices").text)
    assert page.part("source").get_property("value") == "none"
