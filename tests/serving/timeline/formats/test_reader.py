from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.timeline
from serving.errors import TimelineError
from serving.timeline.cue import LAST_FRAME, Blend, Cue, Restyling, Transition
from serving.timeline.formats import yaml_events
from serving.timeline.formats.native import own_document
from serving.timeline.formats.reader import (
    MAX_BYTES,
    MAX_YAML_BYTES,
    ReadTimeline,
    parse_timeline,
    read_timeline,
)
from serving.timeline.formats.yaml_events import YamlReader
from serving.timeline.schedule import schedule
from serving.timeline.timecode import timecode
from serving.timeline.timeline import Settings, Timeline
from tests.support.prompts import prompts

ASSETS = Path(__file__).parents[3] / "assets" / "timelines"
ROOM = Path(serving.timeline.__file__).parent
EXAMPLE = ROOM / "example.yaml"
SCHEMA = json.loads((ROOM / "timeline.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

NAMES = ["clip.yaml", "clip.json", "clip.scope-workflow.json", "clip.txt"]
PLACE = re.compile(r"(the file|line \d+(, column \d+)?|byte \d+|([\w$.\[\]-]|'.*'|\".*\")+): \S", re.ASCII)


def read(document: object, name: str = "clip.json") -> ReadTimeline:
    text = document if isinstance(document, str) else json.dumps(document)
    return parse_timeline(text.encode(), name)


def refusal(data: bytes, name: str) -> str | None:
    """Why the bytes are refused: one sentence with a place; None if they are a timeline that can be scheduled."""
    try:
        schedule(parse_timeline(data, name).timeline)
    except TimelineError as error:
        message = str(error)
        assert PLACE.match(message), message
        assert message.isprintable(), message
        assert len(message) < 500, message
        assert not message.endswith("."), message
        return message
    return None


def own(**changes: Any) -> dict[str, Any]:
    return {"cues": [{"frame": 0, "prompt": "noon"}, {"frame": 96, "prompt": "dusk"}], **changes}


def cue(**changes: Any) -> dict[str, Any]:
    return own(cues=[{"frame": 0, "prompt": "noon"}, {"frame": 96, "prompt": "dusk", **changes}])


# Longtake's own format


def test_the_example_is_what_its_comments_say() -> None:
    timeline = read_timeline(EXAMPLE).timeline
    assert [found.frame for found in timeline.cues] == [0, 128, 264, 384]
    assert timeline.cues[1].transition == Transition(4, "slerp")
    assert [weight for _, weight in timeline.cues[3].blend.parts] == [70, 30]
    assert (timeline.frames, timeline.settings) == (480, Settings(seed=42))


def test_yaml_and_json_say_the_same() -> None:
    document = yaml.safe_load(EXAMPLE.read_text())
    assert read(document).timeline == read_timeline(EXAMPLE).timeline


@pytest.mark.parametrize(
    ("time", "frame"),
    [
        ({"frame": 48}, 48),
        ({"frame": 48.0}, 48),
        ({"seconds": 2.98}, 48),
        ({"seconds": 3}, 48),
        ({"at": "00:02.98"}, 48),
        ({"at": "0:03"}, 48),
        ({"at": "00:00:03"}, 48),
        ({"at": "00:00:02.980"}, 48),
        ({"at": "00:00:02:15"}, 47),
        ({"at": "01:00:00:01"}, 57601),
        ({"at": "75:30.5"}, 72488),
        ({"at": "01:15:30.5"}, 72488),
    ],
    ids=str,
)
def test_a_cue_says_its_time_by_frame_by_seconds_or_by_timecode(time: dict[str, Any], frame: int) -> None:
    document = own(cues=[{"at": "00:00", "prompt": "noon"}, {"prompt": "dusk", **time}])
    assert read(document).timeline.cues[1].frame == frame


@pytest.mark.parametrize("length", [{"frames": 100}, {"seconds": 6.25}, {"length": "00:06.250"}], ids=str)
def test_a_clip_says_its_length_in_the_same_three_ways(length: dict[str, Any]) -> None:
    assert read(own(**length)).timeline.frames == 100


@given(st.integers(0, 24 * 3600 * 16))
def test_the_timecode_of_a_frame_is_read_as_that_frame(frame: int) -> None:
    document = own(cues=[{"frame": 0, "prompt": "noon"}], length=timecode(max(frame, 1)))
    assert read(document).timeline.frames == max(frame, 1)


def test_settings_are_read() -> None:
    document = own(model="tiny", seed=7, height=64, width=96, steps=[1000, 500], version=1)
    assert read(document).timeline.settings == Settings(7, 64, 96, "tiny", (1000, 500))


texts = prompts(40)
parts = st.lists(st.tuples(texts, st.floats(0.001, 1_000_000)), min_size=1, max_size=4).map(tuple)
transitions = st.none() | st.builds(Transition, st.integers(1, 1000), st.sampled_from(["linear", "slerp"]))
restylings = st.none() | st.builds(
    Restyling, st.none() | st.floats(0.001, 1), st.none() | st.booleans(), st.booleans(), st.booleans()
)
sizes = st.none() | st.integers(1, 256).map(lambda tokens: 16 * tokens)
steps = st.none() | st.sets(st.integers(1, 1000), min_size=1, max_size=5).map(
    lambda s: tuple(sorted(s, reverse=True))
)
own_settings = st.builds(Settings, st.none() | st.integers(0, 2**64 - 1), sizes, sizes, st.none() | texts, steps)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    frames = sorted(draw(st.sets(st.integers(1, LAST_FRAME), max_size=5)))
    later = [Cue(frame, Blend(draw(parts)), draw(transitions), draw(restylings)) for frame in frames]
    length = draw(st.none() | st.integers(1, 1_382_400))
    return Timeline((Cue(0, Blend(draw(parts))), *later), length, draw(own_settings))


@settings(max_examples=100, deadline=None)
@given(timelines())
def test_a_timeline_that_is_written_is_read_back_the_same(timeline: Timeline) -> None:
    document = own_document(timeline)
    VALIDATOR.validate(document)
    assert read(document) == ReadTimeline(timeline, "longtake")


@settings(max_examples=100, deadline=None)
@given(timelines())
def test_yaml_that_other_programs_write_is_read_back_the_same(timeline: Timeline) -> None:
    text = yaml.safe_dump(own_document(timeline), default_style='"', allow_unicode=False)
    plain = re.sub(r'!!(int|float|bool) "([^"]*)"', r"\2", text)
    assert read(plain, "clip.yaml").timeline == timeline


BAD = [
    ([], "the file: a list must be a mapping of fields"),
    ({}, "the file: the field 'cues' is missing; it lists the prompts and their times"),
    (own(cue=[]), "the file: the field 'cue' is unknown; known: $schema, version, model, seed"),
    (own(cues={}), "cues: a mapping must be a list"),
    (own(cues=[]), "cues: no cue is at frame 0, where the stream begins; there are no cues"),
    (own(cues=[{"frame": 9, "prompt": "noon"}]), "cues: no cue is at frame 0, where the stream begins; cues"),
    (own(cues=["noon"]), "cues[0]: 'noon' must be a mapping of fields"),
    (own(cues=[{"prompt": "noon"}]), "cues[0]: a cue needs its time, as one of frame, seconds, at"),
    (own(version=2), "version: version 2 is unknown; known: 1"),
    (own(seed="42"), "seed: '42' must be a whole number"),
    (own(seed="4" * 5000), "seed: '4444444444"),
    (own(seed=True), "seed: true must be a whole number"),
    (own(seed=None), "seed: nothing must be a whole number"),
    (own(seed=1.5), "seed: 1.5 must be a whole number"),
    (own(seed=-1), "seed: -1 is outside 0..2^64-1"),
    (own(seed=10**100), "seed: a number of more than 24 digits is outside 0..2^64-1"),
    (own(height=479), "height: 479 is no multiple of 16 in 16..4096"),
    (own(width=1_000_000), "width: 1000000 is no multiple of 16 in 16..4096"),
    (own(steps=[500, 750]), "steps: step 750 follows 500; steps must descend"),
    (own(steps=[]), "steps: the list is empty; at least one denoising step is needed"),
    (own(steps=[750, "x"]), "steps[1]: 'x' must be a whole number"),
    (own(model=""), "model: the name of the model is empty"),
    (own(frames=0), "frames: 0 is outside 1..1382400, which are 24 hours"),
    (own(seconds=86401), "seconds: 86401 is outside 0..86400"),
    (own(length="24:00:01"), "length: '24:00:01' is outside 0..1382400 frames"),
    (own(frames=9, seconds=1), "the file: frames and seconds say the same thing; give one of them"),
    (cue(frame=0), "cues[1]: its frame 0 does not come after frame 0 of the cue before it"),
    (cue(frame=-5), "cues[1].frame: -5 is outside 0..9007199254740991 frames"),
    (cue(frame=2**53), "cues[1].frame: 9007199254740992 is outside 0..9007199254740991 frames"),
    (own(cues=[{"seconds": 6e14, "prompt": "noon"}]), "cues[0].seconds: 600000000000000.0 is outside 0..562949"),
    (cue(seconds=6), "cues[1]: frame and seconds say the same thing; give one of them"),
    (cue(until=7), "cues[1]: the field 'until' is unknown; known: frame, seconds, at, prompt, p"),
    (cue(prompt=""), "cues[1].prompt: the prompt is empty; say who or what is seen, and where"),
    (cue(prompt="\x1b[31m"), "cues[1].prompt: the prompt is empty once '\\x1b[31m' is cleaned; say who or"),
    (cue(prompt="&nbsp;"), "cues[1].prompt: the prompt is empty once '&nbsp;' is cleaned; say who or what is"),
    (cue(prompt=5), "cues[1].prompt: 5 must be a text"),
    (cue(prompt="a" * 10_001), "cues[1].prompt: the prompt has 10001 characters; at most 10000 are read"),
    (cue(prompts=[]), "cues[1]: a cue needs either prompt, a text, or prompts, a list of texts with weights"),
    (cue(transition={"blocks": 0}), "cues[1].transition.blocks: 0 blocks are outside 1..1000"),
    (cue(transition={}), "cues[1].transition: the field 'blocks' is missing; it says over how many blocks"),
    (cue(transition={"blocks": 2, "method": "cubic"}), "cues[1].transition.method: 'cubic' is unknown; known"),
    (cue(transition={"blocks": 2, "steps": 2}), "cues[1].transition: the field 'steps' is unknown; known"),
    (
        own(cues=[{"frame": 0, "prompt": "noon", "transition": {"blocks": 2}}]),
        "cues[0].transition: the cue at frame 0 has no prompt before it to change from",
    ),
]  # fmt: skip

BAD_PARTS = [
    ([], "cues[0].prompts: the list is empty; at least one prompt is needed"),
    ([{"text": "a"}, {"text": " "}], "cues[0].prompts[1].text: the prompt is empty"),
    ([{"text": "a", "weight": -1}], "cues[0].prompts[0].weight: -1 is outside 0..1000000"),
    ([{"text": "a", "weight": 10**400}], "cues[0].prompts[0].weight: a number of more than 24 digits is outside"),
    ([{"text": "a", "weight": 0}], "cues[0].prompts: all weights are 0; one must be positive"),
    ([{"weight": 1}], "cues[0].prompts[0]: the field 'text' is missing"),
    ([{"text": "a", "wait": 1}], "cues[0].prompts[0]: the field 'wait' is unknown; known: text, weight"),
    (["a"], "cues[0].prompts[0]: 'a' must be a mapping of fields"),
    ([{"text": "a"}] * 17, "cues[0].prompts: 17 prompts are blended; at most 16 can be"),
]
BAD += [(own(cues=[{"frame": 0, "prompts": prompts}]), message) for prompts, message in BAD_PARTS]

GOOD = [
    own(),
    own(version=1, model="tiny", seed=2**64 - 1, height=16, width=4096, steps=[1000, 1], frames=1),
    own(**{"$schema": "timeline.schema.json"}, seconds=0.1),
    own(length="24:00:00"),
    cue(frame=96.0),
    cue(transition={"blocks": 1000}),
    cue(transition={"blocks": 1, "method": "linear"}),
    own(cues=[{"at": "00:00:00:00", "prompts": [{"text": "a", "weight": 0}, {"text": "b"}]}]),
    own(cues=[{"seconds": 0, "prompt": "a" * 10_000}]),
]


@pytest.mark.parametrize(("document", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_a_document_that_cannot_be_used_is_refused_with_place_value_and_rule(document: Any, message: str) -> None:
    refused = refusal(json.dumps(document).encode(), "clip.json")
    assert refused is not None
    assert refused.startswith(message)


@pytest.mark.parametrize(
    "at",
    ["", "5", "1:99", "1:5", "-1:00", "00:00:00:16", "00:60:00", "1:00:00:00:00", "\u0660\u0660:\u0660\u0661"],
)
def test_what_is_no_timecode_is_refused(at: str) -> None:
    document = own(cues=[{"at": at, "prompt": "noon"}])
    assert (refusal(json.dumps(document).encode(), "clip.json") or "").startswith("cues[0].at: ")


def test_a_file_without_a_cue_at_the_beginning_is_refused_when_it_is_read() -> None:
    with pytest.raises(TimelineError, match="cues: no cue is at frame 0"):
        read(own(cues=[{"frame": 9, "prompt": "noon"}]))


# What the order of cues, their sum of weights, or a time with another one means, no schema can say.
BEYOND_SCHEMA = (
    "its frame", "where the stream begins; cues", "all weights", "is cleaned", "has no prompt before",
    "must descend", "'24:00:01'",
)  # fmt: skip


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("document", GOOD)
def test_what_the_parser_reads_the_schema_allows(document: Any) -> None:
    assert refusal(json.dumps(document).encode(), "clip.json") is None
    VALIDATOR.validate(document)


def test_what_the_schema_forbids_the_parser_refuses_and_the_other_way_round() -> None:
    differing = [
        m for document, m in BAD if VALIDATOR.is_valid(document) and not any(b in m for b in BEYOND_SCHEMA)
    ]
    assert differing == []


@pytest.mark.parametrize("path", [EXAMPLE])
def test_the_example_obeys_the_schema(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text()))


# YAML


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("prompt: yes", "yes"),
        ("prompt: 1:30", "1:30"),
        ("prompt: 2024-01-01", "2024-01-01"),
        ("prompt: 0x1F", "0x1F"),
        ("prompt: '5'", "5"),
        ("prompt: <<", "<<"),
        ("prompt: |\n      two\n      lines", "two\nlines\n"),
    ],
)
def test_yaml_turns_no_text_into_something_else(text: str, prompt: str) -> None:
    timeline = read(f"cues:\n  - frame: 0\n    {text}\n", "clip.yaml").timeline
    assert timeline.cues[0].blend.text == prompt


def test_a_timecode_without_quotes_is_not_a_number_to_base_sixty() -> None:
    timeline = read("cues:\n  - {at: 0:00, prompt: noon}\n  - {at: 1:30, prompt: dusk}\n", "clip.yaml").timeline
    assert timeline.cues[1].frame == 90 * 16


def test_a_prompt_may_be_repeated_by_an_alias() -> None:
    text = "cues:\n- {frame: 0, prompt: &noon noon}\n- {frame: 99, prompt: dusk}\n- {frame: 200, prompt: *noon}\n"
    assert read(text, "clip.yaml").timeline.cues[2].blend == Blend.of("noon")


def test_what_aliases_repeat_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: list[str] = []

    def scalar(event: Any) -> str:
        scalars.append(event.value)
        return scalars[-1]

    monkeypatch.setattr(yaml_events, "_scalar", scalar)
    YamlReader("[&a one, " + "*a, " * 100 + "two]").read()
    assert scalars == ["one", "two"]


def test_aliases_repeat_no_more_characters_than_can_be_held() -> None:
    text = f"- &a {'x' * 9000}\n" + "- *a\n" * 467
    with pytest.raises(TimelineError, match="line 468, column 3: aliases repeat more than 4194304 characters"):
        YamlReader(text).read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: nothing must be a mapping of fields"),
        ("cues", "the file: 'cues' must be a mapping of fields"),
        ("cues: [", "line 2, column 1: no YAML: "),
        ("a: 1\n\tb: 2", "line 2, column 1: no YAML: "),
        ("cues: []\n---\ncues: []", "line 2, column 1: no YAML: but found another document"),
        ("seed: 1\nseed: 2\ncues: []", "line 2, column 1: the field 'seed' occurs twice in one mapping"),
        ("cues:\n- {frame: 0, prompt: a, frame: 0}", "line 2, column 25: the field 'frame' occurs twice"),
        ("[a]: 1", "line 1, column 1: the name of a field must be a text"),
        ("<<: {seed: 1}\ncues: []", "the file: the field '<<' is unknown; known: "),
        (
            "seed: !!python/object/apply:os.getcwd []",
            "line 1, column 7: the tag 'tag:yaml.org,2002:python/object/",
        ),
        ("seed: 010\ncues: []", "seed: '010' must be a whole number"),
        ("seed: 1_000\ncues: []", "seed: '1_000' must be a whole number"),
        ("seconds: .inf\ncues: []", "seconds: inf is not a finite number"),
        ("seconds: .nan\ncues: []", "seconds: nan is not a finite number"),
        ("seconds: 1e999\ncues: []", "seconds: inf is not a finite number"),
        ("cues: &a [*a]", "line 1, column 7: an alias repeats this list or mapping; only texts can be"),
        ("a: &a [x]\nb: [*a, *a]", "line 1, column 4: an alias repeats this list or mapping"),
        ("cues: *a", "line 1, column 7: no YAML: found undefined alias"),
        ('cues: "\\UFFFFFFFF"', "line 1, column 10: no YAML: found invalid Unicode character escape code"),
        ("[" * 1000, "the file: lists and mappings are nested more than 32 deep"),
        ("cues: \x00", "the file: no YAML: unacceptable character #x0000"),
        ("seed: " + "1" * 5000, "the file: no YAML: Exceeds the limit"),
    ],
    ids=lambda value: value[:30],
)
def test_yaml_that_is_wrong_or_sly_is_refused(text: str, message: str) -> None:
    assert (refusal(text.encode(), "clip.yaml") or "").startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: no JSON: Expecting value"),
        ('{"cues": [}', "line 1, column 11: no JSON: Expecting value"),
        ('{"seed": 1,\n"seed": 2}', "the file: the field 'seed' occurs twice in one mapping"),
        ('{"seconds": NaN}', "seconds: nan is not a finite number"),
        ('{"a\\nb": NaN}', "'a\\nb': nan is not a finite number"),
        ('{"seconds": 1e999}', "seconds: inf is not a finite number"),
        ('{"settings": {"x": [0, -Infinity]}}', "settings.x[1]: -inf is not a finite number"),
        ("[" * 100_000, "the file: lists and mappings are nested more than 32 deep"),
        ("[" * 40 + "]" * 40, "[0][0]"),
        ('{"seed": ' + "1" * 5000 + "}", "the file: a number cannot be read: Exceeds the limit"),
        (
            '{"cues": [{"frame": 0, "prompt": "a\\ud800"}]}',
            "cues[0].prompt: the prompt contains '\\ud800', half a",
        ),
    ],
    ids=lambda value: value[:30],
)
def test_json_that_is_wrong_or_sly_is_refused(text: str, message: str) -> None:
    assert (refusal(text.encode(), "clip.json") or "").startswith(message)


