"""Keys and values of prompts in the layers' cross attention, shared by the streams that follow the same prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from engines.cache.kv_pool import KVPool, KVRun


class EncodedPrompt(NamedTuple):
    """Keys and values of a prompt in every layer, [layers, N, heads, channels].

    LongLive attends all `text_len` positions, and those behind the prompt's own tokens are all equal. Folded, they
    are one key, the last, and `last_log` is the logarithm of their number.
    """

    keys: Tensor
    values: Tensor
    last_log: float = 0.0


@dataclass(eq=False)
class PromptKV:
    """A prompt's run in the pool; `users` hold it."""

    key: Hashable
    run: KVRun
    last_log: float
    users: int = 1


class PromptPool:
    """The prompts that streams follow: each once in `pool`, counted by its users."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self._held: dict[Hashable, PromptKV] = {}

    def take(self, key: Hashable, encode: Callable[[], EncodedPrompt]) -> PromptKV:
        """Keys and values of the prompt that `key` stands for; `encode` is called where nobody has them.

        Raises PoolFull.
        """
        held = self._held.get(key)
        if held is not None:
            return self.share(held)
        encoded = encode()
        run = self.pool.take(encoded.keys.shape[1])
        try:
            here = self.pool.state(run, run.tokens)
            here["keys"].copy_(encoded.keys)
            here["values"].copy_(encoded.values)
        except BaseException:
            self.pool.give_back(run)
            raise
        made = self._held[key] = PromptKV(key, run, encoded.last_log)
        return made

    def share(self, held: PromptKV) -> PromptKV:
        """The same for one more user."""
        held.users += 1
        return held

    def give_back(self, held: PromptKV) -> None:
        """One user less; the last one frees the run."""
        held.users -= 1
        if held.users == 0:
            del self._held[held.key]
            self.pool.give_back(held.run)
