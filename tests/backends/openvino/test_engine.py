from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.backends.openvino import convert
from optimizer.errors import InputError, UnavailableError, VerificationError
from optimizer.model import Model, Source
from optimizer.package.load import load
from optimizer.package.passport import Passport, seal
from optimizer.process import Workers

HOSTILE = ("in,\"put<é&>'\n", "x\x1b[31m]]>\x01,out")


def test_inputs_and_outputs_go_by_the_graph_s_names_whatever_these_hold(model, built) -> None:
    net = model("g (float[N,4] x) => (float[N,4] y) { t = Relu(x)  u = Exp(t)  y = Mul(u, t) }")
    nodes = list(net.graph.graph)
    for node, name in zip(nodes, ('a,b/c"<&>é', "\x01control\n", "it's, a/Multiply3"), strict=True):
        node.name = name
    net.graph.graph.inputs[0].name, net.graph.graph.outputs[0].name = HOSTILE
    made = built(net, "bf16", {"\x01control\n": "fp32"})
    assert made.largest_difference({HOSTILE[0]: np.ones((3, 4), np.float32)}) < 0.05
    assert [layer.layer for layer in made.built.realised] == [node.name for node in nodes]
    assert made.layer("\x01control\n").realised == "fp32"


def test_outputs_that_are_inputs_scalars_and_types_other_than_float_come_out_as_the_graph_says(model, built) -> None:
    made = built(
        model("""g (float[2,3] x, int64[2] i, bool s, float16[2] h, double d)
             => (float[2,3] same, float total, float[2,2] picked, bool not, float16[2] twice, double e, int64[2] j, float[3] known) {
        same = Identity(x)  total = ReduceSum<keepdims=0>(x)  picked = Gather<axis=1>(x, i)  not = Not(s)
        twice = Add(h, h)  e = Neg(d)  j = Identity(i)  known = Constant<value=float[3] {1.0, 2.0, 3.0}>() }""")
    )
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "i": np.array([2, 0]), "s": np.array(True)}
    feeds |= {"h": np.ones(2, np.float16), "d": np.array(2.5)}
    assert made.largest_difference(feeds) == 0
    assert made.load().run(feeds)["total"].shape == ()


@pytest.mark.parametrize("batch", [1, 5])
def test_free_sizes_and_branches_stay(model, built, batch: int) -> None:
    made = built(
        model(
            """g (float[N,4] x, bool large) => (float[N,3] y) {
        h = MatMul(x, w)
        y = If (large) <then_branch = t () => (float[N,3] p) { p = Exp(h) }, else_branch = f () => (float[N,3] n) { n = Neg(h) }> }""",
            {"w": (4, 3)},
        )
    )
    for large in (True, False):
        assert made.largest_difference({"x": np.ones((batch, 4), np.float32), "large": np.array(large)}) < 1e-6


def test_weights_in_a_file_of_their_own_are_the_same(model, built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "LARGE", 1)
    made = built(model("g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", {"w": (64, 64)}))
    assert made.largest_difference({"x": np.ones((1, 64), np.float32)}) < 1e-5
    assert sorted(path.name for path in made.folder.iterdir()) == ["engine.bin", "engine.xml"]


def test_one_thread_gives_the_same_bits_in_every_run_and_session(model, built) -> None:
    made = built(model("g (float[1,3,24,24] x) => (float[1,8,22,22] y) { c = Conv(x, w)  y = Softmax(c) }", {"w": (8, 3, 3, 3)}))
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 24, 24)).astype(np.float32)}
    first, second = made.load(), made.load()
    answers = [engine.run(feeds)["y"].tobytes() for engine in (first, first, second)]
    assert len(set(answers)) == 1


def test_an_engine_loads_from_its_sealed_folder_and_not_from_one_that_was_changed(model, built) -> None:
    net = model("g (float[1,4] x) => (float[1,2] y) { y = MatMul(x, w) }", {"w": (4, 2)})
    made = built(net)
    feeds = {"x": np.ones((1, 4), np.float32)}
    passport = Passport(
        **{"name": "net", "target": "cpu", "compute": this_cpu().compute, "backend": "openvino", "engine": "engine.xml"},
        **{"inputs": net.inputs, "outputs": net.outputs, "source": Source("onnx", "net.onnx", "0" * 64), "verdict": "pass"},
        **{"gated_on": "here", "timed_on": "here", "precision": "fp32", "knobs": {"threads": 1}},
    )
    assert set(seal(made.folder, passport).files) == {"engine.xml", "engine.bin"}
    with load(made.folder) as engine:
        np.testing.assert_array_equal(engine.run(feeds)["y"], made.load().run(feeds)["y"])
    weights = made.folder / "engine.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(VerificationError, match=r"engine\.bin"):
        load(made.folder)


def test_arrays_that_lie_otherwise_or_may_not_be_written_give_what_their_copies_give(model, built) -> None:
    engine = built(model("g (float[64,64] x) => (float[64,64] y) { y = Relu(x) }")).load()
    for seed in range(8):
        x = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
        locked = x.copy()
        locked.flags.writeable = False
        np.testing.assert_array_equal(engine.run({"x": locked})["y"], np.maximum(x, 0))
        np.testing.assert_array_equal(engine.run({"x": x.T})["y"], np.maximum(x.T, 0))


