"""A checkpoint and a factory become a graph with the user's own names and the network's own answers, or an error in words."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from optimizer.errors import InputError, UnavailableError
from optimizer.fusion import fuse
from optimizer.importers import pytorch as importer
from optimizer.model import Model

torch = pytest.importorskip("torch")

Load = Callable[..., Model]
Code = Callable[..., None]

NET = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = torch.nn.Linear(6, 8)
            self.act = torch.nn.GELU(approximate="tanh")
            self.fc2 = torch.nn.Linear(8, 3)
        def forward(self, features):
            return self.fc2(self.act(self.fc1(features)))
    make = Net
"""
SHAPE = {"features": "2x6"}


def weights() -> dict[str, Any]:
    """A state dict that fits `NET`."""
    torch.manual_seed(7)
    layers = torch.nn.ModuleDict({"fc1": torch.nn.Linear(6, 8), "fc2": torch.nn.Linear(8, 3)})
    return dict(layers.state_dict())


def answers(graph: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def by_hand(state: dict[str, Any], x: Any) -> Any:
    f = torch.nn.functional
    y = f.gelu(f.linear(torch.from_numpy(x), state["fc1.weight"], state["fc1.bias"]), approximate="tanh")
    return f.linear(y, state["fc2.weight"], state["fc2.bias"]).numpy()


X = np.random.default_rng(2).standard_normal((2, 6)).astype(np.float32)


@pytest.mark.slow
def test_the_checkpoint_as_training_left_it_comes_in_by_module_path(load: Load, resnet20: str, assets: Path) -> None:
    args = {"factory": resnet20, "factory_args": {"num_classes": "10"}}
    model = load(assets / "resnet20_cifar10.th", {"input": "1x3x32x32"}, **args)
    names = [layer.name for layer in model.layers]
    assert {"conv1", "relu", "layer2.0.pad", "layer3.2.conv2", "layer3.2.relu#2", "mean", "linear"} <= set(names)
    assert len(names) == len(set(names))
    assert sum(layer.op == "Conv" for layer in model.layers) == 19
    assert {layer.name: layer.parameters for layer in model.layers if layer.name in {"layer2.0.pad", "linear"}} == {
        "layer2.0.pad": 0,
        "linear": 650,
    }
    assert [(spec.name, spec.shape) for spec in (*model.inputs, *model.outputs)] == [("input", (1, 3, 32, 32)), ("output", (1, 10))]
    assert not model.fusions  # the exporter folds nothing
    fused = fuse(model)
    folded = {fusion.result: fusion.layers for fusion in fused.fusions if fusion.rule == "BatchNormalization into Conv"}
    assert len(folded) == 19
    assert folded["layer3.2.conv2+bn2"] == ("layer3.2.conv2", "layer3.2.bn2")
    assert {"conv1+bn1", "layer3.2.conv2+bn2", "layer3.2.relu#2"} <= {layer.name for layer in fused.layers}
    assert model.source.code_ran
    assert model.source.factory == "resnet.py:make"
    assert {"torch", "onnx", "python"} <= set(model.source.versions)
    assert "differ from PyTorch's by at most" in model.source.notes[-1]

    with np.load(assets / "cifar10_evaluation.npz") as data:
        x, y = data["x"][:100], data["y"][:100]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    prepared = ((x / np.float32(255) - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    right = [answers(model.graph, {"input": prepared[n : n + 1]})[0].argmax() == y[n] for n in range(100)]
    assert np.mean(right) > 0.7


def test_nothing_of_the_users_is_imported_unasked_and_nothing_of_theirs_stays_in_the_graph(load: Load, code: Code, folder: Path) -> None:
    code(net=NET, optimizer="raise RuntimeError('not yours')", kernels="raise RuntimeError('not yours')")
    torch.save(weights(), folder / "net.pt")
    model = load("net.pt", SHAPE, factory="net.py:make")
    np.testing.assert_allclose(answers(model.graph, {"features": X})[0], by_hand(weights(), X), atol=1e-5)
    data = ir.to_proto(model.graph).SerializeToString()
    assert str(folder).encode() not in data
    assert b"self.act(self.fc1" not in data
    assert sorted(path.name for path in folder.iterdir()) == ["kernels.py", "net.pt", "net.py", "optimizer.py"]


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(load: Load, code: Code, folder: Path, tmp_path: Path, form: str) -> None:
    code(net="open('imported', 'w')\n")
    proof, file = tmp_path / "pwned", folder / "bad.pt"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Touch(proof)))
    else:
        torch.save({"state_dict": {**weights(), "extra": Touch(proof)}}, file)
    with pytest.raises(InputError, match="nothing in it was run") as caught:
        load("bad.pt", SHAPE, factory="net.py:make")
    assert "system" in caught.value.reason
    assert not proof.exists()
    assert not (folder / "imported").exists()
    if form == "pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert proof.exists()  # the file is as hostile as the test says


FACTORIES = """
    import os, sys, time
    import torch
    def raises(): raise ValueError("no such size")
    def nothing(): return None
    def leaves(): sys.exit(0)
    def dies():
        print("y" * 3_000_000)
        print("about to die", flush=True)
        os._exit(0)
    def hangs(): time.sleep(600)
    def forges():
        import gc
        channel = next(thing for thing in gc.get_objects() if type(thing).__name__ == "Channel")
        channel.send("model", modules=3)
    def Linear(): return torch.nn.Linear(6, 3, bias=False)
    def wants(size): return torch.nn.Linear(size, 3)
    class Broken(torch.nn.Linear):
        def __init__(self): super().__init__(6, 3)
        def forward(self, features): return features @ features
"""


@pytest.mark.parametrize(
    ("factory", "arguments", "words"),
    [
        (None, {}, "holds weights, and no network"),
        ("net.py:mak", {}, "has no factory 'mak'"),
        ("net.py:raises", {}, "ValueError: no such size (net.py, line 4)"),
        ("net.py:forges", {}, "a line that is not its own"),
        ("net.py:nothing", {}, "returned NoneType, not a torch.nn.Module"),
        ("net.py:dies", {}, "about to die"),
        ("net.py:hangs", {}, "took more than"),
        ("net.py:wants", {"sise": "6"}, "unexpected keyword argument 'sise'"),
        ("net.py:Broken", {}, "(net.py, line 20)"),
        ("net.py:Linear", {}, "'fc1.weight' is not in the network"),
    ],
)
def test_a_wrong_factory_is_refused_in_words(
    load: Load, code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch, factory: str | None, arguments: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(importer, "_PATIENCE", 8.0 if factory == "net.py:hangs" else 120.0)
    code(net=FACTORIES)
    torch.save(torch.nn.Linear(6, 3).state_dict() if factory == "net.py:Broken" else weights(), folder / "net.pt")
    with pytest.raises(InputError) as caught:
        load("net.pt", SHAPE, factory=factory, factory_args=arguments)
    assert words in caught.value.reason
    assert len(caught.value.reason) < 2000
    assert caught.value.remedy


def test_a_factory_gets_numbers_as_numbers(load: Load, code: Code, folder: Path) -> None:
    code(
        net="""
        import torch
        def make(size, slope, flag, word, none="x"):
            assert (size, slope, flag, word) == (6, 0.5, True, "abc") and isinstance(size, int) and none == "none"
            return torch.nn.Sequential(torch.nn.Linear(size, 3))
        """
    )
    torch.save({"0.weight": torch.ones(3, 6), "0.bias": torch.ones(3)}, folder / "net.pt")
    words = {"size": "6", "slope": "0.5", "flag": "true", "word": "abc", "none": "none"}
    model = load("net.pt", {"input": "1x6"}, factory="net.py:make", factory_args=words)
    assert [layer.name for layer in model.layers] == ["0"]
    assert model.source.factory_args == words


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "input 'features' is not known"),
        ({"x": "2x6"}, "no argument 'x'; it takes features"),
        ({"features": "2x7"}, "mat1 and mat2"),
    ],
)
def test_shapes_that_do_not_fit_the_network_are_refused(load: Load, code: Code, folder: Path, shapes: dict[str, str], words: str) -> None:
    code(net=NET)
    torch.save(weights(), folder / "net.pt")
    with pytest.raises(InputError) as caught:
        load("net.pt", shapes, factory="net.py:make")
    assert words in caught.value.reason


