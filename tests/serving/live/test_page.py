"""The page in Chromium, against a real server."""

from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from benchmarks.harness.browser import CHROMIUM, DRIVER, Page
from serving.cli.main import main
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.formats.reader import read_timeline
from tests.serving.live.scenes import NIGHT, NOON, SNOW
from tests.serving.live.test_steering import Stub

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed: `make .venv/browser`"
)

EXAMPLE = Path("serving/timeline/example.yaml").resolve()


def session_of(stub: Stub, page: Page) -> pb.Session:
    session: pb.Session = stub.GetSession(pb.GetSessionRequest(session_id=page.session))
    return session


def test_a_video_begins_and_moves(page: Page) -> None:
    page.start(NOON)
    before = page.picture()
    page.until_frame(page.frame + 16)
    after = page.picture()
    assert after.shape == (96, 160, 4)
    assert np.abs(after.astype(int) - before).mean() > 1
    assert before[..., :3].std() > 20


def test_a_prompt_for_now_changes_the_picture(page: Page) -> None:
    page.start(NOON)
    bright = page.picture()[..., :3].mean()
    page.add(NIGHT)
    page.until(lambda: NIGHT in page.cues("applied").values())
    page.until_frame(max(page.cues("applied")) + 24)
    assert page.picture()[..., :3].mean() < 0.9 * bright
    assert 0.1 < float(page.part("latency").text.removesuffix(" s")) < 5


def test_a_deleted_cue_never_applies(page: Page) -> None:
    page.start(NOON)
    page.add(NIGHT, 93)
    page.until(lambda: page.cues("pending"))
    page.press("remove")
    page.until(lambda: not page.cues("pending"))
    page.until_frame(96)
    assert page.cues("applied") == {0: NOON}


def test_a_cue_is_dragged_along_the_timeline(page: Page) -> None:
    page.add(NOON, 0)
    page.add(NIGHT, 33)
    page.until(lambda: 33 in page.cues("pending"))
    late = page.driver.find_element("css selector", '.pending[data-frame="33"]')
    ActionChains(page.driver).drag_and_drop_by_offset(late, 2 * 48, 0).perform()
    page.until(lambda: page.cues("pending") == {0: NOON, 81: NIGHT})


def test_keys_move_edit_and_delete_a_cue(page: Page) -> None:
    page.add(NOON, 0)
    page.add(NIGHT, 33)
    page.until(lambda: 33 in page.cues("pending"))
    page.driver.find_element("css selector", '.pending[data-frame="33"]').send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: 45 in page.cues("pending"))
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.write("edit-text", SNOW)
    page.write("edit-frame", "57")
    page.press("edit-save")
    page.until(lambda: page.cues("pending") == {0: NOON, 57: SNOW})
    page.driver.find_element("css selector", '.pending[data-frame="57"]').send_keys(Keys.DELETE)
    page.until(lambda: page.cues("pending") == {0: NOON})


def test_the_space_bar_pauses_at_the_frame_that_is_seen_and_goes_on_behind_it(page: Page, stub: Stub) -> None:
    page.start(NOON)
    page.driver.execute_script("document.activeElement.blur()")
    ActionChains(page.driver).send_keys(" ").perform()
    page.until(lambda: page.state == "paused")
    held, picture = page.frame, page.picture()
    assert session_of(stub, page).shown_frame == held
    assert np.array_equal(page.picture(), picture)
    ActionChains(page.driver).send_keys(" ").perform()
    page.until(lambda: page.state == "running" and page.frame > held)
    assert page.frame < held + 24


def test_the_frame_on_the_page_is_the_paused_one_as_soon_as_it_says_so(page: Page, stub: Stub) -> None:
    page.start(NOON)
    # The page's timers stand still: nothing is drawn again a moment later.
    page.driver.execute_script("for (let timer = 1; timer < 10000; timer++) clearInterval(timer)")
    page.until(lambda: page.time > (page.frame + 4) / 16)
    page.press("go")
    page.until(lambda: page.state == "paused")
    assert page.frame == session_of(stub, page).shown_frame


def test_a_reset_begins_anew(page: Page) -> None:
    page.start(NOON)
    page.press("reset")
    page.until(lambda: page.state == "created" and not page.cues("applied"))
    page.start(NIGHT)
    assert page.cues("applied") == {0: NIGHT}


def test_a_fork_goes_on_from_the_same_past(page: Page, stub: Stub) -> None:
    page.start(NOON)
    page.press("fork")
    page.until(lambda: "Forked at frame" in page.part("notices").text)
    first = session_of(stub, page)
    page.open(str(page.part("fork-link").get_attribute("href")).rpartition("/")[2])
    page.until(lambda: page.state == "running" and page.frame > 9)
    fork = session_of(stub, page)
    assert (fork.id != first.id, fork.options.seed) == (True, first.options.seed)
    assert page.cues("applied") == {0: NOON}


