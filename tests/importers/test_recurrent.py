"""A Loop over a sequence becomes the operator that its step is proven to be, with the same answers at any length, or stays a Loop."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from optimizer.fusion import fuse
from optimizer.graph import clone
from optimizer.importers import _tidy
from optimizer.importers._recurrent import recurrent
from optimizer.model import Model

R = np.random.default_rng(3)
INPUTS, HIDDEN = 3, 4
SIZES = [(1, 1), (2, 1), (7, 3)]
"""Length and batch."""

GRU = """
    gx = MatMul(x, w) gh = MatMul(h, r) ax = Add(gx, b) ah = Add(gh, d)
    xz, xr, xg = Split<axis=-1, num_outputs=3>(ax) hz, hr, hg = Split<axis=-1, num_outputs=3>(ah)
    sz = Add(xz, hz) z = Sigmoid(sz) sr = Add(xr, hr) s = Sigmoid(sr)
    gated = Mul(s, hg) sg = Add(xg, gated) g = Tanh(sg)
    kept = Mul(z, h) rest = Sub(one, z) new = Mul(rest, g) after = Add(kept, new)
"""
RESET_BEFORE = """
    gx = MatMul(x, w) ax = Add(gx, b) xz, xr, xg = Split<axis=-1, num_outputs=3>(ax)
    rz, rr, rg = Split<axis=1, num_outputs=3>(r)
    hz = MatMul(h, rz) hr = MatMul(h, rr) sz = Add(xz, hz) z = Sigmoid(sz) sr = Add(hr, xr) s = Sigmoid(sr)
    reset = Mul(s, h) hg = MatMul(reset, rg) sg = Add(hg, xg) g = Softsign(sg)
    difference = Sub(h, g) part = Mul(z, difference) after = Add(g, part)
"""
RNN = "gx = Gemm(x, w, b) gh = MatMul(h, r) sum = Add(gx, gh) after = Relu(sum)"
LSTM = """
    gx = Gemm(x, w, b) gh = MatMul(h, r) sum = Add(gx, gh)
    si, sf, sg, so = Split<axis=1>(sum, parts)
    i3 = Add(si, three) ic = Clip(i3, zero, six) i = Mul(ic, sixth)
    f3 = Add(sf, three) fc = Clip(f3, zero, six) f = Mul(fc, sixth)
    o3 = Add(so, three) oc = Clip(o3, zero, six) o = Mul(oc, sixth)
    g = Tanh(sg) kept = Mul(f, c) new = Mul(i, g) memory = Add(kept, new) squashed = Tanh(memory) after = Mul(o, squashed)
