from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from serving.media.contact_sheet import Still, write_sheet


def test_a_sheet_shows_every_still_enlarged_with_its_caption(tmp_path: Path) -> None:
    colors = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200]], dtype=torch.uint8)
    stills = [Still(i * 12, "a long prompt " * 9, color.expand(16, 32, 3)) for i, color in enumerate(colors)]
    write_sheet(tmp_path / "sheet.png", stills)
    page = torch.from_numpy(np.array(Image.open(tmp_path / "sheet.png").convert("RGB")))
    for color in colors:
        assert (page == color).all(-1).sum() == 80 * 160
    assert (page < 80).all(-1).any()
