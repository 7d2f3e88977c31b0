"""Whole models as exporters write them: fused they are smaller, valid, and give what they gave in ONNX Runtime.

Nodes before and after, as exported without the exporter's own optimization: ResNet-20 249 -> 56, a two-layer encoder
304 -> 67 (legacy exporter) and 251 -> 67 (dynamo), the speech detector 351 -> 267 (its branches stay as they are).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnxscript import version_converter

from optimizer.fusion import fuse
from optimizer.graph import fixed, names, unique
from optimizer.model import Model, Source

pytestmark = pytest.mark.slow
R = np.random.default_rng(11)


def model_of(graph: ir.Model) -> Model:
    """A graph as an importer hands it on: opset 20, no functions, a unique name for each node."""
    version_converter.convert_version(graph, 20, fallback=True)
    passes.InlinePass()(graph)
    taken = names(graph.graph) - {node.name or "" for node in graph.graph}
    for node in graph.graph:
        node.name = unique(node.name or node.op_type, taken)
    return Model(graph, Source("onnx", "model.onnx", "0" * 64))


def outputs(graph: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, dict(feeds))]


def fused_alike(model: Model, *feeds: Mapping[str, NDArray[Any]]) -> tuple[Model, Counter[str]]:
    """The fused model and its operators, after ONNX Runtime, the checker and a second fusing agreed with it."""
    after = fuse(model)
    onnx.checker.check_model(ir.to_proto(after.graph), full_check=True)
    for feed in feeds:
        for got, want in zip(outputs(after.graph, feed), outputs(model.graph, feed), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert fuse(after).fusions == after.fusions
    nodes = [node.name for node in after.graph.graph]
    assert len(set(nodes)) == len(nodes)
    return after, Counter(node.op_type for node in after.graph.graph)


def resnet20(torch: Any) -> Any:
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, planes: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(planes, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.pad = width // 4 if stride > 1 else 0

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
            return functional.relu(y + short)

    class Network(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            widths = [(16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
            self.blocks = nn.Sequential(*(Block(*width) for width in widths))
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            return self.linear(self.blocks(functional.relu(self.bn1(self.conv1(x)))).mean((2, 3)))

    network = Network().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def encoder(torch: Any) -> Any:
    nn, functional = torch.nn, torch.nn.functional

    class Norm(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.rand(width))

        def forward(self, x: Any) -> Any:
            mean = x.mean(-1, keepdim=True)
            variance = (x - mean).pow(2).mean(-1, keepdim=True)
            return (x - mean) / torch.sqrt(variance + 1e-12) * self.weight + self.bias

    class Layer(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, width: int = 64, heads: int = 4) -> None:
            super().__init__()
            self.heads = heads
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.norm1, self.norm2 = Norm(width), Norm(width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def split(self, x: Any) -> Any:
            return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).permute(0, 2, 1, 3)

        def forward(self, x: Any, mask: Any) -> Any:
            query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
            scores = query @ key.transpose(-1, -2) / query.size(-1) ** 0.5 + (1 - mask[:, None, None, :].to(x.dtype)) * -1e9
            context = (scores.softmax(-1) @ value).permute(0, 2, 1, 3).contiguous()
            x = self.norm1(x + self.out(context.view(context.size(0), context.size(1), -1)))
            return self.norm2(x + self.down(functional.gelu(self.up(x))))

    class Encoder(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 64)
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, ids: Any, mask: Any) -> Any:
            x = self.embedding(ids)
            for layer in self.layers:
                x = layer(x, mask)
            return x.sum(1)

    return Encoder().eval()


def test_every_batch_normalization_of_a_resnet_is_gone(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the model is exported by torch")
    file = tmp_path / "model.onnx"
    images = (torch.randn(2, 3, 32, 32),)
    torch.onnx.export(
        resnet20(torch),
        images,
        file,
        dynamo=True,
        opset_version=20,
        optimize=False,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    after, found = fused_alike(model_of(ir.load(file)), *({"x": R.normal(size=(n, 3, 32, 32)).astype(np.float32)} for n in (1, 3)))
    assert found == {"Conv": 19, "Relu": 19, "Add": 9, "Slice": 4, "Pad": 2, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    told = Counter(fusion.rule for fusion in after.fusions)
    assert told["BatchNormalization into Conv"] == 19
    assert told["ReduceMean over pixels"] == 1


@pytest.mark.parametrize("dynamo", [False, True])
def test_normalizations_activations_and_shape_arithmetic_of_a_transformer_are_fused(tmp_path: Path, dynamo: bool) -> None:
    torch = pytest.importorskip("torch", reason="the model is exported by torch")
    file = tmp_path / "model.onnx"
    free = {0: "batch", 1: "length"}
    arguments = (torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64))
    if dynamo:
        options = {"opset_version": 20, "optimize": False, "dynamic_shapes": (free, free), "external_data": False, "verbose": False}
    else:
        options = {"opset_version": 17, "input_names": ["ids", "mask"], "dynamic_axes": {"ids": free, "mask": free}}
    torch.onnx.export(encoder(torch), arguments, file, dynamo=dynamo, **options)
    feeds = ({"ids": R.integers(0, 50, (n, m)), "mask": np.ones((n, m), np.int64)} for n, m in ((1, 5), (3, 9)))
    after, found = fused_alike(model_of(ir.load(file)), *feeds)
    assert (found["Gelu"], found["LayerNormalization"], found["Erf"], found["ReduceMean"]) == (2, 4, 0, 0)
    assert (found["Shape"], found["Concat"], found["Reshape"]) == (0, 0, 8)
    assert len(after.layers) == 66


def test_the_speech_detector_keeps_the_branches_that_the_lengths_of_its_input_decide(assets: Path) -> None:
    model = model_of(ir.load(assets / "silero_vad_16k.onnx"))
    state = {"state": R.normal(size=(2, 1, 128)).astype(np.float32), "sr": np.array(16000)}
    after, found = fused_alike(model, {"input": R.normal(size=(1, 576)).astype(np.float32) * 0.1, **state})
    assert (found["If"], found["LSTM"]) == (5, 1)
    assert len(after.graph.graph) < len(model.graph.graph)


def test_of_the_speech_detector_in_one_size_no_branch_is_left(assets: Path) -> None:
    graph = fixed(ir.load(assets / "silero_vad_16k.onnx"), {"input": (1, 576), "state": (2, 1, 128)})
    state = {"state": R.normal(size=(2, 1, 128)).astype(np.float32), "sr": np.array(16000)}
    after, found = fused_alike(model_of(graph), {"input": R.normal(size=(1, 576)).astype(np.float32) * 0.1, **state})
    # Two of the transform, and the state taken apart, which was Gathers and Unsqueezes.
    assert (found["If"], found["LSTM"], found["Slice"], found["Gather"]) == (0, 1, 4, 0)
    assert "/model/decoder/rnn/LSTM" in [layer.name for layer in after.layers]
