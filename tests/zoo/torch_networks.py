"""Small seeded PyTorch networks of the kinds that people bring; run as a script it writes the weights of each into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional


class DepthwiseCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.pointwise = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(functional.adaptive_avg_pool2d(self.pointwise(self.depthwise(self.stem(image))), 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], bidirectional: bool) -> None:
        super().__init__()
        self.layers = cell(8, 16, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(32 if bidirectional else 16, 5)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.layers(features)[0])


class TransformerEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(50, 32), nn.Embedding(40, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, 40)

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        return self.head(self.transformer(self.source(source_ids), self.target(target_ids)))


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(100, 16), nn.Embedding(200, 16)
        self.dense = nn.Linear(13, 16)
        self.top = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())

    def forward(self, user_ids: Tensor, item_ids: Tensor, dense: Tensor) -> Tensor:
        return self.top(torch.cat([self.users(user_ids), self.items(item_ids), self.dense(dense)], -1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _double(3, 8), _double(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Sequential(_double(16, 8), nn.Conv2d(8, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        skip = self.down1(image)
        return self.out(torch.cat([skip, self.up(self.down2(functional.max_pool2d(skip, 2)))], 1))


def _double(channels: int, planes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, planes, 3, 1, 1), nn.BatchNorm2d(planes), nn.SiLU(), nn.Conv2d(planes, planes, 3, 1, 1), nn.ReLU()
    )


class Detector(nn.Module):
    """The suppression of overlapping boxes is YOLACT's, which needs no loop: a box goes if a better one covers it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(image)
        scores, order = self.scores(features).flatten(1).sigmoid().topk(20)
        raw = self.boxes(features).flatten(2).transpose(1, 2).sigmoid()
        raw = raw.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        low, high = raw[..., :2] - raw[..., 2:] / 2, raw[..., :2] + raw[..., 2:] / 2
        both = (torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])).clamp(min=0).prod(-1)
        area = raw[..., 2:].prod(-1)
        covered = (both / (area[:, :, None] + area[:, None] - both)).triu(1).amax(1)
        return torch.cat([low, high], -1), scores * (covered < 0.5)


def depthwise_cnn() -> nn.Module:
    return DepthwiseCNN()


def lstm() -> nn.Module:
    return Recurrent(nn.LSTM, False)


def gru() -> nn.Module:
    return Recurrent(nn.GRU, False)


def bidirectional_lstm() -> nn.Module:
    return Recurrent(nn.LSTM, True)


def transformer_encoder() -> nn.Module:
    return TransformerEncoder()


def encoder_decoder() -> nn.Module:
    return EncoderDecoder()


def recommender() -> nn.Module:
    return Recommender()


def unet() -> nn.Module:
    return UNet()


def detector() -> nn.Module:
    return Detector()


if __name__ == "__main__":
    for make in (depthwise_cnn, lstm, gru, bidirectional_lstm, transformer_encoder, encoder_decoder, recommender, unet, detector):
        torch.manual_seed(0)
        torch.save(make().state_dict(), Path(sys.argv[1]) / f"{make.__name__}.pt")
