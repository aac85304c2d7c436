"""The parts of the page that need no browser, in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from engines.config.presets import preset
from engines.config.video_stream import AnyStreamConfig
from serving.hosts import host_of_target, is_loopback
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.web.app import STATIC
from serving.web.pictures import read_picture

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")

MODEL = preset("pocket")

STATE = {"session": "one", "model": "pocket", "seed": "7", "height": 32, "width": 48}


USED = (
    ("linkPlace", "replay.js"), ("moved", "exchange.js"), ("readPlace", "permalink.js"),
    ("CueFeed", "cue_feed.js"), ("Skips", "skips.js"),
    ("SilenceWatch", "silence.js"), ("Blocks", "blocks.js"), ("isInTheClear", "clear_text.js"),
    ("connect", "longtake.js"), ("Outbox", "outbox.js"), ("pageAfter", "moved.js"),
    ("readPiece, pictureMessage", "binary_messages.js"),
)  # fmt: skip

CLOCK = """
let now = 0, timers = [];
Date.now = () => now;
globalThis.document = { hidden: false };
globalThis.setInterval = (tick) => timers.push(tick);
const pass = (ms, step, look) => { for (const end = now + ms; now < end; now += step) look(); };
"""


def run(program: str) -> Any:
    """What the program, which has `say`, says last."""
    imports = "".join(f'import {{ {names} }} from "{(STATIC / file).as_uri()}";\n' for names, file in USED)
    say = "const say = (value) => console.log(JSON.stringify(value));\n"
    node = ["node", "--no-warnings", "--input-type=module", "-"]
    ended = subprocess.run(node, input=imports + say + program, check=True, capture_output=True, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def link(count: int, held: int, text: str = "noon", more: Mapping[str, object] = MappingProxyType({})) -> Any:
    """Where the link of a session with `count` cues, of which the page has `held`, leads to; None without one."""
    cues = [{"frame": 12 * n, "prompts": [{"text": text, "weight": 1}], **more} for n in range(count)]
    state = STATE | {"applied": cues[count - held :], "applied_count": count}
    file = {"cues": [{"frame": cue["frame"], "prompt": text, **more} for cue in cues]}
    return run(
        f"const place = await linkPlace({json.dumps(state)}, async () => ({json.dumps(file)}));"
        "say(place && readPlace(place));"
    )


@pytest.mark.parametrize(("count", "held"), [(3, 3), (100, 100), (101, 100), (400, 100)])
def test_a_link_has_all_cues_though_the_page_does_not(count: int, held: int) -> None:
    place = link(count, held)
    assert place["options"] == {"model": "pocket", "seed": "7", "height": "32", "width": "48"}
    assert place["cues"] == [{"timestamp": 12 * n, "new_prompt": "noon"} for n in range(count)]


CHANGES = {"transition": {"blocks": 4, "method": "slerp"}, "restyling": {"noise_scale": 0.8, "cuts": True}}
"""What a cue may bring beside its prompts."""


@pytest.mark.parametrize("held", [3, 2], ids=["the page's", "the server's"])
def test_a_link_has_all_that_cues_bring_beside_their_prompts(held: int) -> None:
    cues = link(3, held, more=CHANGES)["cues"]
    assert cues == [{"timestamp": 12 * n, "new_prompt": "noon", **CHANGES} for n in range(3)]


def test_so_has_a_timeline_that_comes_in_as_a_file() -> None:
    cue = {"timestamp": 12, "text": "noon", "prompts": [{"text": "noon", "weight": 1}], **CHANGES}
    (later,) = run(f"say(moved([{json.dumps(cue)}], 24));")
    assert later == {"timestamp": 36, "new_prompt": "noon", **CHANGES}


@pytest.mark.parametrize(("count", "text"), [(501, "noon"), (90, "a long prompt " * 60)])
def test_too_many_or_too_long_prompts_make_no_link(count: int, text: str) -> None:
    assert link(count, min(count, 100), text) is None


def test_many_cues_are_scheduled_a_part_at_a_time_and_all_of_them() -> None:
    sent = run(
        "const sent = []; const feed = new CueFeed(async (cue) => sent.push(cue));"
        "const first = await feed.add([...Array(5000).keys()]); const counts = [first, sent.length];"
        "for (const pending of [1500, 900, 100, 0]) { await feed.goOn(pending); counts.push(sent.length); }"
        "say([counts, feed.waiting, sent.every((cue, n) => cue === n)]);"
    )
    assert sent == [[2000, 2000, 2000, 3100, 5000, 5000], 0, True]


@pytest.mark.parametrize(
    ("page", "there"),
    [
        ("https://new.example", "https://new.example/#session=one"),
        ("https://new.example:8443/films", "https://new.example:8443/films/#session=one"),
        ("https://new.example/films/", "https://new.example/films/#session=one"),
        ("", None),
    ],
)
def test_a_page_goes_on_at_the_same_place_of_the_server_that_its_session_went_to(
    page: str, there: str | None
) -> None:
    assert run(f"say(pageAfter({{ page: '{page}' }}, 'http://old.example:8000/#session=one'));") == there


def test_the_bare_page_goes_on_at_the_other_servers() -> None:
    moved = "say(pageAfter({ page: 'https://new.example' }, 'http://old.example/bare#watch=one'));"
    assert run(moved) == "https://new.example/bare#watch=one"


def skips(program: str) -> Any:
    """What is told of a viewer who looks 10 times a second, and whose frames are at `frame`."""
    return run(
        f"{CLOCK} let frame = 100; const told = [];"
        "const skips = new Skips((skip) => told.push(skip));"
        "const look = () => { skips.look(true); skips.tell(frame); };"
        f"pass(1000, 100, look); {program} pass(3000, 100, look); say(told);"
    )


def test_a_sleep_is_told_once_the_video_goes_on() -> None:
    assert skips("now += 40000;") == [{"slept": 40.1, "frames": 0, "frame": 100}]


def test_what_was_skipped_behind_a_sleep_is_told_with_it() -> None:
    assert skips("now += 40000; look(); skips.add(500); frame = 601;") == [
        {"slept": 40.1, "frames": 500, "frame": 601}
    ]


def test_what_nobody_looks_at_is_told_when_somebody_does() -> None:
    told = skips(
        "document.hidden = true; for (let n = 0; n < 9; n++) { skips.add(50); pass(5000, 100, look); }"
        "document.hidden = false;"
    )
    assert told == [{"slept": 0, "frames": 450, "frame": 100}]


def test_nothing_is_told_of_a_video_that_plays_or_is_paused() -> None:
    assert skips("pass(60000, 100, look); skips.look(false); now += 40000; skips.look(false);") == []


def test_a_connection_that_says_nothing_is_lost_after_five_seconds_and_a_sleep_is_no_silence() -> None:
    program = (
        f"{CLOCK} let lost = 0; const watch = new SilenceWatch(() => lost++); const tick = timers[0];"
        "const ticks = (count) => { for (let n = 0; n < count; n++) tick(); return lost; };"
        "const opening = ticks(40); watch.heard(); const quiet = ticks(5); now += 40000;"
        "say([opening, quiet, ticks(1), ticks(40)]);"
    )
    assert run(program) == [0, 0, 1, 1]


@pytest.mark.parametrize("stream", [MODEL.stream, MODEL.video], ids=["text", "video"])
def test_the_page_counts_blocks_as_the_server_does(stream: AnyStreamConfig) -> None:
    lengths = stream.blocks
    first, later = lengths.pixel_frames_of(0), lengths.pixel_frames_of(1)
    counted = run(
        f"const blocks = new Blocks({{ first_block_frames: {first}, block_frames: {later} }});"
        "say([...Array(40).keys()].map((frame) => [blocks.blockOf(frame), blocks.appliesAt(frame)]));"
    )
    assert counted == [
        [lengths.block_at(frame + 1) - 1, lengths.pixel_frames(lengths.block_at(frame))] for frame in range(40)
    ]


def test_a_picture_is_written_as_the_server_reads_it() -> None:
    program = (
        "const message = pictureMessage(7, new Uint8Array([1, 2]).buffer, 'png', 62500.4);"
        "say([...new Uint8Array(await message.arrayBuffer())]);"
    )
    picture = read_picture(bytes(run(program))).picture
    assert picture == pb.Picture(id=7, time_us=62500, format=pb.PICTURE_FORMAT_PNG, data=b"\1\2")
    assert "known: jpeg, png, h264" in run(
        "try { pictureMessage(1, '', 'gif', 0); } catch (error) { say(error.message); }"
    )


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.9.8.7", "[::1]", "10.0.0.5", "[fd00::1]", "example.org", "0.0.0.0"]
)
def test_the_page_knows_this_machine_as_the_other_clients_do(host: str) -> None:
    known = run(f"say([isInTheClear('http://{host}:8000/'), isInTheClear('wss://{host}/ws')]);")
    assert known == [not is_loopback(host_of_target(f"{host}:8000")), False]


@pytest.mark.parametrize("host", ["localhost.example.org", "127.0.0.1.example.org", "mylocalhost"])
def test_a_name_that_only_looks_like_this_machines_is_another(host: str) -> None:
    assert run(f"say(isInTheClear('http://{host}/'));") is True


def test_a_token_goes_to_another_machine_in_the_clear_only_if_somebody_says_so() -> None:
    tried = run(
        "globalThis.WebSocket = class { constructor(...given) { opened.push(given); } }; const opened = [];"
        "const attempt = (options) => { try { connect('http://example.org', options); return null; }"
        "catch (error) { return [error.code, error.reason, error.message]; } };"
        "const answers = [{ token: 'geheim' }, {}, { token: 'geheim', insecure: true }].map(attempt);"
        "say([answers, opened.map(([, protocols]) => protocols.length)]); process.exit();"
    )
    code, reason, message = tried[0][0]
    assert (code, reason, tried[0][1:], tried[1]) == ("UNAUTHENTICATED", "INSECURE_TOKEN", [None, None], [1, 2])
    assert "the token would go to example.org in the clear" in message


def test_a_message_is_sent_until_it_is_answered_and_an_end_needs_no_answer_once_there_is_one() -> None:
    sent, told = run(
        "let open = false; const sent = []; const told = []; globalThis.setTimeout = (again) => again();"
        "const outbox = new Outbox((text) => open && sent.push(JSON.parse(text).id));"
        "const kept = (id) => (data) => told.push(id, data.stage ?? 'ended');"
        "const failed = (id) => (error) => told.push(id, error.code);"
        "const add = (id, type) => outbox.add(id, { type }, { kept: kept(id), failed: failed(id) });"
        "const answer = (id, stage, code) => "
        "outbox.answer({ type: 'receipt', data: { command_id: id, stage, error: { code } } });"
        "add('a', 'start'); add('a', 'start'); open = true; outbox.sendAll();"
        "answer('a', 'refused', 'UNAVAILABLE'); answer('a', 'applied'); answer('a', 'accepted'); outbox.sendAll();"
        "add('b', 'reset'); add('c', 'end'); outbox.close(true); say([sent, told]);"
    )
    assert sent == ["a", "a", "b", "c"]
    assert told == ["a", "INVALID_ARGUMENT", "a", "accepted", "b", "UNAVAILABLE", "c", "ended"]


HEARD = """
const sockets = [], wait = setTimeout;
globalThis.setTimeout = (again) => again();
globalThis.WebSocket = class {
  static OPEN = 1;
  constructor(url) { this.query = new URL(url).searchParams; this.readyState = 1; sockets.push(this); }
  close() { this.readyState = 3; }
};
const heard = [], reactor = connect("http://127.0.0.1:8000", { session: "one" });
reactor.onMessage(({ type }) => heard.push(type)); reactor.onFrames(({ first }) => heard.push(first));
const hear = (type, seq, data = {}) => sockets.at(-1).onmessage({ data: JSON.stringify({ type, seq, data }) });
const see = (first, frames, seq) => {
  const head = new DataView(new ArrayBuffer(24));
  [2, 0, first, frames].forEach((value, at) => head.setUint32(4 * at, value));
  head.setBigUint64(16, BigInt(seq));
  sockets.at(-1).onmessage({ data: head.buffer });
};
const state = (seq) => hear("state", seq, { session: "one", take: 0, state: "running" });
"""


def heard(program: str) -> Any:
    """What a connection to a session has told, and from where on each connection after the first was made."""
    asked = "sockets.slice(1).map(({ query }) => query.get('from'))"
    return run(f"{CLOCK} {HEARD} {program} say([heard, {asked}]); process.exit();")


def test_that_no_more_pictures_come_is_said_on_every_connection_until_another_does() -> None:
    program = """
    const sent = [];
    WebSocket.prototype.send = function (message) {
      const type = typeof message === "string" ? JSON.parse(message).type : "picture";
      sent.push([sockets.indexOf(this), type]);
    };
    const again = () => { sockets.at(-1).onclose({ code: 1006 }); sockets.at(-1).onopen(); };
    sockets[0].onopen();
    state(4);
    reactor.sendMessage({ type: "end_input" });
    again();
    reactor.sendPicture(new Uint8Array([1]).buffer);
    again();
    say(sent);
    process.exit();
    """
    assert run(f"{CLOCK} {HEARD} {program}") == [[0, "end_input"], [1, "end_input"], [1, "picture"]]


def test_where_the_numbers_of_events_skip_one_the_connection_is_made_again() -> None:
    program = "state(4); see(0, 9, 5); hear('progress', 5); hear('receipt', 7); state(7); see(9, 12, 8);"
    assert heard(program) == [["state", 0, "progress", "state", 9], ["9"]]


def test_progress_that_counts_more_than_was_heard_tells_that_something_is_missing() -> None:
    program = "state(4); see(0, 9, 5); hear('progress', 5); hear('progress', 6); state(6); see(9, 12, 7);"
    assert heard(program) == [["state", 0, "progress", "state", 9], ["9"]]


def test_numbers_are_skipped_up_to_the_first_frames_behind_a_gap_and_at_a_state() -> None:
    program = "state(4); hear('receipt', 9); see(0, 9, 10); hear('gap'); hear('receipt', 14); see(33, 12, 15);"
    program += "hear('resumed'); state(20); see(45, 12, 21);"
    assert heard(program) == [["state", "receipt", 0, "gap", "receipt", 33, "resumed", "state", 45], []]
