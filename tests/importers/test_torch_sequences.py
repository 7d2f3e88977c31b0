"""A split that the exporter wrote as a sequence becomes one Split, where that is the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from optimizer.importers._torch_sequences import without_sequences

GRAPH = """
    <ir_version: 9, opset_import: ["" : 20]>
    g (float[2, 6] x, int64 n) => (float[2, 2] a, float[2, 4] b) <int64[2] sizes = {2, 4}, int64 first = {0}, int64 last = {1}> {
        parts = SplitToSequence <axis = 1> (x, sizes)
        a = SequenceAt(parts, first)
        b = SequenceAt(parts, PLACE)
    }
"""
X = np.arange(12, dtype=np.float32).reshape(2, 6)


def run(model: ir.Model) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X, "n": np.array(1)})  # type: ignore[no-any-return]


def test_parts_taken_by_their_number_come_from_one_split() -> None:
    model = ir.from_onnx_text(GRAPH.replace("PLACE", "last"))
    wanted = run(model)
    assert without_sequences(model)
    assert [node.op_type for node in model.graph] == ["Split"]
    onnx.checker.check_model(ir.to_proto(model))
    for one, other in zip(run(model), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not without_sequences(model)


@pytest.mark.parametrize(
    "text", [GRAPH.replace("PLACE", "n"), GRAPH.replace("PLACE", "last").replace("float[2, 4] b)", "float[2, 4] b, seq(float) parts)")]
)
def test_a_sequence_that_something_else_reads_stays(text: str) -> None:
    model = ir.from_onnx_text(text)
    assert not without_sequences(model)
    assert model.graph[0].op_type == "SplitToSequence"