# Scope


def scope(*segments: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"prompts": list(segments), "settings": {}, "version": "2.1", **changes}


def segment(start: float, end: float, **changes: Any) -> dict[str, Any]:
    return {"startTime": start, "endTime": end, "prompts": [{"text": f"from {start}", "weight": 100}], **changes}


def test_a_scope_2_0_timeline_is_read_with_its_settings() -> None:
    found = read_timeline(ASSETS / "lighthouse-scope-2.0.json")
    assert [one.frame for one in found.timeline.cues] == [0, round(16 * 8.2334999999)]
    assert found.timeline.frames == round(16 * 19.75120000004)
    assert found.timeline.settings == Settings(42, 480, 832, None, (1000, 750))
    assert found.warnings == (
        "settings: noiseScale, noiseController, manageCache have no meaning here and are ignored",
    )
    assert found.notes[0].startswith("settings.pipelineId is 'longlive', which is only advice: the model is")


def test_a_scope_2_1_timeline_has_blends_and_transitions() -> None:
    found = read_timeline(ASSETS / "lighthouse-scope-2.1.json")
    assert [one.transition for one in found.timeline.cues] == [None, Transition(4, "slerp")]
    assert [weight for _, weight in found.timeline.cues[1].blend.parts] == [75, 25]
    assert "prompts[1]: the segment is shorter than a frame and is dropped" in found.warnings


