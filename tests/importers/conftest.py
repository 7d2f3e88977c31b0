"""Files to import, in a folder of their own, and the two ways to call the importer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent
from typing import Any, NoReturn

import onnx
import pytest

from optimizer import importers
from optimizer.errors import InputError
from optimizer.importers import ImportRequest
from optimizer.model import Model
from optimizer.plan import Shape

RESNET20 = """
    import torch.nn as nn
    import torch.nn.functional as F

    class Block(nn.Module):
        def __init__(self, channels, planes, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(planes)
            self.stride, self.added = stride, planes - channels

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.added:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))
            return F.relu(y + x)

    class ResNet(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            sizes = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
            for number, (channels, planes, stride) in enumerate(sizes, 1):
                blocks = [Block(channels if n == 0 else planes, planes, stride if n == 0 else 1) for n in range(3)]
                setattr(self, f"layer{number}", nn.Sequential(*blocks))
            self.linear = nn.Linear(64, num_classes)

        def forward(self, input):
            y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(input))))))
            return self.linear(y.mean((2, 3)))

    def make(num_classes=10):
        return ResNet(int(num_classes))
"""


@pytest.fixture(scope="session")
def part() -> Callable[[str], Any]:
    """A part of a worker by its name; it lies on no path, so that no user's module can meet it."""

    def load(name: str) -> Any:
        spec = spec_from_file_location(name, Path(importers.__file__).parent / "workers" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class _Channel:
    """Refusals as the parent raises them."""

    def refuse(self, reason: str, remedy: str) -> NoReturn:
        raise InputError(reason, remedy)


@pytest.fixture(scope="session")
def channel() -> Any:
    """The worker's end of the line, in this process."""
    return _Channel()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The user's folder."""
    made = tmp_path / "user"
    made.mkdir()
    return made


@pytest.fixture
def code(folder: Path) -> Callable[..., None]:
    """Writes Python files into the user's folder."""

    def write(**files: str) -> None:
        for name, text in files.items():
            (folder / f"{name}.py").write_text(dedent(text))

    return write


@pytest.fixture
def resnet20(code: Callable[..., None]) -> str:
    """A factory of the network whose weights lie among the assets, written into the user's folder."""
    code(resnet=RESNET20)
    return "resnet.py:make"


@pytest.fixture
def load(folder: Path, tmp_path: Path) -> Callable[..., Model]:
    """Imports a file from the user's folder; shapes as words like `1x3` or `1:2:4x3`."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def call(file: str | Path, shapes: dict[str, str] | None = None, **how: Any) -> Model:
        words = {name: _shape(word) for name, word in (shapes or {}).items()}
        return importers.load(ImportRequest(folder / file, scratch, folder, shapes=words, **how))

    return call


def _shape(words: str) -> Shape:
    parts = [[int(size) for size in part.split(":")] for part in words.split("x")]
    return Shape(tuple(part[0] for part in parts), tuple(part[len(part) // 2] for part in parts), tuple(part[-1] for part in parts))


@pytest.fixture
def model(folder: Path) -> Callable[..., onnx.ModelProto]:
    """Writes an ONNX model, given as text, as `model.onnx` into the user's folder, its nodes called `names`."""

    def write(text: str, opset: int = 20, names: Sequence[str] = (), domains: Sequence[str] = ()) -> onnx.ModelProto:
        imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
        proto = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]>\n{dedent(text)}")
        for node, name in zip(proto.graph.node, names, strict=False):
            node.name = name
        onnx.save(proto, folder / "model.onnx")
        return proto

    return write