def test_the_users_own_optimizer_and_kernels_are_theirs(load: Load, code: Code, folder: Path) -> None:
    code(net="from optimizer import Net\nfrom kernels.fast import SCALE\nmake = lambda: Net()\n", optimizer=NET)
    (folder / "kernels").mkdir()
    (folder / "kernels" / "fast.py").write_text("SCALE = 3\n")
    torch.save(weights(), folder / "net.pt")
    assert len(load("net.pt", SHAPE, factory="net.py:make").layers) > 2


def test_a_network_of_several_inputs_keeps_their_names_types_and_its_outputs(load: Load, code: Code, folder: Path) -> None:
    code(
        net="""
        import torch
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.table = torch.nn.Embedding(2, 4)
            def forward(self, input_ids, scale, unused=None):
                rows = self.table(input_ids)
                return {"logits": rows * scale, "rows": rows}
        """
    )
    torch.save({"table.weight": torch.arange(8.0).reshape(2, 4)}, folder / "net.pt")
    model = load("net.pt", {"scale": "1x1x4", "input_ids": "1x5"}, factory="net.py:Net")
    assert [(spec.name, spec.dtype) for spec in model.inputs] == [("input_ids", "int64"), ("scale", "float32")]
    assert [spec.name for spec in model.outputs] == ["logits", "rows"]
    assert [layer.name for layer in model.layers] == ["table", "mul"]
    assert any("int64" in note for note in model.source.notes)