def test_a_scope_workflow_is_read_with_the_parameters_of_its_main_pipeline() -> None:
    found = read_timeline(ASSETS / "lighthouse.scope-workflow.json")
    assert [(one.frame, one.transition) for one in found.timeline.cues] == [
        (0, None),
        (120, Transition(2, "linear")),
    ]
    assert found.timeline.settings == Settings(7, 320, 576, None, (1000, 750, 500, 250))
    assert found.warnings == (
        "pipelines[0]: the pipeline 'video-depth-anything' has no counterpart here and is ignored",
        "pipelines[1].loras[0]: the LoRA 'ink.safetensors' with weight 0.8 is not loaded; "
        "--lora FILE:WEIGHT does that",
        "pipelines[1].params: manage_cache, input_mode have no meaning here and are ignored",
        "the file: prompts, interpolation_method, transition_steps, temporal_interpolation_method have no meaning "
        "here and are ignored",
    )


@pytest.mark.parametrize(
    "names",
    [("video-depth-anything", "longlive"), ("longlive", "rife"), ("gray", "my-plugin"), ("other", "memflow")],
)
@pytest.mark.parametrize("role", [{}, {"role": None}, {"role": "main"}], ids=["no role", "null", "all main"])
def test_the_pipeline_that_generates_is_the_main_one_wherever_it_stands(
    names: tuple[str, str], role: dict[str, str | None]
) -> None:
    size = {"longlive": 320, "memflow": 320, "my-plugin": 320}
    pipelines = [
        {"pipeline_id": name, **role, "params": {"height": size.get(name, 64), "denoising_steps": [1000, 500]}}
        for name in names
    ]
    found = read({"format": "scope-workflow", "pipelines": pipelines, "prompts": [{"text": "noon"}]})
    assert (found.timeline.settings.height, found.timeline.settings.steps) == (320, (1000, 500))
    assert [warning for warning in found.warnings if "has no counterpart" in warning] == [
        f"pipelines[{place}]: the pipeline '{name}' has no counterpart here and is ignored"
        for place, name in enumerate(names) if name not in size
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("roles", "generates"),
    [
        ({"video-depth-anything": "main", "longlive": "generator"}, "longlive"),
        ({"longlive": "preprocessor", "rife": "main"}, "longlive"),
        ({"longlive": "preprocessor", "my-plugin": "main"}, "my-plugin"),
    ],
)
def test_a_generator_whatever_its_role_is_preferred_to_a_main_pipeline_that_generates_nothing(
    roles: dict[str, str], generates: str
) -> None:
    pipelines = [
        {"pipeline_id": name, "role": role, "params": {"height": 320 if name == generates else 64}}
        for name, role in roles.items()
    ]
    found = read({"format": "scope-workflow", "pipelines": pipelines, "prompts": [{"text": "noon"}]})
    assert found.timeline.settings.height == 320


