"""Files that hold a whole network come in on trust alone: TorchScript, torch.export, pickled modules; the parent runs beside its graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from optimizer import importers
from optimizer.errors import InputError
from optimizer.fusion import fuse
from optimizer.importers import ImportRequest
from optimizer.importers._torch_running import pieces, shown
from optimizer.model import Model
from optimizer.plan import Shape

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")

Load = Callable[..., Model]
Code = Callable[..., None]

NET = """
    import torch
    from torch import nn
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(4)
            self.act = nn.ReLU()
        def forward(self, x):
            return self.act(self.bn(self.conv(x))) + x
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.blocks = nn.Sequential(Block(), Block())
            self.rnn = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(10, 3)
        def forward(self, image):
            rows = self.blocks(self.stem(image)).mean(1)
            return self.head(torch.relu(self.rnn(rows)[0]))
"""
SHAPES = {"image": "1:1:4x3x8x8"}


def network(code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The network of `NET`, its module importable as the user's is."""
    code(a_users_net=NET)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(__import__("sys").modules, "a_users_net", raising=False)
    made = __import__("importlib").import_module("a_users_net").Net()
    torch.manual_seed(0)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.5)
    return made.eval()


def answers(graph: ir.Model, feeds: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


IMAGES = np.random.default_rng(5).standard_normal((3, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def parent(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Opens the parent of a model."""

    def call(file: str, model: Model, **how: Any) -> Any:
        shapes = {"image": Shape((1, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8))}
        return closing(importers.running(ImportRequest(folder / file, tmp_path, folder, **{"shapes": shapes, **how}), model))

    return call


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_program_comes_in_on_trust(
    load: Load, parent: Any, code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made = network(code, folder, monkeypatch)
    program = torch.jit.script(made) if how == "script" else torch.jit.trace(made, torch.ones(2, 3, 8, 8), strict=False)
    torch.jit.save(program, folder / "net.pt")
    (folder / "a_users_net.py").write_text("raise RuntimeError('a program needs no code of the user')")
    model = load("net.pt", SHAPES, trust=True)
    assert (model.source.trusted, model.source.code_ran) == (True, False)
    assert "Trusted, with --trust: net.pt is a TorchScript program" in model.source.notes[0]
    assert [(spec.name, spec.shape) for spec in model.inputs] == [("image", ("image_0", 3, 8, 8))]
    assert [spec.name for spec in model.outputs] == ["output"]
    assert {"stem", "blocks.0.conv", "blocks.1.conv", "rnn", "rnn#2", "head"} <= {layer.name for layer in model.layers}
    with torch.no_grad():
        wanted = made(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(answers(model.graph, {"image": IMAGES}), wanted, atol=1e-5)
    with parent("net.pt", model, trust=True) as source:
        np.testing.assert_allclose(source.run({"image": IMAGES})["output"], wanted, atol=1e-5)
        assert source.layers({"image": IMAGES}, ["stem", "head"]) == {}
    with pytest.raises(InputError, match="a factory has nothing to make"):
        load("net.pt", SHAPES, trust=True, factory="net.py:make")


@pytest.mark.slow
def test_a_program_of_torch_export_comes_in_on_trust_with_its_own_shapes(
    load: Load, parent: Any, code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(code, folder, monkeypatch)
    batch = torch.export.Dim("batch", min=1, max=16)
    torch.export.save(torch.export.export(made, (torch.ones(2, 3, 8, 8),), dynamic_shapes={"image": {0: batch}}), folder / "net.pt2")
    model = load("net.pt2", trust=True)
    assert model.source.trusted
    assert model.inputs[0].shape[1:] == (3, 8, 8)
    assert isinstance(model.inputs[0].shape[0], str)
    assert {"stem", "blocks.0.conv", "blocks.1.act", "rnn", "rnn#2", "head"} <= {layer.name for layer in model.layers}
    with torch.no_grad():
        wanted = made(torch.from_numpy(IMAGES)).numpy()
        stem = made.stem(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(answers(model.graph, {"image": IMAGES}), wanted, atol=1e-5)
    with parent("net.pt2", model, trust=True, shapes={}) as source:
        np.testing.assert_allclose(source.run({"image": IMAGES})["output"], wanted, atol=1e-5)
        np.testing.assert_allclose(source.layers({"image": IMAGES}, ["stem"])["stem"], stem, atol=1e-5)
    with pytest.raises(InputError, match="no input 'picture'"):
        load("net.pt2", {"picture": "1x3x8x8"}, trust=True)


@pytest.mark.slow
def test_a_network_pickled_whole_comes_in_on_trust_and_shows_its_layers(
    load: Load, parent: Any, code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(code, folder, monkeypatch)
    torch.save({"epoch": 3, "model": made, "optimizer": {"lr": 0.1}}, folder / "net.pt")
    with pytest.raises(InputError, match=r"holds a whole network: it asks for .*nothing in it was run") as caught:
        load("net.pt", SHAPES)
    assert "--trust" in caught.value.remedy
    model = load("net.pt", SHAPES, trust=True)
    assert (model.source.trusted, model.source.code_ran) == (True, True)
    feeds = {"image": IMAGES}
    with torch.no_grad():
        wanted, seen = {}, {}
        for path in ("stem", "blocks.0.conv", "blocks.0.bn", "blocks.0.act", "head"):
            made.get_submodule(path).register_forward_hook(lambda _module, _given, result, path=path: seen.update({path: result.numpy()}))
        made.rnn.register_forward_hook(lambda _module, _given, result: seen.update(rnn=result[0].numpy()))
        wanted = made(torch.from_numpy(IMAGES)).numpy()
    fused = fuse(model)
    assert "blocks.0.conv+bn+act" in {layer.name for layer in fused.layers} or "blocks.0.conv+bn" in {layer.name for layer in fused.layers}
    with parent("net.pt", model, trust=True) as source:
        np.testing.assert_allclose(source.run(feeds)["output"], wanted, atol=1e-5)
        names = [layer.name for layer in model.layers]
        layers = source.layers(feeds, [*names, "blocks.0.conv+bn", "blocks.0.conv+bn+act", "relu", "nowhere"])
    assert {"stem", "blocks.0.conv", "blocks.1.bn", "rnn#2", "head/Add", "blocks.0.conv+bn", "blocks.0.conv+bn+act"} <= set(layers)
    assert layers.keys().isdisjoint({"relu", "mean", "head", "rnn", "nowhere"})
    np.testing.assert_allclose(layers["blocks.0.conv"], seen["blocks.0.conv"], atol=1e-5)
    np.testing.assert_allclose(layers["blocks.0.conv+bn"], seen["blocks.0.bn"], atol=1e-5)
    np.testing.assert_allclose(layers["blocks.0.conv+bn+act"], seen["blocks.0.act"], atol=1e-5)
    np.testing.assert_allclose(layers["head/Add"], seen["head"], atol=1e-5)
    assert layers["rnn#2"].shape == (6, 2, 3, 5)  # time, direction, batch, features: as the graph has it
    np.testing.assert_allclose(layers["rnn#2"][:, 1], seen["rnn"][:, :, 5:].transpose(1, 0, 2), atol=1e-5)


def test_a_network_that_a_script_pickled_is_found_where_its_factory_is(load: Load, code: Code, folder: Path) -> None:
    code(net="import torch\nclass Own(torch.nn.Linear): pass\n")
    main = __import__("sys").modules["__main__"]
    main.Own = type("Own", (torch.nn.Linear,), {"__module__": "__main__"})  # type: ignore[attr-defined]
    try:
        torch.save(main.Own(6, 3), folder / "net.pt")
    finally:
        del main.Own
    with pytest.raises(InputError, match="Own") as caught:
        load("net.pt", {"input": "1x6"}, trust=True)
    assert "--factory" in caught.value.remedy
    assert [layer.op for layer in load("net.pt", {"input": "1x6"}, trust=True, factory="net.py:Own").layers] == ["Gemm"]


GRAPH = """
    <ir_version: 9, opset_import: ["" : 20]>
    g (float[1] x) => (float[1] y) {
        a = Relu(x)
        b = Relu(a)
        c = Relu(b)
        d = Relu(c)
        e = Relu(d)
        y = Relu(e)
    }
"""


def test_layers_and_joined_layers_lead_to_the_calls_that_they_end_with() -> None:
    model = ir.from_onnx_text(GRAPH)
    for node, name in zip(model.graph, ("fc", "fc/Add", "act", "act#2", "part.fc", "relu"), strict=True):
        node.name = name
    known = pieces(model, frozenset({"", "fc", "act", "part", "part.fc"}))
    assert set(known) == {"fc", "fc/Add", "act", "act#2", "part.fc"}
    assert known["act#2"] == ("act", 1, 2, False)
    assert shown("x+fc/Add", known) == ("fc", 1, 2, False)
    assert shown("part.conv+fc", known) == ("part.fc", 0, 1, False)
    assert shown("part.conv+relu", known) is None