LSTM = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.LSTM(6, 8)
            self.fc = torch.nn.Linear(8, 3)
        def forward(self, features):
            return self.fc(self.rnn(features)[0])
    class Meta(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.meta = Net()  # a name that torch.fx keeps for itself
        def forward(self, features):
            if features.shape[0] > 99: raise ValueError("too long")
            return self.meta(features)
    class Branching(Net):
        def forward(self, features):
            return super().forward(features if features.mean() < 0 else -features)
    class Stuck(torch.nn.Linear):
        def __init__(self): super().__init__(6, 3)
        def forward(self, features): return super().forward(features) * (1 if features.shape[1] == 5 else 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "prefix"), [("Net", ""), ("Meta", "meta.")])
def test_what_one_exporter_can_not_do_comes_from_the_other_under_the_same_names(
    load: Load, code: Code, folder: Path, factory: str, prefix: str
) -> None:
    code(net=LSTM)
    layers = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(6, 8), "fc": torch.nn.Linear(8, 3)})
    torch.save({f"{prefix}{name}": tensor for name, tensor in layers.state_dict().items()}, folder / "net.pt")
    model = load("net.pt", {"features": "2:5:9x1:1:4x6"}, factory=f"net.py:{factory}")
    assert model.inputs[0].shape == ("features_0", "features_1", 6)
    assert any("older exporter" in note for note in model.source.notes) == (factory == "Meta")
    assert any("net.py, line 15, decides" in note for note in model.source.notes) == (factory == "Meta")
    assert {f"{prefix}rnn", f"{prefix}fc", f"{prefix}fc/Add"} <= {layer.name for layer in model.layers}
    for length, batch in ((2, 1), (7, 3)):
        x = np.random.default_rng(length).standard_normal((length, batch, 6)).astype(np.float32)
        with torch.no_grad():
            wanted = layers["fc"](layers["rnn"](torch.from_numpy(x))[0]).numpy()
        np.testing.assert_allclose(answers(model.graph, {"features": x})[0], wanted, atol=1e-5)