def test_a_scope_workflow_without_a_timeline_gives_its_prompt() -> None:
    found = read({"format": "scope-workflow", "prompts": [{"text": "noon", "weight": 100}], "timeline": None})
    assert found.timeline == Timeline((Cue(0, Blend((("noon", 100.0),))),))
    assert found.format == "scope workflow"


RESTYLED = {"pipelineId": "streamdiffusionv2", "noiseScale": 0.6, "noiseController": False, "manageCache": True}


def restyled(settings: dict[str, Any], *segments: dict[str, Any]) -> list[Restyling | None]:
    data = json.dumps(scope(*segments or (segment(0, 5), segment(5, 9)), settings=settings)).encode()
    return [one.restyling for one in parse_timeline(data, "clip.json", restyles=True).timeline.cues]


def test_what_scopes_restyler_sets_of_pictures_holds_for_pictures() -> None:
    assert restyled(RESTYLED) == [Restyling(0.6, False), Restyling(cuts=True)]
    assert restyled(RESTYLED | {"manageCache": False, "inputMode": "video"}) == [Restyling(0.6, False), None]
    assert restyled({"pipelineId": "streamdiffusionv2"}) == [None, None]


def test_its_cache_is_kept_in_a_transition_and_where_the_prompt_stays() -> None:
    texts = [{"text": "noon", "weight": 100}]
    segments = (segment(0, 5, prompts=texts), segment(5, 9, prompts=texts), segment(9, 13, transitionSteps=3))
    assert restyled(RESTYLED, *segments) == [Restyling(0.6, False), None, None]


