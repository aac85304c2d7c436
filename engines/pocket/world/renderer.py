"""The world's camera: renders any frames of any clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.errors import ConfigError
from engines.pocket.world import landscape, subjects
from engines.pocket.world.landscape import Land, View
from engines.pocket.world.motion import Moment, Pose, pose, scroll, weights
from engines.pocket.world.scene import Clip, Color, Light, Setting, Subject, Weather
from engines.pocket.world.sky import Air, fall, fog, rain_texture, sky, snow_texture, stars_texture

COLORS = {
    Color.RED: (0.90, 0.10, 0.10), Color.YELLOW: (1.0, 0.85, 0.05), Color.GREEN: (0.10, 0.75, 0.15),
    Color.BLUE: (0.10, 0.25, 0.95), Color.PURPLE: (0.65, 0.10, 0.80), Color.WHITE: (0.97, 0.97, 0.97),
}  # fmt: skip


class Renderer:
    """Renders clips as pictures of `height` x `width` on one device: a pure function of clip and frame.

    With a `variety` below one, clips of the same scene differ less: at nought their seeds decide nothing.
    """

    def __init__(
        self, height: int = 96, width: int = 160, device: torch.device | str = "cpu", variety: float = 1.0
    ) -> None:
        if height < 32 or width < height:
            raise ConfigError(f"pictures of {height}x{width}; a landscape needs 32 rows and no fewer columns")
        if not 0 <= variety <= 1:
            raise ConfigError(f"variety is {variety}; it must be within 0..1")
        self._variety = variety
        self._device = torch.device(device)
        x = (torch.arange(width, device=self._device) + 0.5) / height
        y = (torch.arange(height, device=self._device) + 0.5) / height
        self._view = View(x, y.unsqueeze(1), 1 / height)
        self._rain = rain_texture(height, width).to(self._device)
        self._snow = snow_texture(height, width).to(self._device)
        self._stars = stars_texture(height, width).to(self._device)

    @torch.no_grad()
    def render(self, clips: Sequence[Clip], first_frames: Sequence[int], frames: int) -> Tensor:
        """`frames` frames of each clip, from its own first frame on: [B, frames, 3, H, W] fp32 in 0..1."""
        moment = Moment.of(clips, first_frames, frames, self._device, self._variety)
        air = Air.of(
            weights(clips, "light", Light, moment).float(), weights(clips, "weather", Weather, moment).float()
        )
        picture = self._land(clips, moment, air, sky(air, self._stars, self._view))
        picture = fog(picture, air, 0.45 + 0.4 * self._nearness())
        picture = self._subject(clips, moment, air, picture)
        picture = fall(picture, air, moment.frame, moment.chances.start, self._rain, self._snow)
        return picture.clamp(0, 1)

    def _nearness(self) -> Tensor:
        """Fog is thickest at the horizon: [H, 1] in 0..1."""
        return 1 - ((self._view.y - landscape.HORIZON).abs() * 2).clamp(0, 1)

    def _land(self, clips: Sequence[Clip], moment: Moment, air: Air, behind: Tensor) -> Tensor:
        """Land in front of the sky, tinted by the light and whitened by snow."""
        shares = weights(clips, "setting", Setting, moment).float()
        land = Land(
            scroll(clips, moment).unsqueeze(-1),
            (moment.chances.land * 8).floor().float()[:, None, None],
            moment.frame.unsqueeze(-1),
            air.night.unsqueeze(-1),
        )
        color, cover = torch.zeros_like(behind), torch.zeros_like(behind[:, :, :1])
        for index, setting in enumerate(Setting):
            chosen = (shares[..., index].amax(1) > 0).nonzero().flatten()
            if len(chosen):
                ground = landscape.draw(setting, Land(*(part[chosen] for part in land)), self._view)
                weight = shares[chosen, :, index, None, None, None] * ground.cover
                color.index_add_(0, chosen, (ground.color * weight).expand(-1, -1, 3, -1, -1))
                cover.index_add_(0, chosen, weight)
        snowy = torch.lerp(color, cover.expand_as(color), 0.55 * air.much(Weather.SNOW))
        return behind * (1 - cover) + snowy * air.tint[..., None, None]

    def _subject(self, clips: Sequence[Clip], moment: Moment, air: Air, picture: Tensor) -> Tensor:
        """The subject in front of the land. It keeps half of its own color in any light."""
        where = pose(clips, moment, float(self._view.x[-1]))
        color = weights(clips, "color", Color, moment).float() @ picture.new_tensor(list(COLORS.values()))
        tinted = color * (0.5 + 0.5 * air.tint)
        shares = weights(clips, "subject", Subject, moment).float()
        for index, subject in enumerate(Subject):
            chosen = (shares[..., index].amax(1) > 0).nonzero().flatten()
            if len(chosen):
                mine = Pose(*(value[chosen] for value in where))
                figure = subjects.draw(subject, tinted[chosen], mine, moment.frame[chosen], self._view)
                part, share = picture[chosen], shares[chosen, :, index, None, None, None]
                if subject == Subject.LANTERN:
                    shine = subjects.glow(mine, self._view) * share * air.night[chosen, :, None, None, None]
                    part = part + 0.4 * shine * color[chosen][..., None, None]
                seen = fog(figure.color, Air(*(value[chosen] for value in air)), torch.tensor(0.3))
                picture = picture.index_copy(0, chosen, torch.lerp(part, seen, figure.cover * share))
        return picture