def test_a_recording_is_downloaded(page: Page) -> None:
    page.start(NOON)
    page.press("record")
    page.until(lambda: page.part("record").get_attribute("aria-pressed") == "true")
    page.until_frame(page.frame + 30)
    page.press("record")
    page.until(lambda: "Recorded" in page.part("notices").text)
    link = page.part("download").get_attribute("href")
    with urllib.request.urlopen(str(link)) as answer:
        film = io.BytesIO(answer.read())
    with av.open(film, "r") as container:
        frames = len(list(container.decode(video=0)))
    assert f"Recorded {frames} frames" in page.part("notices").text


def test_recordings_are_listed_downloaded_and_deleted(page: Page) -> None:
    page.start(NOON)
    page.press("record")
    page.until(lambda: page.part("record").get_attribute("aria-pressed") == "true")
    page.until_frame(page.frame + 30)
    page.press("record")
    page.until(lambda: "Recorded" in page.part("notices").text)
    page.part("recordings").find_element("css selector", "summary").click()
    page.until(lambda: page.recordings())
    name = page.recordings()[0]
    assert name.startswith(page.session)
    page.press("download-recording")
    with av.open(str(page.wait_for_download(f"{name}.mp4")), "r") as film:
        assert len(list(film.decode(video=0))) >= 24
    page.press("delete-recording")
    assert name in page.recordings()
    page.press("delete-recording")
    page.until(lambda: name not in page.recordings())


def test_a_timeline_is_exported_as_the_file_that_makes_the_video_again(
    page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    page.start(NOON)
    page.add(NIGHT)
    page.until(lambda: len(page.cues("applied")) == 2)
    page.press("export")
    exported = page.wait_for_download("timeline.json")
    assert main(["timeline", "check", str(exported)]) == 0
    assert "seed 7, height 96, width 160" in capsys.readouterr().out
    cues = {cue.frame: cue.blend.text for cue in read_timeline(exported).timeline.cues}
    assert cues == page.cues("applied")
    exported.unlink()


def test_a_link_makes_the_video_again(page: Page, stub: Stub) -> None:
    page.start(NOON)
    page.add(NIGHT)
    page.until(lambda: len(page.cues("applied")) == 2)
    page.press("copy")
    page.until(lambda: "The link" in page.part("notices").text)
    first = session_of(stub, page)
    page.open(str(page.part("link").get_attribute("href")).rpartition("/")[2])
    page.until(lambda: page.state == "ready" and len(page.cues("pending")) == 2)
    page.press("go")
    page.until(lambda: len(page.cues("applied")) == 2)
    again = session_of(stub, page)
    assert again.options.seed == first.options.seed
    assert [applied.frame for applied in again.applied] == [applied.frame for applied in first.applied]


def test_a_page_that_is_loaded_again_is_where_it_was(page: Page) -> None:
    page.start(NOON)
    session = page.session
    page.driver.refresh()
    page.until_frame(21)
    assert page.session == session


def test_a_lost_connection_is_made_again_and_no_frame_is_missing(page: Page) -> None:
    page.start(NOON)
    page.cut()
    page.until(lambda: page.state == "reconnecting" or page.frame > 30)
    page.until_frame(60)
    assert (page.state, page.part("missed").text) == ("running", "0")


def test_a_timeline_is_brought_along(page: Page) -> None:
    page.part("file").send_keys(str(EXAMPLE))
    page.until(lambda: "cues are on the timeline" in page.part("notices").text)
    cues = [cue.frame for cue in read_timeline(EXAMPLE).timeline.cues]
    page.until(lambda: page.state == "ready" and list(page.cues("pending")) == cues)


def test_what_the_session_does_not_take_from_a_file_is_said(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "asks.json"
    cues = [{"frame": 0, "prompt": NOON}]
    settings = {"model": "longlive-1.3b", "seed": 9, "height": 64, "steps": [1000, 500], "frames": 48}
    file.write_text(json.dumps({**settings, "cues": cues}))
    page.add(NIGHT, 21)
    page.part("file").send_keys(str(file))
    page.until(lambda: "1 of 1 cues" in page.part("notices").text)
    said = page.part("notices").text
    assert "Steps: a server takes the steps of its model, and not the timeline's, 1000, 500." in said
    assert "Length: it ends at frame 48; a session goes on." in said
    assert "Model: the session's is pocket, not the file's, longlive-1.3b." in said
    assert "Seed: the session's is 7, not the file's, 9. Height: the session's is 96, not the file's, 64." in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("&nbsp;", "the prompt is empty once '&nbsp;' is cleaned"),
        ("x" * 10_001, "10001 characters"),
        (r"a \ud83d lake", "half a character"),
    ],
    ids=["cleaned", "long", "half"],
)
def test_a_prompt_that_cannot_be_is_refused_in_words_and_the_page_goes_on(
    page: Page, text: str, words: str
) -> None:
    page.driver.execute_script(f"arguments[0].value = '{text}'", page.part("text"))
    page.press("go")
    page.until(lambda: words in page.part("notices").text)
    page.start(NOON)


def test_a_prompt_that_is_too_long_for_the_model_is_told_as_it_applies(page: Page) -> None:
    page.driver.execute_script("arguments[0].value = arguments[1]", page.part("text"), f"{NOON} " * 100)
    page.press("go")
    page.until(lambda: "the model does not read its last" in page.part("notices").text)


