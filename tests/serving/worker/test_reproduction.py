"""What a client was told of a session that restyles a video is enough to make its frames again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engines.config.video_stream import Loop, VideoStreamConfig
from engines.sampling.motion_noise import NoiseSetting
from engines.video.builder import build_input_encoder
from engines.video.generator import VideoGenerator
from serving.media.encoder import ChunkEncoder
from serving.pb.longtake.v1 import sessions_pb2 as pb
from serving.protocol.events import LOOPS as NUMBERS
from serving.replication.messages import SessionSpec
from serving.weights.loader import OpenedModel
from tests.serving.worker.bench import NIGHT, run, settled
from tests.serving.worker.pictures.clips import encoded, picture
from tests.serving.worker.video_bench import CUT, LOOPS, Controller, restyled_cue, restyling, video_spec
from tests.support.generators import generator_for

HEIGHT, WIDTH = 32, 48


async def steered(controller: Controller) -> None:
    """Less noise, more where nothing moves, another prompt, another sink, and a cut; 37 frames."""
    await push(controller, range(9))
    await controller.command(pb.Command(id="less", restyle=pb.Restyling(noise_scale=0.7)))
    await push(controller, range(9, 13))
    await controller.command(pb.Command(id="moves", restyle=pb.Restyling(follows_motion=True)))
    await push(controller, range(13, 21))
    night = pb.Cue(prompts=[pb.WeightedPrompt(text=NIGHT, weight=1)])
    await controller.command(pb.Command(id="night", schedule_prompt=night))
    await push(controller, range(21, 25))
    await controller.command(restyled_cue(renews_sink=True))
    await push(controller, range(25, 29))
    await controller.command(CUT)
    await push(controller, range(29, 37))
    controller.end_input()
    await settled(lambda: controller.frames >= 37)


async def push(controller: Controller, numbers: Sequence[int]) -> None:
    """Pictures of the session's own size; all blocks that they make have begun."""
    for number in numbers:
        data = encoded(picture(number, HEIGHT, WIDTH))
        controller.send(
            pb.Command(
                picture=pb.Picture(id=number, time_us=62_500 * number, format=pb.PICTURE_FORMAT_PNG, data=data)
            )
        )
        await controller.at_rest()
    blocks = controller.session.config.blocks
    await settled(lambda: blocks.pixel_frames(controller.session.logic.next_block) == numbers[-1] + 1)


@LOOPS
def test_the_seed_the_cues_and_which_picture_made_which_frame_make_the_same_frames(
    pocket: OpenedModel, loop: Loop
) -> None:
    spec, chunks, applied = video_spec(pocket), list[pb.Chunk](), list[pb.AppliedCue]()

    async def restyle() -> None:
        async with restyling(pocket, video_loop=loop) as controller:
            await steered(controller)
            chunks.extend(controller.chunks)
            applied.extend(controller.applied)

    run(restyle())
    assert [cue.frame for cue in applied] == [0, 9, 13, 21, 25, 29]
    sent = [unit.data for chunk in chunks for unit in chunk.units]
    assert made_again(pocket, spec, chunks, applied) == sent


def made_again(
    pocket: OpenedModel, spec: SessionSpec, chunks: Sequence[pb.Chunk], applied: Sequence[pb.AppliedCue]
) -> list[bytes]:
    """The frames of chunks, by the engine alone, from the pictures that they name."""
    assert isinstance(spec.stream, VideoStreamConfig)
    video, encoder = VideoGenerator(generator_for(pocket.model)), build_input_encoder(pocket.model)
    config, cues = spec.stream, {one.frame: one.cue for one in applied}
    loops = {number: loop for loop, number in NUMBERS.items()}
    stream, state = video.open(replace(config, loop=loops[chunks[0].loop])), encoder.start(config)
    noise, frames = NoiseSetting(config.noise_scale, config.motion_noise), list[Tensor]()
    for chunk in chunks:
        cue = cues.get(chunk.units[0].frame, pb.Cue())
        told = cue.restyling
        if told.cuts:
            frames += [video.decode(stream, block) for block in video.flush(stream)]
            video.reopen(stream)
        if told.renews_sink:
            video.renew_sink(stream)
        if cue.prompts and (stream.prompt is None or stream.prompt.text != cue.prompts[0].text):
            video.set_prompt(stream, pocket.prompts.encode(cue.prompts[0].text))
        scale = told.noise_scale if told.HasField("noise_scale") else noise.scale
        follows = told.follows_motion if told.HasField("follows_motion") else noise.follows_motion
        noise = NoiseSetting(scale, follows)
        state = encoder.start(config, chunk.block, noise) if told.cuts else replace(state, noise=noise)
        pictures = [torch.from_numpy(picture(unit.picture, HEIGHT, WIDTH)) for unit in chunk.units]
        inputs, state = encoder.encode(config, torch.stack(pictures), state)
        frames += [video.decode(stream, block) for block in video.generate([stream], inputs) if block is not None]
    frames += [video.decode(stream, block) for block in video.flush(stream)]
    encode = ChunkEncoder(HEIGHT, WIDTH).encode
    return [unit.data for number, block in enumerate(frames) for unit in encode(number, 0, block.numpy()).units]