@pytest.mark.parametrize("changed", [{"pipelineId": "longlive"}, {"inputMode": "text"}])
def test_it_means_nothing_to_other_pipelines_and_where_videos_are_of_prompts_alone(
    changed: dict[str, str],
) -> None:
    assert restyled(RESTYLED | changed) == [None, None]
    found = read(scope(segment(0, 5), segment(5, 9), settings=RESTYLED | changed))
    assert found.warnings[0].startswith("settings: noiseScale, noiseController, manageCache")


def test_without_pictures_it_is_ignored_with_a_warning() -> None:
    found = read(scope(segment(0, 5), segment(5, 9), settings=RESTYLED))
    assert [one.restyling for one in found.timeline.cues] == [None, None]
    assert found.warnings == (
        "settings: noiseScale, noiseController, manageCache: only where pictures are restyled, and ignored here",
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noiseScale": 0}, "settings.noiseScale: 0.0 is outside 0..1"),
        ({"noiseScale": 1.5}, "settings.noiseScale: 1.5 is"),
        ({"noiseController": "yes"}, "settings.noiseController: 'yes' is neither true nor false"),
        ({"manageCache": 1}, "settings.manageCache: 1 is neither true nor false"),
    ],
)
def test_what_pictures_cannot_be_restyled_by_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TimelineError) as refused:
        restyled(RESTYLED | wrong)
    assert str(refused.value).startswith(message)


