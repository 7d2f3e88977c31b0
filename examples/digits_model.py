"""The demo's model: which digit is it, from the energy of small filters, as sensors report it.

An energy front end (filters of different gain, squared) feeds a small transformer over the 64 pixels of an 8x8 image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Energy(nn.Module):
    """The energy at each pixel in a bank of 3x3 filters, each with a gain of its own: channels over four orders of magnitude, as

    sensors in different units give them.  The layer that reads them brings them to one scale by its weights.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.bank = nn.Conv2d(1, filters, 3, padding=1, bias=False)
        self.register_buffer("gain", torch.logspace(-1, 1, filters).reshape(1, filters, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch * 64, filters), a row for each pixel."""
        return (self.bank(image) * self.gain).square().flatten(2).transpose(1, 2).flatten(0, 1)


class Block(nn.Module):
    """A transformer block: attention over all positions, then two linear layers, each around a residual."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.norm1(x)
        query, key, value = (
            part(y).reshape(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) * (width // self.heads) ** -0.5, dim=-1)
        x = x + self.merge((weights @ value).transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(torch.relu(self.expand(self.norm2(x))))


class Digits(nn.Module):
    """float32 images (batch, 1, 8, 8) with values 0 to 1 -> scores (batch, 10)."""

    def __init__(self, width: int = 128, heads: int = 2, hidden: int = 640, blocks: int = 1, filters: int = 32) -> None:
        super().__init__()
        self.energy = Energy(filters)
        self.embed = nn.Linear(filters, width)
        self.position = nn.Parameter(torch.zeros(64, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.read(self.energy(image))

    def read(self, energies: Tensor) -> Tensor:
        """Scores for the energies of 64 pixels an image."""
        x = torch.relu(self.embed(energies).unflatten(0, (-1, 64)) + self.position)
        for block in self.blocks:
            x = block(x)
        return self.classify(self.norm(x.mean(1)))


def make() -> Digits:
    return Digits()
