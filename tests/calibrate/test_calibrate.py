"""One pass over the data counts every tensor, the same bits however it is cut up, and bad data is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from calibration.observers import Statistics
from optimizer.calibrate import calibrate, watched
from optimizer.errors import InputError
from optimizer.graph import infer_shapes
from optimizer.model import Model, Source
from optimizer.reference import Reference

KEY = {"model": "here"}

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
network (float[1, 3, SIZE, SIZE] x, float[8, 3, 3, 3] w, float[8] b, float[4, 8] m) => (float[1, 4] y)
{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    [relu] r = Relu (c)
    [sigmoid] s = Sigmoid (r)
    [mul] p = Mul (r, s)
    [transpose] t = Transpose <perm = [0, 2, 3, 1]> (p)
    [pool] g = GlobalAveragePool (p)
    [flatten] f = Flatten (g)
    [fc] y = Gemm <transB = 1> (f, m)
}
"""


def network(size: str = "16", text: str = TEXT) -> Model:
    """A small CNN with the tensors x, c (read by a Relu alone), r, s, p, t, g, f and y."""
    draw = np.random.default_rng(0)
    graph = ir.from_onnx_text(text.replace("SIZE", size))
    while len(graph.graph.inputs) > 1:  # all but x become weights
        weight = graph.graph.inputs.pop(1)
        weight.const_value = ir.tensor(draw.standard_normal(weight.shape.numpy()).astype(np.float32), name=weight.name)
        graph.graph.register_initializer(weight)
    infer_shapes(graph)
    return Model(graph, Source("onnx", "network.onnx", ""))


def samples(count: int, size: int = 16) -> list[dict[str, NDArray[Any]]]:
    draw = np.random.default_rng(1)
    return [{"x": draw.standard_normal((1, 3, size, size)).astype(np.float32)} for _ in range(count)]


def test_every_tensor_that_can_carry_qdq_is_counted_as_it_is() -> None:
    model, data = network(), samples(3)
    table = calibrate(model, data, key=KEY)
    assert tuple(table.statistics) == watched(model) == ("x", "r", "s", "p", "t", "g", "f", "y")
    assert (table.samples, dict(table.key)) == (3, KEY)
    reference = Reference(model.graph, watch=list(table.statistics), optimized=True)
    every = [reference.run(feed) for feed in data]
    for name, seen in table.statistics.items():
        assert seen == Statistics.of(np.concatenate([arrays[name].reshape(-1) for arrays in every]))


def test_order_and_threads_change_no_bit_and_parts_merge_to_the_whole() -> None:
    model, data = network(), samples(7)
    whole = calibrate(model, data, key=KEY)
    assert calibrate(model, data[::-1], key=KEY) == whole
    assert calibrate(model, iter(data), key=KEY, threads=3) == whole
    assert calibrate(model, data[:2], key=KEY).merge(calibrate(model, data[2:], key=KEY)) == whole
    assert calibrate(model, data, key=KEY, threads=2).to_json() == whole.to_json()


def test_slices_of_tensors_change_no_more_than_rounding() -> None:
    model, data = network(), samples(7)
    whole, sliced = calibrate(model, data, key=KEY), calibrate(model, data, key=KEY, run_bytes=1)
    assert list(whole.statistics) == list(sliced.statistics)
    for name, seen in whole.statistics.items():
        other = sliced.statistics[name]
        assert (other.count, other.minimum, other.maximum) == pytest.approx((seen.count, seen.minimum, seen.maximum), rel=1e-5)


def test_samples_of_different_sizes_are_counted_together() -> None:
    model = network("n")
    data = [*samples(2, 8), *samples(2, 24)]
    whole = calibrate(model, data, key=KEY, run_bytes=10_000)
    assert whole == calibrate(model, data[::-1], key=KEY)
    assert whole.statistics["x"].count == 2 * 3 * (8 * 8 + 24 * 24)


def test_only_the_tensors_asked_for_are_counted() -> None:
    assert tuple(calibrate(network(), samples(2), key=KEY, tensors=["c", "t"]).statistics) == ("c", "t")


def test_a_graph_without_types_is_calibrated_like_one_with_them() -> None:
    bare = network()
    for node in bare.graph.graph:
        for value in node.outputs:
            value.type = value.shape = None
    assert calibrate(bare, samples(2), key=KEY) == calibrate(network(), samples(2), key=KEY)


def test_samples_are_read_lazily_and_once() -> None:
    taken = []

    def data() -> Iterator[dict[str, NDArray[Any]]]:
        for index, feed in enumerate(samples(6)):
            taken.append(index)
            yield feed

    ahead = []

    def track(_step: str, done: int, _total: int) -> None:
        ahead.append(len(taken) - done)

    calibrate(network(), data(), key=KEY, track=track)
    assert taken == list(range(6))
    assert len(ahead) == 6
    assert max(ahead) <= 2


def test_progress_knows_the_total_where_the_data_has_a_length() -> None:
    steps: list[tuple[str, int, int]] = []
    calibrate(network(), samples(2), key=KEY, track=lambda *step: steps.append(step))
    assert steps == [("calibrating", 1, 2), ("calibrating", 2, 2)]


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        calibrate(network(), [], key=KEY)


@pytest.mark.parametrize("threads", [1, 4])
def test_nan_in_the_data_is_refused_with_input_and_sample(threads: int) -> None:
    data = samples(6)
    for index in (2, 3, 5):
        data[index]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match=re.escape("The input 'x' is NaN in calibration sample 2.")):
        calibrate(network(), data, key=KEY, threads=threads)


def test_nan_in_an_activation_is_refused_with_the_first_layer_that_makes_it() -> None:
    model = network(text=TEXT.replace("[sigmoid] s = Sigmoid (r)", "[log] s = Log (c)"))
    with pytest.raises(InputError, match=re.escape("The output of 'log' (Log) is NaN in calibration sample 0.")):
        calibrate(model, samples(2), key=KEY)


def test_nothing_but_infinity_is_refused_and_some_infinities_are_counted() -> None:
    data = samples(3)
    data[1]["x"][0, 0, 0, 0] = np.inf
    text = '<ir_version: 10, opset_import: ["" : 20]> one (float[1, 3, 16, 16] x) => (float[1, 3, 16, 16] y) { [exp] y = Exp (x) }'
    table = calibrate(network(text=text), data, key=KEY)
    assert table.statistics["y"].infs == 1
    with pytest.raises(InputError, match=re.escape("The output of 'exp' (Exp) is infinite everywhere in the calibration data.")):
        calibrate(network(text=text), [{"x": np.abs(feed["x"]) + 200} for feed in samples(2)], key=KEY)


def test_constant_data_is_refused() -> None:
    one = samples(1)
    with pytest.raises(InputError, match="constant: the same sample 3 times"):
        calibrate(network(), one * 3, key=KEY)
    with pytest.raises(InputError, match="constant: one sample of one number only"):
        calibrate(network(), [{"x": np.zeros((1, 3, 16, 16), np.float32)}], key=KEY)
    assert calibrate(network(), one, key=KEY).samples == 1


def test_a_sample_that_can_not_be_run_is_named() -> None:
    data = samples(3)
    data[1]["x"] = np.zeros((1, 5, 16, 16), np.float32)
    with pytest.raises(InputError, match="Calibration sample 1:"):
        calibrate(network(), data, key=KEY)
