"""An ONNX file comes in as every later step can rely on it, computes what it did, or is refused in words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from optimizer import graph as graphs
from optimizer.errors import InputError
from optimizer.importers import onnx as importer
from optimizer.model import Model

Load = Callable[..., Model]
Write = Callable[..., onnx.ModelProto]

SMALL = """
    g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
        a = Add(x, w)
        y = Relu(a)
    }
"""


def answers(graph: ir.Model | Path, **feeds: Any) -> list[Any]:
    data = graph.read_bytes() if isinstance(graph, Path) else ir.to_proto(graph).SerializeToString()
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    return list(onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, arrays))


def test_a_plain_model_keeps_its_inputs_outputs_and_answers(load: Load, model: Write) -> None:
    model(SMALL)
    imported = load("model.onnx")
    assert [spec.shape for spec in (*imported.inputs, *imported.outputs)] == [("N", 4), ("N", 4)]
    assert (imported.source.framework, imported.source.file, imported.source.code_ran) == ("onnx", "model.onnx", False)
    assert imported.source.notes == ()
    assert {"onnx", "onnxruntime", "python"} <= set(imported.source.versions)
    assert answers(imported.graph, x=np.full((2, 4), -2, np.float32))[0].tolist() == [[0, 0, 1, 2]] * 2


def test_nodes_get_unique_names_that_say_something(load: Load, model: Write) -> None:
    model(SMALL.replace("y = Relu(a)", "b = Relu(a)\n c = Relu(b)\n y = Relu(c)"), names=["", "same", "same", ""])
    assert [layer.name for layer in load("model.onnx").layers] == ["Add:a", "same", "same#2", "Relu:y"]


def test_names_with_markup_and_control_characters_come_through_as_they_are(load: Load, model: Write) -> None:
    names = ["[bold]x[/bold]<script>alert(1)</script>", "\x1b[31mred"]
    model(SMALL, names=names)
    assert [layer.name for layer in load("model.onnx").layers] == names


def test_constants_are_initializers_and_initializers_no_inputs(load: Load, model: Write, folder: Path) -> None:
    proto = model(
        """
        g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
            c = Constant <value_float: float = 2.0> ()
            d = Constant <value = float[4] {1, 2, 3, 4}> ()
            a = Add(x, w)
            b = Mul(a, c)
            y = Mul(b, d)
        }
        """
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))
    onnx.save(proto, folder / "model.onnx")
    imported = load("model.onnx")
    assert [spec.name for spec in imported.inputs] == ["x"]
    assert {node.op_type for node in imported.graph.graph} == {"Add", "Mul"}
    assert set(imported.graph.graph.initializers) == {"w", "c", "d"}
    assert "1 initializers" in imported.source.notes[0]
    assert answers(imported.graph, x=np.ones((1, 4), np.float32))[0].tolist() == [[4, 12, 24, 40]]


def test_an_old_opset_is_raised_with_names_metadata_and_answers_kept(load: Load, model: Write, folder: Path) -> None:
    proto = model(
        """
        g (float[2, 3, 4] x) => (float[2, 1, 3, 4] y) {
            a = Softmax <axis = 1> (x)
            b = Unsqueeze <axes = [1]> (a)
            y = Clip(b)
        }
        """,
        opset=11,
        names=["probabilities", "more", "clip"],
    )
    for node in proto.graph.node:
        node.metadata_props.add(key="where", value=node.name)
    onnx.save(proto, folder / "model.onnx")
    imported = load("model.onnx")
    assert imported.graph.opset_imports[""] == 20
    kept = {node.name: node.metadata_props.get("where") for node in imported.graph.graph}
    assert {("more", "more"), ("clip", "clip")} <= set(kept.items())
    assert imported.source.notes[0] == "Raised from opset 11 to 20."
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    assert x.sum() != 0
    np.testing.assert_allclose(answers(imported.graph, x=x)[0].sum(axis=(1, 2, 3)), 1, rtol=1e-5)  # flattened, as opset 11 says
    np.testing.assert_allclose(answers(imported.graph, x=x)[0], answers(folder / "model.onnx", x=x)[0], rtol=1e-6)


def test_a_newer_opset_stays(load: Load, model: Write) -> None:
    model(SMALL, opset=22)
    assert load("model.onnx").graph.opset_imports[""] == 22


def test_a_graph_that_answers_otherwise_once_it_is_tidied_is_refused(load: Load, model: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(graph: ir.Model) -> tuple[str, ...]:
        graph.graph.initializers["w"].const_value = ir.tensor(np.array([1, 2, 3, 4.1], np.float32))
        return ()

    monkeypatch.setattr(importer, "raise_opset", spoil)
    model(SMALL)
    with pytest.raises(InputError, match="other answers once it is tidied"):
        load("model.onnx")


def test_functions_become_nodes_of_the_graph(load: Load, folder: Path) -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 20, "mine" : 1]>
        g (float[N] x) => (float[N] y) { y = mine.twice(x) }
        <domain: "mine", opset_import: ["" : 20]>
        twice (a) => (b) { b = Add(a, a) }
        """
    )
    onnx.save(proto, folder / "model.onnx")
    imported = load("model.onnx")
    assert [layer.op for layer in imported.layers] == ["Add"]
    assert dict(imported.graph.opset_imports) == {"": 20}


