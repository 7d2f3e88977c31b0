"""Trains examples/digits.pt, the checkpoint that the demo compiles, on scikit-learn's handwritten digits (a few minutes).

python examples/train_digits.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from digits_data import split
from digits_model import Digits, make
from torch import nn

HERE = Path(__file__).parent
EPOCHS = 45


class Training(nn.Module):
    """The network with a BatchNorm behind its front end, without which channels of such different size can't be learnt from."""

    def __init__(self, digits: Digits) -> None:
        super().__init__()
        self.digits, self.norm = digits, nn.BatchNorm1d(digits.embed.in_features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.digits.read(self.norm(self.digits.energy(images)))

    @torch.no_grad()
    def folded(self) -> Digits:
        """The network as it is deployed: the BatchNorm in the weights of the layer that reads it."""
        norm, embed = self.norm, self.digits.embed
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        embed.bias += embed.weight @ (norm.bias - norm.running_mean * scale)
        embed.weight *= scale
        return self.digits


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel and a little brighter or darker: more digits to learn from."""
    count = len(images)
    moves = torch.randint(-1, 2, (count, 2), generator=generator).tolist()
    moved = torch.stack([torch.roll(image, (dy, dx), (1, 2)) for image, (dy, dx) in zip(images, moves, strict=True)])
    return moved * (0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    training, _, evaluation = split()
    images = torch.from_numpy(training.x[:, None].astype(np.float32) / 16)
    labels = torch.from_numpy(training.y)
    model = Training(make())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=EPOCHS * ((len(images) + 49) // 50))
    for epoch in range(EPOCHS):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(50):
            loss = nn.functional.cross_entropy(model(shifted(images[batch], generator)), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        print(f"epoch {epoch + 1}: loss {total / len(images):.4f}", flush=True)
    trained = model.folded().eval()
    with torch.no_grad():
        scores = trained(torch.from_numpy(evaluation.x[:, None].astype(np.float32) / 16))
    print(f"accuracy on {len(evaluation.y)} held-out images: {float((scores.argmax(1).numpy() == evaluation.y).mean()):.4f}")
    torch.save({"state_dict": trained.state_dict(), "epochs": EPOCHS}, HERE / "digits.pt")


if __name__ == "__main__":
    main()
