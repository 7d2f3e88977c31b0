"""Whole files of every format that optimize reads, small and of random weights: what benchmarks/fuzz.py damages."""

from __future__ import annotations

import json
import wave
from collections.abc import Iterable
from pathlib import Path

import numpy as np

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))

def make():
    return Net()
"""
"""Lies beside each PyTorch file as net.py."""

CONV = """
<ir_version: 8, opset_import: ["" : 17]>
conv (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[4, 3, 3, 3] w, float[4, 5] v, float[5] b>
{
    c = Conv <kernel_shape = [3, 3]> (x, w)
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm (f, v, b)
}
"""

BRANCHES = """
<ir_version: 8, opset_import: ["" : 13]>
branches (float[1, 4] x, bool flag) => (float[1, 4] y)
{
    y = If (flag) <
        then_branch = yes () => (float[1, 4] a) { a = Relu (x) },
        else_branch = no () => (float[1, 4] b) { b = Tanh (x) }
    >
}
"""

RECURRENT = """
<ir_version: 7, opset_import: ["" : 11]>
recurrent (float[T, 1, 3] x) => (float[T, 1, 1, 4] y)
<float[1, 12, 3] w, float[1, 12, 4] r>
{
    y, last = GRU <hidden_size = 4> (x, w, r)
}
"""


def write(folder: Path, names: Iterable[str]) -> None:
    """A folder of whole files for each format of these names."""
    for name in names:
        (folder / name).mkdir()
        SEEDS[name](folder / name)


def onnx_files(folder: Path) -> None:
    import onnx

    for name, text in {"conv": CONV, "branches": BRANCHES, "recurrent": RECURRENT}.items():
        onnx.save(_filled(text), folder / f"{name}.onnx")


def onnx_with_external_data(folder: Path) -> None:
    import onnx

    options = {"all_tensors_to_one_file": True, "location": "conv.data", "size_threshold": 0}
    onnx.save(_filled(CONV), folder / "conv.onnx", save_as_external_data=True, **options)


def _filled(text: str) -> object:
    """The model of a text; the tensors that it declares in front of its nodes become initializers of random numbers."""
    import onnx

    draw = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    for declared in model.graph.value_info:
        numbers = draw.standard_normal([size.dim_value for size in declared.type.tensor_type.shape.dim]).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, declared.name))
    del model.graph.value_info[:]
    return model


def _network(folder: Path) -> tuple[object, object]:
    """The network of net.py, and an input for it."""
    import torch

    (folder / "net.py").write_text(FACTORY)
    code: dict[str, object] = {"__name__": "net"}
    exec(compile(FACTORY, "net.py", "exec"), code)
    torch.manual_seed(0)
    return code["make"]().eval(), torch.randn(1, 3, 8, 8)  # type: ignore[operator]


def checkpoints(folder: Path) -> None:
    import torch

    network, _ = _network(folder)
    torch.save({"state_dict": network.state_dict(), "epoch": 3, "lr": 0.1}, folder / "zipped.pt")
    torch.save(network.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)


def torchscript(folder: Path) -> None:
    import torch

    torch.jit.trace(*_network(folder)).save(folder / "net.ts")


def exported_program(folder: Path) -> None:
    import torch

    network, x = _network(folder)
    torch.export.save(torch.export.export(network, (x,)), folder / "net.pt2")


def safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    network, _ = _network(folder)
    save_file(network.state_dict(), folder / "net.safetensors")


def sharded_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    network, _ = _network(folder)
    places = {}
    for number in (1, 2):
        part = {key: value for key, value in network.state_dict().items() if key.startswith("fc.") == (number == 2)}
        save_file(part, folder / f"model-{number}.safetensors")
        places.update(dict.fromkeys(part, f"model-{number}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1000}, "weight_map": places}, indent=1))


def hugging_face(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30}
    BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=32)).save_pretrained(folder / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "bert" / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "bert" / "vocab.txt")).save_pretrained(folder / "bert")


def keras(folder: Path) -> None:
    import tensorflow as tf
    import tf_keras

    for version, layers in {"three": tf.keras, "two": tf_keras}.items():
        model = _keras_model(layers)
        model.save(folder / f"{version}.keras")


def hdf5(folder: Path) -> None:
    import tensorflow as tf
    import tf_keras

    for version, layers in {"three": tf.keras, "two": tf_keras}.items():
        _keras_model(layers).save(folder / f"{version}.h5")


def saved_model(folder: Path) -> None:
    import tf_keras

    _keras_model(tf_keras).export(folder / "saved")


def frozen_graph(folder: Path) -> None:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        weights = tf.constant(np.random.default_rng(0).standard_normal((3, 3, 3, 4)), tf.float32)
        tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, weights, 1, "SAME")), [1, 2], name="y")
    (folder / "frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())


def tflite(folder: Path) -> None:
    import tensorflow as tf
    import tf_keras

    (folder / "net.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(_keras_model(tf_keras)).convert())


def _keras_model(keras: object) -> object:
    """A small network of Keras 2 or 3."""
    layers = keras.layers  # type: ignore[attr-defined]
    x = keras.Input((8, 8, 3))  # type: ignore[attr-defined]
    y = layers.DepthwiseConv2D(3)(layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x)))
    return keras.Model(x, layers.Dense(5)(layers.GlobalAveragePooling2D()(y)))  # type: ignore[attr-defined]


def npz(folder: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {"x": draw.standard_normal((6, 3, 8, 8)).astype(np.float32), "y": np.arange(6)}
    np.savez(folder / "stored.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)


def npy_folder(folder: Path) -> None:
    (folder / "data").mkdir()
    for number in range(3):
        np.save(folder / "data" / f"{number}.npy", np.random.default_rng(number).standard_normal((2, 3, 8, 8)).astype(np.float32))


def images(folder: Path) -> None:
    from PIL import Image

    draw = np.random.default_rng(0)
    for kind in ("png", "jpg", "bmp", "webp"):
        (folder / "data" / kind).mkdir(parents=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "data" / kind / f"a.{kind}")


def sound(folder: Path) -> None:
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.random.default_rng(0).integers(-9_000, 9_000, 4_000, np.int16).tobytes())


def parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet as files

    draw = np.random.default_rng(0)
    columns = {name: draw.standard_normal(20).astype(np.float32) for name in "abc"} | {"label": np.arange(20) % 3}
    files.write_table(pyarrow.table(columns), folder / "table.parquet")


def csv(folder: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 3))
    (folder / "table.csv").write_text("a,b,c,label\n" + "".join(f"{a:.3f},{b:.3f},{c:.3f},{n % 3}\n" for n, (a, b, c) in enumerate(rows)))


def config(folder: Path) -> None:
    (folder / "optimize.toml").write_text(
        'target = ["cpu", "l4"]\nprecision = "auto"\nmax_drop = "1%"\nmin_speedup = 1.5\nseed = 3\n\n'
        '[shapes]\nx = "1x3x8x8"\n\n[inputs.x]\nlayout = "NHWC"\nscale = 0.0039\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]\n'
    )


def plan(folder: Path) -> None:
    from calibration.ranges import Range
    from optimizer.plan import Plan, Shape
    from optimizer.provenance import to_json

    made = Plan(
        "onnxruntime",
        "cpu",
        "fp32",
        {"conv": "int8", "fc": "bf16"},
        {"x": Range("minmax", -1.0, 1.0)},
        knobs={"threads": 2, "spin": True},
        shapes={"x": Shape((1, 3), (1, 3), (4, 3))},
        reasons={"conv": "it is faster"},
    )
    (folder / "plan.json").write_bytes(to_json(made))


SEEDS = {
    "onnx": onnx_files,
    "onnx, external data": onnx_with_external_data,
    "PyTorch checkpoint": checkpoints,
    "TorchScript": torchscript,
    "torch.export": exported_program,
    "safetensors": safetensors,
    "safetensors, sharded": sharded_safetensors,
    "Hugging Face": hugging_face,
    "Keras": keras,
    "HDF5": hdf5,
    "SavedModel": saved_model,
    "frozen graph": frozen_graph,
    "TFLite": tflite,
    "npz": npz,
    "npy": npy_folder,
    "images": images,
    "wav": sound,
    "parquet": parquet,
    "csv": csv,
    "optimize.toml": config,
    "plan.json": plan,
}
