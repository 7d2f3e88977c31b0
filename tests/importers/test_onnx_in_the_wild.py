"""ONNX files with what the wild brings: loops, float64, sparse weights, every opset, functions, duplicate declarations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from optimizer.errors import InputError
from optimizer.model import Model
from optimizer.reference import Reference

Load = Callable[..., Model]
Write = Callable[..., onnx.ModelProto]


def same(model: Model, file: Path, **feeds: Any) -> None:
    wanted = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"]).run(None, feeds)
    found = Reference(model.graph).run(feeds)
    for spec, array in zip(model.outputs, wanted, strict=True):
        np.testing.assert_allclose(found[spec.name], array, rtol=1e-6)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 20, 21, 23])
def test_every_opset_comes_in_with_the_same_answers(load: Load, model: Write, folder: Path, opset: int) -> None:
    model(
        """
        g (float[N, 3, 6, 6] x) => (float[N, 3] y)
        <float[3] s = {1, 2, 3}, float[3] b = {1, 1, 1}, float[3] m = {0, 0, 1}, float[3] v = {1, 2, 1}> {
            n = BatchNormalization(x, s, b, m, v)
            p = GlobalAveragePool(n)
            f = Flatten <axis = 1> (p)
            y = Softmax <axis = 1> (f)
        }
        """,
        opset=opset,
        names=["norm", "pool", "flat", "soft"],
    )
    imported = load("model.onnx")
    assert imported.graph.opset_imports[""] == max(opset, 20)
    assert {"norm", "pool", "flat"} <= {layer.name for layer in imported.layers}
    same(imported, folder / "model.onnx", x=np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32))


def test_a_loop_comes_in_with_what_it_reads_from_outside(load: Load, model: Write, folder: Path) -> None:
    model(
        """
        g (float[4] x, int64 n) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
            t = Constant <value = bool {1}> ()
            y = Loop (n, t, x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] e) { d = Identity(c) e = Add(a, w) }>
        }
        """
    )
    same(load("model.onnx"), folder / "model.onnx", x=np.ones(4, np.float32), n=np.asarray(3))


def test_a_scan_comes_in(load: Load, model: Write, folder: Path) -> None:
    model(
        """
        g (float[3] s, float[5, 3] x) => (float[3] last, float[5, 3] all) {
            last, all = Scan <num_scan_inputs = 1, body = b (float[3] a, float[3] r) => (float[3] c, float[3] d) {
                c = Add(a, r) d = Identity(c) }> (s, x)
        }
        """
    )
    same(load("model.onnx"), folder / "model.onnx", s=np.zeros(3, np.float32), x=np.ones((5, 3), np.float32))


def test_a_model_of_doubles_stays_one(load: Load, model: Write, folder: Path) -> None:
    model("g (double[N, 2] x) => (double[N, 2] y) <double[2, 2] w = {1, 2, 3, 4}> { a = MatMul(x, w) y = Relu(a) }")
    imported = load("model.onnx")
    assert [spec.dtype for spec in (*imported.inputs, *imported.outputs)] == ["float64", "float64"]
    same(imported, folder / "model.onnx", x=np.ones((3, 2)))


def test_sparse_weights_come_in_as_dense_ones(load: Load, model: Write, folder: Path) -> None:
    proto = model("g (float[N, 4] x) => (float[N, 4] y) { y = Mul(x, w) }")
    values = onnx.numpy_helper.from_array(np.array([3, 5], np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([1, 3], np.int64), "w_indices")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4]))
    onnx.save(proto, folder / "model.onnx")
    imported = load("model.onnx")
    assert Reference(imported.graph).run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[0, 3, 0, 5]]


def test_a_custom_domain_hidden_in_a_loop_is_refused(load: Load, model: Write) -> None:
    model(
        """
        g (float[4] x, int64 n, bool t) => (float[4] y) {
            y = Loop (n, t, x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] e) { d = Identity(c) e = far.Away(a) }>
        }
        """,
        domains=["far"],
    )
    with pytest.raises(InputError, match="'Away' of the domain 'far'"):
        load("model.onnx")
