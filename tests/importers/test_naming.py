"""Layers are called as the user's source calls them, whichever exporter wrote the graph."""

from __future__ import annotations

import onnx_ir as ir

from optimizer.importers._naming import name_layers, strip_metadata

MODULES = {
    "": "net.Net",
    "stem": "torch.nn.modules.conv.Conv2d",
    "attend": "torch.nn.modules.activation.MultiheadAttention",
    "blocks": "torch.nn.modules.container.Sequential",
    "blocks.0": "net.Block",
    "blocks.0.fc": "torch.nn.modules.linear.Linear",
    "blocks.0.act": "torch.nn.modules.activation.GELU",
}

GRAPH = """
    <ir_version: 9, opset_import: ["" : 20]>
    g (float[1, 3, 4, 4] x, float[4, 4] m) => (float[1, 3, 4, 4] y) <float[1] weight = {1}, float[1] bias = {1}> {
        a = Conv(x, weight)
        b = MatMul(a, m)
        c = Add(b, bias)
        d = Erf(c)
        e = Mul(d, c)
        f = Relu(e)
        h = Relu(f)
        y = Relu(h)
    }
"""


def graph(scopes: list[str], names: list[str] | None = None) -> ir.Model:
    model = ir.from_onnx_text(GRAPH)
    model.graph.initializers["weight"].name = "stem.weight"
    model.graph.initializers["bias"].name = "blocks.0.fc.bias"
    for node, scope, name in zip(model.graph, scopes or [""] * 8, names or [""] * 8, strict=True):
        node.name = name
        if scope:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scope
            node.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/somebody/net.py"
    return model


def test_modules_and_the_ops_called_in_them_give_the_names() -> None:
    model = graph(
        [
            "['', 'attend', 'linear_1']",
            "['', 'blocks', 'blocks.0', 'blocks.0.fc', 'linear']",
            "['', 'blocks', 'blocks.0', 'blocks.0.fc', 'linear']",
            "['', 'blocks', 'blocks.0', 'blocks.0.act', 'gelu']",
            "['', 'blocks', 'blocks.0', 'blocks.0.act', 'gelu']",
            "['', 'blocks', 'blocks.0', 'relu_3']",
            "['', 'blocks', 'blocks.0', 'relu_4']",
            "['', 'no.such.module', 'relu_5']",
        ]
    )
    name_layers(model, MODULES)
    assert [node.name for node in model.graph] == [
        "stem",
        "blocks.0.fc",
        "blocks.0.fc/Add",
        "blocks.0.act/Erf",
        "blocks.0.act",
        "blocks.0.relu",
        "blocks.0.relu#2",
        "relu",
    ]
    strip_metadata(model)
    assert b"somebody" not in ir.to_proto(model).SerializeToString()


def test_names_of_the_older_exporter_lead_to_the_same_modules() -> None:
    names = ["/stem/Conv", "/blocks/blocks.0/fc/MatMul", "/blocks/blocks.0/fc/Add", "/blocks/blocks.0/act/Erf"]
    names += ["/blocks/blocks.0/act/Mul", "/blocks/blocks.0/Relu", "/blocks/blocks.0/act_1/Relu", "/Relu_1"]
    model = graph([], names)
    name_layers(model, MODULES)
    assert [node.name for node in model.graph] == [
        "stem",
        "blocks.0.fc",
        "blocks.0.fc/Add",
        "blocks.0.act/Erf",
        "blocks.0.act",
        "blocks.0.relu",
        "blocks.0.act#2",
        "relu",
    ]


RECURRENT = """
    <ir_version: 9, opset_import: ["" : 20]>
    g (float[5, 1, 4] x, float[1, 16, 4] w, float[1, 16, 4] r, float[2, 3] shape) => (float y) {
        start = Expand(x, shape)
        y, h, c = LSTM <hidden_size = 4> (x, w, r, , , start)
        z = Transpose(y)
        y2, h2, c2 = LSTM <hidden_size = 4> (z, w, r)
    }
"""


def test_an_lstm_is_its_module_and_what_surrounds_it_pieces_of_it() -> None:
    modules = {"": "net.Net", "rnn": "torch.nn.modules.rnn.LSTM"}
    model = ir.from_onnx_text(RECURRENT)
    for node, op in zip(model.graph, ("zeros", "lstm", "transpose", "lstm"), strict=True):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = f"['', 'rnn', '{op}']"
    name_layers(model, modules)
    assert [node.name for node in model.graph] == ["rnn/Expand", "rnn", "rnn/Transpose", "rnn#2"]


def test_the_only_lstm_of_a_scripted_network_has_its_name_though_its_scope_is_lost() -> None:
    model = ir.from_onnx_text(RECURRENT)
    for node, name in zip(model.graph, ("/Expand", "/LSTM", "/Transpose", "/LSTM_1"), strict=True):
        node.name = name
    name_layers(model, {"": "net.Net", "rnn": "torch.nn.modules.rnn.LSTM"})
    assert [node.name for node in model.graph] == ["expand", "rnn", "transpose", "rnn#2"]
    name_layers(model, {"": "net.Net", "one": "torch.nn.modules.rnn.LSTM", "two": "torch.nn.modules.rnn.LSTM"})
    assert "one" not in {node.name for node in model.graph}