def test_stray_domains_are_dropped(load: Load, model: Write) -> None:
    model(SMALL, domains=["ai.onnx.ml", "com.microsoft", "org.example.nothing"])
    assert dict(load("model.onnx").graph.opset_imports) == {"": 20}


def test_free_dimensions_called_alike_by_nobody_are_told_apart(load: Load, model: Write, folder: Path) -> None:
    proto = model("g (float[A, B] x) => (float[C] y) { y = ReduceSum <keepdims = 0, noop_with_empty_axes = 0> (x) }")
    sizes = proto.graph.input[0].type.tensor_type.shape.dim
    sizes[0].dim_param, sizes[1].dim_param = "?", "?"
    onnx.save(proto, folder / "model.onnx")
    imported = load("model.onnx")
    assert imported.inputs[0].shape == ("x_0", "x_1")
    assert imported.outputs[0].shape == ()
    assert imported.source.notes == ("Output 'y' is declared as C and is a scalar.",)


def test_shapes_fix_a_dimension_wherever_its_name_stands(load: Load, model: Write) -> None:
    model("g (float[N, C] x, float[N, C] y) => (float[N, C] z) { z = Add(x, y) }")
    imported = load("model.onnx", {"x": "5x1:2:3"})
    assert [spec.shape for spec in imported.inputs] == [(5, "C"), (5, "C")]
    assert imported.outputs[0].shape == (5, "C")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"q": "1x4"}, "no input 'q'"),
        ({"x": "1x4x4"}, "2 dimensions"),
        ({"x": "1x5"}, "is 4 in the model, and was asked to be 5"),
        ({"x": "1x2:3:4"}, "asked to be 2 to 4"),
        ({"x": "1x4", "z": "2x4"}, "'N' was given both 1 and 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(load: Load, model: Write, shapes: dict[str, str], words: str) -> None:
    model("g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Add(x, z) }")
    with pytest.raises(InputError, match=words) as caught:
        load("model.onnx", shapes)
    assert caught.value.remedy


def test_an_untrue_output_shape_is_replaced_and_told(load: Load, model: Write, folder: Path) -> None:
    proto = model(SMALL)
    sizes = proto.graph.output[0].type.tensor_type.shape.dim
    sizes[0].dim_value, sizes[1].dim_value = 7, 9
    onnx.save(proto, folder / "model.onnx")
    imported = load("model.onnx")
    assert imported.outputs[0].shape == ("N", 4)
    assert imported.source.notes == ("Output 'y' is declared as 7x9 and is Nx4.",)


def test_a_shape_that_only_a_run_can_tell_is_taken_from_one(load: Load, model: Write) -> None:
    model(
        """
        g (float[4] x) => (float[Q] y) <float[1] low = {-100}> {
            a = Greater(x, low)
            y = Compress(x, a)
        }
        """
    )
    assert load("model.onnx").outputs[0].shape == (4,)


def test_weights_beside_the_model_stay_there(load: Load, model: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LARGE", 0)  # the copy for the comparison takes its weights outside, too
    proto = model("g (float[N, 400] x) => (float[N, 400] y) <float[400] w> { a = Add(x, w) y = Relu(a) }", names=["same"] * 2)
    del proto.graph.input[1:]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(400, dtype=np.float32), "w"))
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    weight = load("model.onnx").graph.graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    assert weight.numpy()[-1] == 399


def _external(folder: Path, location: str, **told: object) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 20]>{SMALL}')
    weight = proto.graph.initializer[0]
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **told}.items():
        weight.external_data.add(key=key, value=str(value))
    onnx.save(proto, folder / "model.onnx")


@pytest.mark.parametrize(
    ("location", "told", "words"),
    [
        ("{outside}", {}, "outside the model's folder"),
        ("../secret.bin", {}, "outside the model's folder"),
        ("inner/../../secret.bin", {}, "outside the model's folder"),
        ("", {}, "outside the model's folder"),
        ("link.bin", {}, "a link that leads out"),
        ("inner/secret.bin", {}, "a link that leads out"),
        ("nowhere.bin", {}, "is not there"),
        ("short.bin", {}, "ends beyond the 8 bytes"),
        ("short.bin", {"length": 8}, "needs 16 bytes"),
        ("w.bin", {"offset": 4}, "ends beyond the 16 bytes"),
        ("w.bin", {"offset": -16}, "ends beyond"),
        ("w.bin", {"offset": "1e3"}, "no number"),
        ("w.bin", {"length": 1 << 70}, "ends beyond"),
    ],
)
def test_data_that_are_not_the_models_own_or_not_whole_are_refused(
    load: Load, folder: Path, tmp_path: Path, location: str, told: dict[str, object], words: str
) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(16))
    (folder / "w.bin").write_bytes(bytes(16))
    (folder / "short.bin").write_bytes(bytes(8))
    (folder / "link.bin").symlink_to(secret)
    (folder / "inner").symlink_to(tmp_path)
    _external(folder, location.format(outside=secret), **told)
    with pytest.raises(InputError, match=words) as caught:
        load("model.onnx")
    assert caught.value.remedy


