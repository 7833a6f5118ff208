"""Under which elements is each sample measured?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from invreg.groups import IndexedTransformations, Transformations

_AT_ONCE = 256
"""For how many samples elements are drawn at once, so that how data are cut into batches changes nothing."""


class Draws:
    """All non-identity elements for every sample, or some drawn for each.

    Args:
        group: Whose elements.
        samples: How many are drawn for each sample; None takes all.
        rng: Where they come from.
        rank: Which of several processes this is, that are dealt samples in turn.
        world: How many processes there are.
    """

    def __init__(
        self, group: Transformations, samples: int | None, rng: torch.Generator, *, rank: int = 0, world: int = 1
    ) -> None:
        self.group = group
        self.samples = samples
        self.rng = rng
        self.rank, self.world = rank, world
        self._drawn = group.sample_non_identity(0, samples, rng) if samples else torch.empty(0, 0)
        self._drawn_for = 0

    def following(self, rows: int, device: torch.device) -> Tensor:
        """The elements for the next samples: ``(K,)`` for all of them, or ``(K, N, *element_shape)``."""
        if self.samples is None:
            if not isinstance(self.group, IndexedTransformations):  # the identity alone
                return torch.empty(0, *self.group.element_shape, dtype=self.group.element_dtype)
            return self.group.non_identity_elements()
        while self._drawn.shape[1] < rows:
            block = self.group.sample_non_identity(_AT_ONCE, self.samples, self.rng)
            first = (self.rank - self._drawn_for) % self.world  # of those that are this process's
            self._drawn = torch.cat([self._drawn, block[:, first :: self.world]], 1)
            self._drawn_for += _AT_ONCE
        return self._drawn[:, :rows].to(device)

    def advance(self, rows: int) -> None:
        """Goes on to the samples after these."""
        self._drawn = self._drawn[:, rows:]

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"drawn": self._drawn, "drawn_for": self._drawn_for, "rng": self.rng.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._drawn, self._drawn_for = state["drawn"], state["drawn_for"]
        self.rng.set_state(state["rng"])