def test_a_scope_workflow_sets_the_same_of_pictures() -> None:
    params = {"noise_scale": 0.6, "noise_controller": False, "manage_cache": True, "input_mode": "video"}
    entries = [
        {"start_time": start, "end_time": start + 5, "prompts": [{"text": f"from {start}"}]} for start in (0, 5)
    ]
    document = {
        "format": "scope-workflow", "timeline": {"entries": entries},
        "pipelines": [{"pipeline_id": "streamdiffusionv2", "params": params}],
    }  # fmt: skip
    found = parse_timeline(json.dumps(document).encode(), "clip.json", restyles=True)
    assert [one.restyling for one in found.timeline.cues] == [Restyling(0.6, False), Restyling(cuts=True)]
    assert found.warnings == ()


def test_a_scope_segment_may_have_a_text_alone() -> None:
    found = read(scope({"startTime": 0, "endTime": 5, "text": "noon", "id": "x", "color": "#fff", "isLive": True}))
    assert found.timeline.cues[0].blend.text == "noon"
    assert found.warnings == ()


def test_what_scope_ignores_is_ignored_with_a_warning() -> None:
    found = read(scope(segment(0, 5, mood="calm", transitionSteps=3), segment(5, 9), version="3.0", zoom=2))
    assert found.warnings == (
        "the file: zoom has no meaning here and is ignored",
        "version: '3.0' is unknown and read as '2.1'",
        "prompts[0]: mood has no meaning here and is ignored",
        "prompts[0]: no prompt comes before the first one, so it has no transition",
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=8), st.floats(-0.01, 0.01))
def test_scope_segments_start_at_the_nearest_frame_despite_noisy_times(lengths: list[float], noise: float) -> None:
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    starts = [0.0, *(max(0.0, end + noise) for end in ends[:-1])]
    document = scope(*(segment(start, max(end, start)) for start, end in zip(starts, ends, strict=True)))
    message = refusal(json.dumps(document).encode(), "clip.json")
    if message is None:
        frames = [one.frame for one in read(document).timeline.cues]
        assert set(frames) <= {round(16 * start) for start in starts}
    else:
        assert "no segment is as long as a frame" in message or sum(lengths) < 0.1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (scope(), "prompts: the list is empty; at least one segment is needed"),
        (scope(segment(1, 5)), "prompts[0]: the first segment begins at 1 s; a prompt is needed at 0"),
        (
            scope(segment(0, 5), segment(6, 9)),
            "prompts[1]: it begins at 6 s, after 5 s, where prompts[0] ends: a gap",
        ),
        (
            scope(segment(0, 5), segment(4, 9)),
            "prompts[1]: it begins at 4 s, before 5 s, where prompts[0] ends: an ov",
        ),
        (
            scope(segment(0, 5), segment(5, 9), segment(2, 3)),
            "prompts[2]: it begins at 2 s, before 9 s, where prompts[1] ends: out of order",
        ),
        (
            scope(segment(0, 5), segment(5, 4)),
            "prompts[1].endTime: the segment ends at 4 s, before it begins at 5 s",
        ),
        (scope(segment(0, 0)), "prompts: no segment is as long as a frame"),
        (scope(segment(-1, 5)), "prompts[0].startTime: -1 is outside 0..86400"),
        (scope({"startTime": 0, "prompts": []}), "prompts[0]: the field 'endTime' is missing"),
        (scope({"startTime": 0, "endTime": 5}), "prompts[0]: neither prompts nor a text says what is to be seen"),
        (scope(segment(0, 5, prompts=[{"text": ""}])), "prompts[0].prompts[0].text: the prompt is empty"),
        (
            scope(segment(0, 5, prompts=[{"text": "a", "weight": -3}])),
            "prompts[0].prompts[0].weight: -3 is outside 0..1000000",
        ),
        (scope(segment(0, 5, transitionSteps="4")), "prompts[0].transitionSteps: '4' must be a whole number"),
        (
            scope(segment(0, 5), segment(5, 9, transitionSteps=2000)),
            "prompts[1].transitionSteps: 2000 blocks are outside 1..1000",
        ),
        (
            scope(segment(0, 5), segment(5, 9, transitionSteps=2, temporalInterpolationMethod="cubic")),
            "prompts[1].temporalInterpolationMethod: 'cubic' is unknown; known: linear, slerp",
        ),
        (
            scope(segment(0, 5), settings={"resolution": {"height": 481, "width": 832}}),
            "settings.resolution.height: 481 is no multiple of 16 in 16..4096",
        ),
        (
            scope(segment(0, 5), settings={"denoisingSteps": [500, 750]}),
            "settings.denoisingSteps: step 750 follows 500; steps must descend",
        ),
        (scope(segment(0, 5), settings={"seed": -1}), "settings.seed: -1 is outside 0..2^64-1"),
        (scope(segment(0, 5), settings=[]), "settings: a list must be a mapping of fields"),
        ({"format": "scope-workflow"}, "the file: it holds neither a timeline with entries nor prompts"),
        (
            {"format": "scope-workflow", "prompts": []},
            "the file: neither prompts nor a text says what is to be seen",
        ),
        (
            {"format": "scope-workflow", "prompts": [{"text": "\t"}]},
            "prompts[0].text: the prompt is empty",
        ),
        (
            {"format": "scope-workflow", "pipelines": [{"params": {"height": 5}}], "prompts": [{"text": "a"}]},
            "pipelines[0].params.height: 5 is no multiple of 16",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_scope_file_that_cannot_be_used_is_refused(document: Any, message: str) -> None:
    assert (refusal(json.dumps(document).encode(), "clip.json") or "").startswith(message)


# Plain text


def test_a_text_file_has_a_prompt_a_line_every_five_seconds() -> None:
    found = read_timeline(ASSETS / "lighthouse.txt")
    assert [one.frame for one in found.timeline.cues] == [0, 80, 160]
    assert found.timeline.frames == 240


def test_the_prompts_of_a_text_file_are_as_far_apart_as_one_says() -> None:
    timeline = parse_timeline(b"noon\r\n\r\n  # later\r\n dusk \r\n", "clip.txt", seconds_a_prompt=10).timeline
    assert timeline == Timeline((Cue(0, Blend.of("noon")), Cue(160, Blend.of("dusk"))), 320)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: no line holds a prompt"),
        ("# noon\n\n", "the file: no line holds a prompt"),
        ("noon\n" + "a" * 10_001, "line 2: the prompt has 10001 characters"),
        ("a\n" * 345_601, "line 345601: this is prompt number 345601; at most 345600 are read"),
    ],
    ids=["empty", "comment", "long", "many"],
)
def test_a_text_that_cannot_be_used_is_refused(text: str, message: str) -> None:
    assert (refusal(text.encode(), "clip.txt") or "").startswith(message)


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan"), float("inf"), 1e9])
def test_prompts_cannot_be_absurdly_near_or_far(seconds: float) -> None:
    with pytest.raises(TimelineError, match=r"seconds a prompt: .* is outside 1\.\.86400"):
        parse_timeline(b"noon", "clip.txt", seconds_a_prompt=seconds)


