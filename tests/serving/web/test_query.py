from __future__ import annotations

import base64

import pytest
from starlette.datastructures import QueryParams

from serving.errors import InvalidRequest, NotAllowed
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.web.query import TOKEN_PREFIX, Address, read_token


def address(query: dict[str, str]) -> Address:
    return Address.of(QueryParams(query))


def test_an_empty_query_asks_for_a_new_session_as_the_server_likes_it() -> None:
    assert address({}) == Address(None, False, None, None, pb.SessionOptions())


def test_a_query_carries_the_options_of_a_session() -> None:
    query = {"model": "pocket", "seed": str((1 << 64) - 1), "height": "96", "fps": "0", "lease_s": "1.5"}
    options = address(query).options
    assert (options.model, options.seed, options.height) == ("pocket", (1 << 64) - 1, 96)
    assert (options.HasField("fps"), options.fps, options.lease.ToMilliseconds()) == (True, 0, 1500)


def test_a_query_may_ask_for_a_session_that_takes_pictures() -> None:
    options = address({"input": "video", "fit": "fit", "noise_scale": "0.5"}).options
    assert (options.input, options.fit, options.noise_scale) == (
        pb.INPUT_KIND_VIDEO,
        pb.PICTURE_FIT_WHOLE,
        0.5,
    )
    assert address({"input": "none"}).options == pb.SessionOptions()


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"sed": "7"}, "the parameter 'sed' is unknown; known: session, watch"),
        ({"seed": "-1"}, "seed is '-1'; it must be a whole number from 0 on"),
        ({"seed": str(1 << 64)}, "seed is 18446744073709551616, which no message can carry"),
        ({"height": "9" * 19}, "height is 9999999999999999999, which no message can carry"),
        ({"lease_s": "soon"}, "lease_s is 'soon'; it must be a number"),
        ({"lease_s": "nan"}, "lease_s is nan, which no message can carry"),
        ({"lease_s": "1e300"}, "lease_s is a number of more than 24 digits"),
        (
            {"session": "s", "from": "9" * 19},
            "from is 9999999999999999999; it must be at most",
        ),
        ({"watch": "1"}, "watch needs a session"),
        ({"watch": "no", "session": "s"}, "watch is 'no'; known: 0, false, 1, true"),
        ({"reattach": "2", "session": "s"}, "reattach is '2'; known: 0, false, 1, true"),
        ({"input": "camera"}, "input is 'camera'; known: none, video"),
        ({"input": "video", "fit": "crop"}, "fit is 'crop'; known: fill, fit, stretch"),
        ({"input": "video", "noise_scale": "much"}, "noise_scale is 'much'; it must be a number"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_words(query: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        address(query)
    assert reason in str(refusal.value)


def test_a_parameter_that_comes_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the parameter 'seed' comes twice"):
        Address.of(QueryParams("seed=1&fps=16&seed=2"))


@pytest.mark.parametrize(
    ("text", "says"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False)]
)
def test_a_flag_says_yes_or_no(text: str, says: bool) -> None:
    assert address({"session": "s", "watch": text}).watch is says


@pytest.mark.parametrize(
    ("query", "frame"),
    [
        ({}, 40),
        ({"from": "57"}, 57),
        ({"from": "57", "take": "2"}, 57),
        ({"from": "57", "take": "1"}, 40),
        ({"from": "3"}, 21),
    ],
    ids=["as seen", "as asked", "in its take", "in an earlier take", "as far as kept"],
)
def test_a_stream_begins_where_the_viewer_is(query: dict[str, str], frame: int) -> None:
    session = pb.Session(take=2, shown_frame=40, oldest_frame=21)
    assert address({"session": "s", **query}).first_frame(session) == frame


def test_a_query_says_who_asks_and_whether_it_was_here_before() -> None:
    asked = address({"session": "s", "client_id": "ann", "command_id": "1", "reattach": "1"})
    assert (asked.client_id, asked.command_id, asked.reattach) == ("ann", "1", True)


def test_a_token_comes_in_a_header_or_as_a_subprotocol() -> None:
    encoded = base64.urlsafe_b64encode("geheim?ü".encode()).decode().rstrip("=")
    assert read_token({"authorization": "Bearer one"}) == "one"
    assert read_token({}, ["longtake.v1", TOKEN_PREFIX + encoded]) == "geheim?ü"
    assert read_token({}) is None


@pytest.mark.parametrize(
    ("headers", "protocols"),
    [({"authorization": "Basic b25l"}, []), ({}, [TOKEN_PREFIX + "a"]), ({}, [TOKEN_PREFIX + "_w"])],
)
def test_a_token_that_cannot_be_read_lets_nobody_in(headers: dict[str, str], protocols: list[str]) -> None:
    with pytest.raises(NotAllowed):
        read_token(headers, protocols)