def test_a_network_that_branches_on_numbers_is_refused_with_the_line(load: Load, code: Code, folder: Path) -> None:
    code(net=LSTM)
    layers = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(6, 8), "fc": torch.nn.Linear(8, 3)})
    torch.save(layers.state_dict(), folder / "net.pt")
    with pytest.raises(InputError, match=r"decides by the numbers in a tensor \(net.py, line 19\)"):
        load("net.pt", {"features": "5x1x6"}, factory="net.py:Branching")


@pytest.mark.slow
def test_a_dimension_that_no_exporter_leaves_free_is_refused(load: Load, code: Code, folder: Path) -> None:
    code(net=LSTM)
    torch.save(torch.nn.Linear(6, 3).state_dict(), folder / "net.pt")
    with pytest.raises(InputError, match="can't turn this network into a graph") as caught:
        load("net.pt", {"features": "1x2:5:9x6"}, factory="net.py:Stuck")
    assert "Fix the dimension" in caught.value.remedy


def test_a_free_batch_is_free(load: Load, code: Code, folder: Path) -> None:
    code(net=NET)
    state = weights()
    torch.save(state, folder / "net.pt")
    model = load("net.pt", {"features": "1:1:8x6"}, factory="net.py:make")
    assert (model.inputs[0].shape, model.outputs[0].shape) == (("features_0", 6), ("features_0", 3))
    x = np.concatenate([X] * 3)
    np.testing.assert_allclose(answers(model.graph, {"features": x})[0], by_hand(state, x), atol=1e-5)


def test_a_graph_with_other_answers_than_the_network_is_refused(load: Load, code: Code, folder: Path) -> None:
    code(
        net="""
        import torch
        class Net(torch.nn.Linear):
            def __init__(self): super().__init__(6, 3)
            def forward(self, features): return super().forward(features) + torch.rand_like(features[:, :3])
        """
    )
    torch.save(torch.nn.Linear(6, 3).state_dict(), folder / "net.pt")
    with pytest.raises(InputError, match="the graph's answers differ from the network's"):
        load("net.pt", SHAPE, factory="net.py:Net")


GUARDED = """
    import torch
    class Net(torch.nn.Linear):
        def __init__(self): super().__init__(6, 3, bias=False)
        def forward(self, features): return super().forward(torch.log(features.square() + 1e-10))
    class Graphless(Net):
        def forward(self, features):
            guard = 0.0 if torch.compiler.is_exporting() or torch.jit.is_tracing() else 1e-10
            return torch.nn.Linear.forward(self, torch.log(features.square() + guard))
"""


def test_an_epsilon_that_guards_a_logarithm_stays(load: Load, code: Code, folder: Path) -> None:
    code(net=GUARDED)
    torch.save({"weight": torch.ones(3, 6)}, folder / "net.pt")
    model = load("net.pt", SHAPE, factory="net.py:Net")
    for graph in (model.graph, fuse(model).graph):
        silence = answers(graph, {"features": np.zeros((2, 6), np.float32)})[0]
        np.testing.assert_allclose(silence, np.full((2, 3), 6 * np.log(1e-10)), rtol=1e-5)


def test_a_graph_that_loses_its_guard_against_infinity_is_refused(load: Load, code: Code, folder: Path) -> None:
    code(net=GUARDED)
    torch.save({"weight": torch.ones(3, 6)}, folder / "net.pt")
    with pytest.raises(InputError, match="at all-zero inputs the graph gives numbers that are not finite"):
        load("net.pt", SHAPE, factory="net.py:Graphless")


def test_without_torch_the_remedy_is_its_extra(load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "net.pt").write_bytes(b"anything")
    monkeypatch.setattr(importer, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError) as caught:
        load("net.pt", SHAPE, factory="net.py:make")
    assert "optimize[torch]" in caught.value.remedy