def test_a_tensor_inside_a_branch_reads_no_other_file_either(load: Load, folder: Path) -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 20]>
        g (bool c) => (float[1] y) {
            y = If (c) <
                then_branch = t () => (float[1] a) { a = Constant <value = float[1] {1}> () },
                else_branch = e () => (float[1] b) { b = Constant <value = float[1] {2}> () }
            >
        }
        """
    )
    tensor = proto.graph.node[0].attribute[0].g.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    onnx.save(proto, folder / "model.onnx")
    with pytest.raises(InputError, match="outside the model's folder"):
        load("model.onnx")


@pytest.mark.parametrize(
    ("text", "opset", "words"),
    [
        ("g (float[2] x) => (float[2] y) { a = Relu(y) y = Relu(a) }", 20, "not output of any previous nodes"),
        ("g (float[2, 3] x, float[4, 5] z) => (float[2, 5] y) { y = MatMul(x, z) }", 20, "Incompatible dimensions"),
        ("g (float[2] x) => (float[2] y) { y = Relu(q) }", 20, "'q'"),
        ("g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }", 20, "NoSuchOperator"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x, x, x) }", 20, "Relu"),
        ("g (float[2] x) => (float[2] y) { y = Concat(x, x) }", 20, "axis"),
        ("g (float[2] x) => (float[2] y) { y = my.domain.Thing(x) }", 20, "'Thing' of the domain 'my.domain'"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x) }", 99, "opset 99"),
        ("g (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct(x) }", 20, "is no tensor"),
    ],
)
def test_an_invalid_graph_is_refused_in_words(load: Load, model: Write, folder: Path, text: str, opset: int, words: str) -> None:
    model(text, opset=opset, domains=["my.domain"])
    with pytest.raises(InputError) as caught:
        load("model.onnx")
    assert words in caught.value.reason
    assert str(folder.parent) not in caught.value.reason
    assert caught.value.remedy


@pytest.mark.parametrize("kind", ["empty", "junk", "truncated", "no nodes", "folder", "missing", "another format", "factory"])
def test_a_file_that_is_no_model_is_refused(load: Load, model: Write, folder: Path, kind: str) -> None:
    name, how = "model.onnx", {}
    model(SMALL)
    whole = (folder / name).read_bytes()
    if kind == "folder":
        (folder / name).unlink()
        (folder / name).mkdir()
    elif kind == "missing":
        (folder / name).unlink()
    elif kind == "another format":
        name = "model.tflite"
        (folder / name).write_bytes(whole)
    elif kind == "factory":
        how = {"factory": "net.py:make"}
    else:
        empty = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])).SerializeToString()
        junk = np.random.default_rng(3).bytes(4000)
        (folder / name).write_bytes({"empty": b"", "junk": junk, "truncated": whole[: len(whole) // 2], "no nodes": empty}[kind])
    with pytest.raises(InputError) as caught:
        load(name, **how)
    assert name in caught.value.reason
    assert caught.value.remedy


def test_a_model_cut_anywhere_or_with_any_byte_changed_never_ends_in_another_error(load: Load, model: Write, folder: Path) -> None:
    model(SMALL)
    whole = (folder / "model.onnx").read_bytes()
    generator = np.random.default_rng(5)
    for _ in range(12):
        broken = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        broken[generator.integers(len(broken))] ^= int(generator.integers(1, 256))
        (folder / "model.onnx").write_bytes(broken)
        with contextlib.suppress(InputError):
            load("model.onnx")


def test_a_speech_detector_with_branches_and_state_comes_in(load: Load, assets: Path) -> None:
    free = load(assets / "silero_vad_16k.onnx")
    assert free.inputs[0].shape == ("batch", "sequence")
    fixed = load(assets / "silero_vad_16k.onnx", {"input": "1x576", "state": "2x1x128"})
    assert [spec.shape for spec in fixed.outputs] == [(1, 1), (2, 1, 128)]
    assert sum(layer.op == "If" for layer in fixed.layers) == 3
    feeds = {"input": np.full((1, 576), 0.1, np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.int64(16000)}
    for wanted, found in zip(answers(assets / "silero_vad_16k.onnx", **feeds), answers(fixed.graph, **feeds), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "asked"),
    [("--signature", {"signature": "serve"}), ("--tag", {"tags": ("serve",)}), ("--source-python", {"source_python": Path("python")})],
)
def test_an_option_that_means_nothing_for_the_file_is_refused(load: Load, model: Write, option: str, asked: Any) -> None:
    model("net (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(InputError) as caught:
        load("model.onnx", **asked)
    assert caught.value.reason.startswith(option)
