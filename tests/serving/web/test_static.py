"""The parts of the page that need no browser, in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from serving.web.app import STATIC

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")

STATE = {"session": "one", "model": "pocket", "seed": "7", "height": 32, "width": 48}


def run(program: str) -> Any:
    """What the program, which has `say`, says last."""
    imports = "".join(
        f'import {{ {names} }} from "{(STATIC / file).as_uri()}";\n'
        for names, file in (("linkPlace", "replay.js"), ("readPlace", "permalink.js"), ("CueFeed", "cue_feed.js"))
    )
    say = "const say = (value) => console.log(JSON.stringify(value));\n"
    node = ["node", "--no-warnings", "--input-type=module", "-"]
    ended = subprocess.run(node, input=imports + say + program, check=True, capture_output=True, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def link(count: int, held: int, text: str = "noon") -> Any:
    """Where the link of a session with `count` cues, of which the page has `held`, leads to; None without one."""
    cues = [{"frame": 12 * n, "prompts": [{"text": text, "weight": 1}]} for n in range(count)]
    state = STATE | {"applied": cues[count - held :], "applied_count": count}
    file = {"cues": [{"frame": cue["frame"], "prompt": text} for cue in cues]}
    return run(
        f"const place = await linkPlace({json.dumps(state)}, async () => ({json.dumps(file)}));"
        "say(place && readPlace(place));"
    )


@pytest.mark.parametrize(("count", "held"), [(3, 3), (100, 100), (101, 100), (400, 100)])
def test_a_link_has_all_cues_though_the_page_does_not(count: int, held: int) -> None:
    place = link(count, held)
    assert place["options"] == {"model": "pocket", "seed": "7", "height": "32", "width": "48"}
    assert place["cues"] == [{"timestamp": 12 * n, "new_prompt": "noon"} for n in range(count)]


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
