"""Prefix states: the keys and values of a prefix's tokens, which a later pass reads instead of computing them again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

Layer = tuple[torch.Tensor, torch.Tensor]
"""Keys (rotated) and values of one layer, [C, P, heads, d] each."""


@dataclass
class PrefixStates:
    """What is known of a prefix, layer by layer; a pass reads it and adds what it had to compute."""

    layers: list[Layer] = field(default_factory=list)
    """Those of the first P tokens under C adapters; empty where nothing is known."""

    @property
    def length(self) -> int:
        """P, tokens that are known."""
        return self.layers[0][0].shape[1] if self.layers else 0

    def extended(self, number: int, layer: Layer) -> Layer:
        """Return keys and values of the whole prefix in a layer, and keep them.

        Args:
            number: of the layer.
            layer: of the tokens behind the known ones.
        """
        if number == len(self.layers):  # a copy: a view would keep the rows' keys alive too
            self.layers.append((layer[0].clone(), layer[1].clone()))
        elif layer[0].shape[1]:
            held = self.layers[number]
            self.layers[number] = (torch.cat([held[0], layer[0]], dim=1), torch.cat([held[1], layer[1]], dim=1))
        return self.layers[number]
