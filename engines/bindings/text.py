"""A text encoder that is graphs: what the model's own is to prompts, by another runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engines.bindings.stage_session import StageSession
from engines.config.networks import TextEncoderConfig
from engines.errors import PromptError
from engines.export.text import EMBEDDING, MASK, ROWS


class GraphTextEncoder:
    """Encodes tokens as the encoder does of which `sessions` run the layers, one for each length of a prompt.

    `embedding` is that encoder's, and `config` too. Rows come in its dtype, and are rounded to the graphs' on the
    way.
    """

    def __init__(
        self, sessions: Sequence[StageSession], embedding: nn.Embedding, config: TextEncoderConfig
    ) -> None:
        self._sessions = {length_of(session): session for session in sessions}
        self._embedding = embedding
        self._config = config

    @property
    def config(self) -> TextEncoderConfig:
        """Its sizes."""
        return self._config

    @property
    def device(self) -> torch.device:
        """Where ids have to be."""
        return self._embedding.weight.device

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As `TokenEncoder`, for one prompt, by the graph of the least length that holds it.

        Raises PromptError for several prompts at once, or for more tokens than any graph takes.
        """
        batch, tokens = ids.shape
        lengths = [length for length in self._sessions if length >= tokens]
        if batch != 1 or not lengths:
            raise PromptError(f"{batch} x {tokens} tokens; graphs take one prompt of up to {max(self._sessions)}")
        session, behind = self._sessions[min(lengths)], (0, min(lengths) - tokens)
        rows = self._embedding(ids)
        given = rows.to(session.graph.input(ROWS).torch_dtype)
        made = session.run({
            ROWS: nn.functional.pad(given, (0, 0, *behind)), MASK: nn.functional.pad(mask.long(), behind)
        })  # fmt: skip
        return made[EMBEDDING][:, :tokens].to(rows.dtype)


def length_of(session: StageSession) -> int:
    """The tokens of a prompt for which a session's graph is."""
    return session.graph.input(ROWS).shape[1]