def test_mistakes_in_the_inputs_are_told_in_the_model_s_words(model, built) -> None:
    engine = built(model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")).load()
    for feeds, words in (
        ({}, "no array for input 'x'"),
        ({"x": np.ones((1, 5), np.float32)}, "shape 1x5"),
        ({"x": np.ones((1, 4))}, "dtype float64"),
        ({"x": np.ones((1, 4), np.float32), "z": np.ones(1)}, "no input called 'z'"),
    ):
        with pytest.raises(InputError, match=words):
            engine.run(feeds)
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.run({"x": np.ones((1, 4), np.float32)})


def test_text_is_refused_before_openvino_sees_it(model, built) -> None:
    with pytest.raises(UnavailableError, match="can't hold text, and 'x' is text"):
        built(model("g (string[2] x) => (string[2] y) { y = Identity(x) }"))


def test_a_type_that_openvino_does_not_hand_to_python_is_refused(model, built) -> None:
    with pytest.raises(UnavailableError, match="BFLOAT16 from Python, which 'y' is"):
        built(model("g (float[2] x) => (bfloat16[2] y) { y = Cast<to=16>(x) }"))


def test_what_the_plugin_narrows_is_told_or_refused(model, built) -> None:
    made = built(model("g (double[2] x, int64[2] i) => (double[2] y, int64[2] j) { y = Exp(x)  j = Add(i, i) }"))
    assert made.built.notes == ("OpenVINO's CPU kernels compute FLOAT64 in FP32: y.",)
    feeds = {"x": np.ones(2), "i": np.array([2**31 - 1, -(2**31)]) // 2}
    assert made.largest_difference(feeds) < 1e-6
    for wide in (2**31, -(2**31) - 1):
        with pytest.raises(InputError, match="Input 'i' holds numbers beyond 32 bits"):
            made.load().run({**feeds, "i": np.array([0, wide])})


def test_an_operator_that_openvino_lacks_is_refused_in_a_sentence(model, built) -> None:
    with pytest.raises(UnavailableError) as caught:
        built(model("g (float[N,4] x) => (float[N,4] y) { y = ai.onnx.ml.Binarizer<threshold=0.5>(x) }"))
    assert "ai.onnx.ml.Binarizer" in caught.value.reason
    assert "\n" not in caught.value.reason
    assert caught.value.remedy == "Choose another backend."


def test_a_graph_that_ends_its_process_does_not_end_ours(model, built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text("import os\ndef main(channel):\n    channel.receive()\n    os.abort()\n")
    monkeypatch.setattr(convert, "_WORKER", crash)
    with pytest.raises(UnavailableError, match="OpenVINO, building this engine,"):
        built(model("g (float[4] x) => (float[4] y) { y = Relu(x) }"))
    assert list((tmp_path / "engine").iterdir()) == []


def outcome(net: Model, folder: Path, workers: Workers | None = None) -> object:
    """What becomes of a model, but for the times."""
    folder.mkdir(parents=True)
    try:
        told = backend("openvino").build(net.graph, this_cpu(), {"threads": 1}, folder, workers=workers)
    except UnavailableError as error:
        return error.reason
    layers = [replace(layer, ms=None) for layer in told.realised]
    return layers, told.memory, {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_worker_that_stays_builds_what_a_worker_for_each_engine_builds(model, tmp_path: Path) -> None:
    nets = [
        model("g (float[1,8] x) => (float[1,8] y) <float[8,8] w> { h = MatMul(x, w) y = Relu(h) }", {"w": (8, 8)}),
        model("g (float[N,4] x) => (float[N,4] y) { y = ai.onnx.ml.Binarizer<threshold=0.5>(x) }"),
        model("g (float[1,8] x) => (float[1,4] y) <float[8,4] v> { y = MatMul(x, v) }", {"v": (8, 4)}),
        model("g (float[1,8] x) => (float[1,8] y) { y = Tanh(x) }"),
    ]
    alone = [outcome(net, tmp_path / "alone" / str(number)) for number, net in enumerate(nets)]
    with Workers(tmp_path) as workers:
        together = [outcome(net, tmp_path / "together" / str(number), workers) for number, net in enumerate(nets)]
    assert together == alone
    assert isinstance(alone[1], str)


def test_a_file_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    for content in ("", "<net", '<net name="n" version="11"><layers/><edges/></net>'):
        (tmp_path / "engine.xml").write_text(content)
        with pytest.raises(UnavailableError, match="can't load this engine"):
            backend("openvino").load(tmp_path, {"threads": 1})


def test_openvino_writes_nothing_into_the_home_of_its_user_and_calls_nobody(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*a, **k): raise AssertionError("called out")
socket.socket.connect = refuse
from optimizer.backends.openvino import session
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **home}, check=True)
    assert list(tmp_path.iterdir()) == []