def test_cues_that_a_list_does_not_show_are_counted(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    file.write_text(json.dumps({"cues": [{"frame": 12 * n, "prompt": f"{NOON} {n}"} for n in range(300)]}))
    page.part("file").send_keys(str(file))
    page.until(lambda: "300 of 300 cues" in page.part("notices").text)
    page.until(lambda: "and 100 cues more" in page.part("pending").text)


def test_a_picture_size_is_chosen_of_those_that_the_server_offers(page: Page, stub: Stub) -> None:
    page.driver.find_element("css selector", "#new-session summary").click()
    sizes = Select(page.part("sizes"))
    page.until(lambda: "(the model's)" in sizes.options[0].text)
    assert [option.text for option in sizes.options][1:] == ["another size"]
    assert not page.part("width").is_displayed()
    sizes.select_by_visible_text("another size")
    page.write("width", "64")
    page.write("height", "32")
    page.start(NOON)
    options = session_of(stub, page).options
    assert (options.height, options.width, options.seed) == (32, 64, 7)
    assert page.picture().shape == (32, 64, 4)


def test_what_cannot_be_done_is_said_in_words(page: Page) -> None:
    page.press("go")
    page.until(lambda: "No cue is at frame 0, where the video begins" in page.part("notices").text)
    assert page.state == "created"


def test_a_spectator_sees_the_same_and_steers_nothing(page: Page) -> None:
    page.start(NOON)
    page.open(f"#watch={page.session}")
    page.until_frame(12)
    assert page.cues("applied") == {0: NOON}
    assert not page.part("go").is_enabled()
    assert not page.part("add").is_enabled()


def test_a_second_page_takes_over_and_the_first_looks_on_until_it_takes_over_again(page: Page) -> None:
    page.start(NOON)
    first, session = page.driver.current_window_handle, page.session
    page.driver.switch_to.new_window("tab")
    page.open(f"#session={session}")
    page.until(lambda: page.state == "running" and page.part("go").is_enabled())
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.until(lambda: page.part("take-over").is_displayed())
    assert not page.part("go").is_enabled()
    page.cut()
    page.until_frame(page.frame + 24)
    assert page.part("take-over").is_displayed()
    page.driver.switch_to.window(second)
    assert not page.part("take-over").is_displayed()
    page.driver.switch_to.window(first)
    page.press("take-over")
    page.until(lambda: page.state == "running" and page.part("go").is_enabled())
    assert page.session == session
    page.driver.switch_to.window(second)
    page.until(lambda: page.part("take-over").is_displayed())
    page.driver.close()
    page.driver.switch_to.window(first)
    page.press("go")
    page.until(lambda: page.state == "paused")


def test_what_was_asked_over_a_lost_connection_is_done_once_and_what_was_rejected_never(
    page: Page, stub: Stub
) -> None:
    page.start(NOON)
    name = page.session
    script = """
    const [session, done] = arguments;
    import("/static/longtake.js").then(async (longtake) => {
      const reactor = longtake.connect(location.origin, { session });
      await new Promise((ready) => reactor.onStatus((status) => status === "ready" && ready()));
      const written = reactor.ask("schedule_prompt", { new_prompt: "a blue sailboat" });
      sockets.at(-1).close();
      const unwritten = reactor.ask("schedule_prompt", { new_prompt: "a green kite", timestamp: 3000 });
      const receipts = await Promise.all([written, unwritten]);
      sockets.at(-1).close();
      const reset = reactor.ask("reset").catch((error) => error.code);
      reactor.disconnect();
      done([...receipts.map((receipt) => receipt.stage), await reset]);
    });
    """
    assert page.driver.execute_async_script(script, name) == ["accepted", "accepted", "UNAVAILABLE"]
    page.until_frame(page.frame + 36)
    session = stub.GetSession(pb.GetSessionRequest(session_id=name))
    cues = [*(applied.cue for applied in session.applied), *session.pending]
    assert [cue.prompts[0].text for cue in cues] == [NOON, "a blue sailboat", "a green kite"]
    assert session.take == 0


def test_another_page_uses_the_shim(page: Page) -> None:
    script = """
    const done = arguments[0];
    import("/static/longtake.js").then(async (longtake) => {
      const reactor = longtake.connect(location.origin);
      const progress = [];
      reactor.onMessage(({ type, data }) => {
        if (type === "progress") progress.push(data.current_start_frame);
        if (progress.at(-1) === 33) { reactor.disconnect(); done(progress); }
      });
      await reactor.sendMessage({ type: "schedule_prompt", data: { new_prompt: "a red balloon", timestamp: 0 } });
      await reactor.sendMessage({ type: "start" });
    });
    """
    assert page.driver.execute_async_script(script) == [0, 9, 21, 33]


def test_the_page_is_as_wide_as_a_phone(page: Page) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.start(NOON)
        assert page.driver.execute_script("return document.scrollingElement.scrollWidth") <= 390
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
