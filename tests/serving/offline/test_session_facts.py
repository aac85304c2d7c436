from __future__ import annotations

from serving.media.film_file import Made
from serving.offline.provenance import AppliedCue, Facts, UsedLoRA
from serving.offline.session_facts import session_facts
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.timeline.cue import Blend, Cue
from serving.timeline.schedule import schedule
from serving.timeline.timeline import Timeline
from serving.weights.loader import Origin

TIMELINE = Timeline((Cue(0, Blend.of("noon")), Cue(40, Blend.of("night"))), 60)
SESSION = pb.Session(
    options=pb.SessionOptions(model="pocket", seed=7, height=64, width=96),
    provenance=pb.Provenance(
        longtake="0.1", model="pocket", codec="own", torch="2.13", device="cuda", threads=3, dtype="bfloat16",
        kernels="triton", origins=[pb.Origin(repo="lab/pocket", revision="1" * 40, licence="apache-2.0")],
        weights=[pb.Fingerprint(name="transformer", value="cafe")],
        loras=[pb.Lora(name="style.pt", weight=0.5, sha256="beef")],
    ),
)  # fmt: skip


def facts() -> Facts:
    return session_facts(SESSION, TIMELINE, schedule(TIMELINE))


def test_a_played_film_has_the_facts_of_its_session() -> None:
    made = facts()
    assert (made.stream.seed, made.stream.height, made.stream.width) == (7, 64, 96)
    assert (made.model, made.device, made.threads, made.dtype, made.kernels) == (
        "pocket",
        "cuda",
        3,
        "bfloat16",
        "triton",
    )
    assert made.origins == (Origin("lab/pocket", "1" * 40, "apache-2.0"),)
    assert (made.weights, made.loras) == ({"transformer": "cafe"}, (UsedLoRA("style.pt", 0.5, "beef"),))
    assert made.cues == (AppliedCue(0, 0, "noon"), AppliedCue(40, 45, "night"))


def test_a_film_that_was_cut_off_has_the_cues_that_came_into_force_in_it() -> None:
    cut = facts().document(Made(45, complete=False))
    assert [cue["prompt"] for cue in cut["cues"]] == ["noon"]
    assert (cut["frames"], cut["frames_made"], cut["complete"]) == (69, 45, False)


def test_what_was_merged_before_a_model_was_quantized_is_not_to_be_merged_again() -> None:
    styled = pb.Session()
    styled.CopyFrom(SESSION)
    styled.provenance.model, styled.provenance.base_model = "styled", "pocket"
    styled.provenance.loras.add(name="styled", weight=0.5, sha256="cafe")
    assert session_facts(styled, TIMELINE, schedule(TIMELINE)).loras == (UsedLoRA("style.pt", 0.5, "beef"),)