"""
DIVIDED = (
    LSTM.replace("c, sixth)", "c, six)").replace("= Mul(ic", "= Div(ic").replace("= Mul(fc", "= Div(fc").replace("= Mul(oc", "= Div(oc")
)


def looped(
    cell: str, gates: int, *, more: str = "going_next = Less(next, length)", index: str = "time", reads: str = "sequence"
) -> ir.Model:
    """A cell in a Loop as TensorFlow's converter writes one: a counter of its own, the element taken by Gather from outside."""
    two = "memory" in cell
    carried = f"float[B,{HIDDEN}] h" + (f", float[B,{HIDDEN}] c" if two else "")
    after = "after" + (", memory" if two else "")
    body = f"""
        step (int64 iteration, bool going, int64 time, {carried}) => (bool going_next, int64 next, {
        ", ".join(f"float[B,{HIDDEN}] {name}" for name in after.split(", "))
    }, float[B,{HIDDEN}] each) {{
            next = Add(time, one_step) {more} x = Gather({reads}, {index}) {cell} each = Identity(after)
        }}"""
    finals = "h_last" + (", c_last" if two else "")
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        loop (float[T,B,{INPUTS}] sequence, float[B,{HIDDEN}] h0 {f", float[B,{HIDDEN}] c0" if two else ""})
            => (float[T,B,{HIDDEN}] steps, {", ".join(f"float[B,{HIDDEN}] {name}" for name in finals.split(", "))}) {{
            shape = Shape(sequence) length = Gather(shape, zero_step) start = Less(zero_step, length)
            counted, {finals}, steps = Loop(length, start, zero_step, h0{", c0" if two else ""})<body = {body}>
        }}"""
    proto = onnx.parser.parse_model(text)
    constants: dict[str, Any] = {
        "w": R.normal(size=(INPUTS, gates * HIDDEN)),
        "r": R.normal(size=(HIDDEN, gates * HIDDEN)),
        "b": R.normal(size=gates * HIDDEN),
        "d": R.normal(size=gates * HIDDEN),
        "one": 1.0,
        "three": 3.0,
        "six": 6.0,
        "zero": 0.0,
        "sixth": 1 / 6,
    }
    numbers = {name: np.asarray(value, np.float32) for name, value in constants.items() if f" {name})" in text or f"{name}," in text}
    numbers |= {"zero_step": np.array(0), "one_step": np.array(1), "parts": np.array([HIDDEN] * 4), "limit": np.array(2)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in numbers.items())
    model = ir.from_proto(proto)
    _tidy.tidy(model)
    _tidy.name_nodes(model)
    _tidy.name_dimensions(model)
    _tidy.infer(model)
    return model


def run(model: ir.Model, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return [np.asarray(each) for each in ort.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, feeds)]


def feeds(model: ir.Model, length: int, batch: int) -> dict[str, NDArray[Any]]:
    sizes = {"T": length, "B": batch}
    return {
        value.name or "": R.normal(size=[size if isinstance(size, int) else sizes[str(size)] for size in value.shape or ()]).astype(
            np.float32
        )
        for value in model.graph.inputs
    }


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    ("cell", "gates", "operator"),
    [(GRU, 3, "GRU"), (RESET_BEFORE, 3, "GRU"), (RNN, 1, "RNN"), (LSTM, 4, "LSTM"), (DIVIDED, 4, "LSTM")],
    ids="GBRLD",
)
def test_a_loop_becomes_the_operator_of_its_step_with_the_same_answers_at_any_length(cell: str, gates: int, operator: str) -> None:
    before = looped(cell, gates)
    after = clone(before)
    [note] = recurrent(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert operators(after)[operator] == 1
    assert operators(after)["Loop"] == 0
    assert f"is an ONNX {operator}" in note
    loop = next(node.name for node in before.graph if node.op_type == "Loop")
    assert next(node.name for node in after.graph if node.op_type == operator) == loop
    for length, batch in SIZES:
        given = feeds(before, length, batch)
        for got, wanted in zip(run(after, given), run(before, given), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (GRU.replace("Sub(one, z)", "Sub(three, z)"), "not z h"),
        (GRU.replace("kept = Mul(z, h)", "kept = Mul(s, h)"), "not z h"),
        (GRU.replace("z = Sigmoid", "z = Relu"), "different activations"),
        (GRU.replace("sr = Add(xr, hr)", "sr = Mul(xr, hr)"), "not linear"),
        (GRU.replace("z = Sigmoid", "z = Softmax"), "Softmax"),
        (GRU.replace("g = Tanh(sg)", "g = Identity(sg)"), "not z h"),
        (LSTM.replace("Tanh(memory)", "Tanh(kept)"), "not o tanh"),
        (LSTM.replace("f3 = Add(sf, three)", "f3 = Add(sf, six)").replace("fc, sixth", "fc, three"), "not f c"),
    ],
)
def test_a_step_that_is_another_function_stays_a_loop(changed: str, reason: str) -> None:
    model = looped(changed, 4 if "memory" in changed else 3)
    [note] = recurrent(model)
    assert "stays a Loop" in note
    assert reason in note
    assert operators(model)["Loop"] == 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"more": "going_next = Less(next, limit)"}, "as many steps"),
        ({"more": "later = Add(next, one_step) going_next = Less(later, length)"}, "as many steps"),
        ({"more": "going_next = Less(length, next)"}, "before the sequence ends"),
        ({"index": "next"}, "another order"),
        ({"index": "zero_step"}, "another order"),
    ],
)
def test_a_loop_that_does_not_walk_its_sequence_in_order_to_the_end_stays_one(how: dict[str, str], reason: str) -> None:
    model = looped(GRU, 3, **how)
    [note] = recurrent(model)
    assert reason in note
    assert operators(model)["Loop"] == 1


def test_a_loop_may_count_for_itself_or_let_the_loop_count() -> None:
    model = looped(GRU, 3, more="going_next = Identity(going)", index="iteration")
    assert "is an ONNX GRU" in recurrent(model)[0]


KERAS = """
import os, sys
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
import keras, numpy as np
from keras import layers
keras.utils.set_random_seed(2)
x = keras.Input((None, 3), name="x")
steps = layers.GRU(4, return_sequences=True, name="after")(x)
layer = {
    "before": layers.GRU(4, reset_after=False, name="before")(steps),
    "unusual": layers.LSTM(4, activation="softsign", recurrent_activation="hard_sigmoid", return_sequences=True, name="unusual")(steps),
    "both": layers.Bidirectional(layers.GRU(4, return_sequences=True), name="both")(x),
    "backwards": layers.GRU(4, go_backwards=True, return_sequences=True, use_bias=False, name="backwards")(x),
    "usual": layers.LSTM(4, name="usual")(x),
    "plain": layers.SimpleRNN(4, return_sequences=True, name="plain")(x),
    "masked": layers.GRU(4, name="masked")(layers.Masking(name="mask")(x)),
}
model = keras.Model(x, list(layer.values()))
for weight in model.weights:
    if "bias" in weight.path:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
model.save(sys.argv[1] + "/model.keras")
for length, batch in ((1, 1), (2, 1), (7, 3)):
    feed = np.random.default_rng(length).normal(size=(batch, length, 3)).astype("float32")
    np.savez(f"{sys.argv[1]}/{length}.npz", feed, *(np.array(each) for each in model(feed)))
"""


@pytest.mark.slow
def test_recurrent_layers_of_keras_come_out_as_operators_with_keras_s_answers(folder: Path, load: Callable[..., Model]) -> None:
    pytest.importorskip("tensorflow", reason="the model is made by Keras")
    subprocess.run([sys.executable, "-c", KERAS, folder], check=True, capture_output=True)
    imported = load("model.keras")
    model = fuse(imported)
    found = Counter(layer.op for layer in model.layers)
    assert (found["GRU"], found["LSTM"], found["RNN"], found["Loop"]) == (5, 2, 1, 1)
    assert [note for note in imported.source.notes if "stays a Loop" in note and "masked" in note and "mask says" in note]
    operators = [layer.name for layer in model.layers if layer.op in {"GRU", "LSTM", "RNN"}]
    for name in ("after", "before", "unusual", "both", "backwards", "usual", "plain"):
        assert any(name in each for each in operators)
    for length, _ in SIZES:
        given, *wanted = np.load(folder / f"{length}.npz").values()
        for got, right in zip(run(model.graph, {model.inputs[0].name: given}), wanted, strict=True):
            np.testing.assert_allclose(got, right, rtol=2e-5, atol=2e-6)
