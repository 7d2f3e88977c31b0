"""Trains examples/digits.pt, the checkpoint that the demo compiles, on scikit-learn's handwritten digits (a few minutes).

python examples/train_digits.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from digits_data import split
from digits_model import make
from torch import nn

HERE = Path(__file__).parent
EPOCHS = 100


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel and a little brighter or darker, with noise: more digits to learn from."""
    count = len(images)
    moves = torch.randint(-1, 2, (count, 2), generator=generator).tolist()
    moved = torch.stack([torch.roll(image, (dy, dx), (1, 2)) for image, (dy, dx) in zip(images, moves, strict=True)])
    return moved * (0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)) + 0.03 * torch.randn(images.shape, generator=generator)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    training, _, evaluation = split()
    images = torch.from_numpy(training.x[:, None].astype(np.float32) / 16)
    labels = torch.from_numpy(training.y)
    model = make()
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
    model.eval()
    with torch.no_grad():
        scores = model(torch.from_numpy(evaluation.x[:, None].astype(np.float32) / 16))
    print(f"accuracy on {len(evaluation.y)} held-out images: {float((scores.argmax(1).numpy() == evaluation.y).mean()):.4f}")
    torch.save({"state_dict": model.state_dict(), "epochs": EPOCHS}, HERE / "digits.pt")


if __name__ == "__main__":
    main()