def test_texts_of_too_many_hours_are_refused() -> None:
    with pytest.raises(TimelineError, match=r"frames: 2560000 is outside 1\.\.1382400, which are 24 hours"):
        parse_timeline(b"noon\n" * 10_000, "clip.txt", seconds_a_prompt=16)


# Files


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(TimelineError, match=r"clip\.yaml: the file cannot be read: No such file or directory"):
        read_timeline(tmp_path / "clip.yaml")
    with pytest.raises(TimelineError, match="the file cannot be read: Is a directory"):
        read_timeline(tmp_path)


def test_an_error_in_a_file_names_the_file_and_the_place(tmp_path: Path) -> None:
    (tmp_path / "clip.yaml").write_text("cues: [{frame: 0}]")
    with pytest.raises(TimelineError) as caught:
        read_timeline(tmp_path / "clip.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'clip.yaml'}: cues[0]: a cue needs either prompt")


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (
            b"noon",
            "clip.toml",
            "the file: the suffix '.toml' is unknown; known: .yaml, .yml, .json, .scope-workflow",
        ),
        (b"noon", "clip", "the file: the suffix '' is unknown"),
        (b"noon \xff", "clip.txt", "byte 5: the file is not UTF-8 text"),
        (b"a" * (MAX_BYTES + 1), "clip.txt", "the file: it is longer than 16 MiB"),
        (
            b" " * (MAX_YAML_BYTES + 1),
            "clip.yml",
            "the file: it is longer than 256 KiB; as JSON it may",
        ),
    ],
    ids=["suffix", "no suffix", "not UTF-8", "long", "long YAML"],
)
def test_bytes_that_are_no_timeline_are_refused(data: bytes, name: str, message: str) -> None:
    assert (refusal(data, name) or "").startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" + "1," * 2_000_001 + "1]", "the file: it has more than 2000000 values, which no timeline has"),
        ('{"cues": [' + "{}," * 345_600 + "{}]}", "cues: the list has 345601 items; at most 345600 are read"),
        (
            '{"cues": [], "steps": [' + "1," * 1_000 + "1]}",
            "steps: the list has 1001 items; at most 1000 are read",
        ),
    ],
    ids=["values", "cues", "steps"],
)
def test_what_would_take_long_is_refused_before_it_is_looked_at(text: str, message: str) -> None:
    assert refusal(text.encode(), "clip.json") == message


def test_a_byte_order_mark_is_no_part_of_the_timeline() -> None:
    assert parse_timeline("\ufeffnoon".encode(), "CLIP.TXT").timeline.cues[0].blend.text == "noon"


# Thousands of malformed files: each is read, or refused in one sentence that names the place.

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
odd_values = scalars | st.sampled_from([10**400, -0.0, 1e308, "\ud800", "a" * 10_001, "1:30", "linear", [], {}])
values = st.recursive(
    odd_values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=5,
)
VALID = [
    (yaml.safe_load(EXAMPLE.read_text()), "clip.json"),
    *((json.loads(path.read_text()), path.name) for path in sorted(ASSETS.glob("*.json"))),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Any, str]:
    """A valid document in which one to three things have been replaced, removed, renamed, repeated or added."""
    document, name = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        found = places(document)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["replace", "number", "remove", "repeat", "add"])):
            case "replace":
                container[key] = draw(values)
            case "number":
                container[key] = draw(st.integers(-2000, 2000) | st.floats(-100, 100))
            case "remove":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.insert(draw(st.integers(0, len(container))), copy.deepcopy(container[key]))
            case _ if isinstance(container, dict):
                container[draw(st.text(max_size=6))] = draw(values)
    return document, name


@settings(max_examples=1200, deadline=None)
@given(damaged())
def test_a_damaged_document_is_read_or_refused_in_one_sentence(document: tuple[Any, str]) -> None:
    content, name = document
    message = refusal(json.dumps(content).encode(), name)
    if message is None and "cues" in content:
        VALIDATOR.validate(content)


@settings(max_examples=300, deadline=None)
@given(values, st.sampled_from(NAMES))
def test_any_json_is_read_or_refused_in_one_sentence(value: Any, name: str) -> None:
    refusal(json.dumps(value).encode(), name)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused_in_one_sentence(data: bytes) -> None:
    for name in NAMES:
        refusal(data, name)


SHORT_YAML = (
    "seed: 1\nlength: '00:30'\ncues:\n- {frame: 0, prompt: a}\n- at: '00:05'\n  prompts: [{text: b, weight: 3}]\n"
)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SHORT_YAML)),
            st.integers(0, 6),
            st.text("&*!|>%@`'\"{}[],:?-#~<=\\ \n\t01239.eExU\u2028\x85", max_size=6) | st.text(max_size=3),
        ),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_damaged_yaml_is_read_or_refused_in_one_sentence(edits: list[tuple[int, int, str]]) -> None:
    text = SHORT_YAML
    for start, length, insert in edits:
        text = text[:start] + insert + text[start + length :]
    refusal(text.encode("utf-8", "surrogatepass"), "clip.yaml")
