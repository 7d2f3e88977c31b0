"""The sharpest of the files that benchmarks/fuzz.py is made of: refused in words, soon, and nothing written but in the scratch folder."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizer.errors import InputError
from optimizer.importers import onnx as onnx_importer
from optimizer.model import Model

Load = Callable[..., Model]

ENDINGS = (".onnx", ".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors", ".safetensors.index.json", ".pt2", ".ts", ".torchscript")
ENDINGS_OF_TENSORFLOW = (".pb", ".keras", ".h5", ".hdf5", ".tflite")
DEEP = 10_000


@pytest.fixture
def refused(load: Load, tmp_path: Path) -> Iterator[Callable[..., InputError]]:
    """Loads what must be refused; at the end, nothing lies anywhere that did not lie there before."""
    seen: set[Path] = set()

    def call(file: str, shapes: dict[str, str] | None = None, **how: object) -> InputError:
        seen.update(tmp_path.rglob("*"))
        with pytest.raises(InputError) as caught:
            load(file, shapes, **how)
        assert "Traceback" not in caught.value.reason
        assert caught.value.remedy
        return caught.value

    yield call
    assert {path for path in tmp_path.rglob("*") if tmp_path / "scratch" not in path.parents} == {
        path for path in seen if tmp_path / "scratch" not in path.parents
    }


@pytest.mark.parametrize("ending", [*ENDINGS, *ENDINGS_OF_TENSORFLOW, ""])
def test_an_empty_file_is_called_so(refused: Callable[..., InputError], folder: Path, ending: str) -> None:
    (folder / f"model{ending}").touch()
    assert "is empty" in refused(f"model{ending}").reason


@pytest.mark.parametrize("ending", [".onnx", ".pt", ".safetensors", ".h5"])
def test_a_pipe_is_not_waited_for(refused: Callable[..., InputError], folder: Path, ending: str) -> None:
    os.mkfifo(folder / f"model{ending}")
    assert "neither a file nor a folder" in refused(f"model{ending}").reason


@pytest.mark.parametrize("name", ["n" * 5_000 + ".onnx", "model\0.onnx", "loop.onnx"])
def test_a_path_that_leads_nowhere_is_refused(refused: Callable[..., InputError], folder: Path, name: str) -> None:
    (folder / "loop.onnx").symlink_to("loop.onnx")
    assert "There is no file" in refused(name).reason


def written(folder: Path, text: str, opset: int = 20) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    onnx.save(proto, folder / "model.onnx")
    return proto


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[2] x) => (float[2] y) { y = Relu(y) }", "model.onnx"),
        ("g (float[2] x) => (float[2] y) { a = Add(x, b) b = Relu(a) y = Relu(b) }", "model.onnx"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x) y = Tanh(x) }", "model.onnx"),
        ("g (float[1, 3, 8, 8] x, float[4] w) => (float[1, 4, 6, 6] y) { y = Conv(x, w) }", "model.onnx"),
    ],
    ids=["a node that feeds itself", "a cycle", "a tensor made twice", "a weight of the wrong rank"],
)
def test_a_graph_that_is_none_is_refused(refused: Callable[..., InputError], folder: Path, text: str, words: str) -> None:
    written(folder, text)
    assert words in refused("model.onnx").reason


def test_a_graph_that_never_ends_is_ended(load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_importer, "_PATIENCE", 5.0)
    written(
        folder,
        """
        g (float[1] x) => (float[1] y)
        <int64 many = {9223372036854775807}, bool go = {1}>
        {
            y = Loop (many, go, x) <
                body = b (int64 i, bool c, float[1] s) => (bool d, float[1] t) { d = Identity(c) t = Sin(s) }
            >
        }
        """,
    )
    with pytest.raises(InputError, match="took more than 5 s"):
        load("model.onnx")


def test_a_graph_that_wants_all_memory_does_not_get_it(load: Load, folder: Path) -> None:
    written(
        folder,
        """
        g (float[1] x) => (float[1] y)
        <int64[1] many = {1000000000000}>
        {
            a = ConstantOfShape (many)
            b = ReduceSum <keepdims = 0> (a)
            y = Add (x, b)
        }
        """,
    )
    assert "Failed to allocate memory" in " ".join(load("model.onnx").source.notes)


def test_a_chain_of_thousands_of_nodes_is_no_chain_of_calls(load: Load, folder: Path) -> None:
    nodes = [onnx.helper.make_node("Sin", [f"t{n}"], [f"t{n + 1}"]) for n in range(DEEP)]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("t0", f"t{DEEP}")]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=8), folder / "model.onnx")
    assert len(load("model.onnx").layers) == DEEP


def deep(tags: tuple[bytes, ...], depth: int) -> bytes:
    """Messages of a protocol buffer within each other, through these fields in turn."""
    made = b""
    for level in range(depth):
        made = tags[level % len(tags)] + size(len(made)) + made
    return made


def size(number: int) -> bytes:
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


@pytest.mark.parametrize(
    "tags", [(b"\x32", b"\x2a", b"\x0a"), (b"\x0a", b"\x22", b"\x12", b"\x5a")], ids=["graphs in attributes", "types of sequences"]
)
def test_subgraphs_and_types_nested_ten_thousand_deep_are_refused(
    refused: Callable[..., InputError], folder: Path, tags: tuple[bytes, ...]
) -> None:
    inner = deep(tags, DEEP)
    (folder / "model.onnx").write_bytes(b"\x08\x08\x3a" + size(len(inner)) + inner)
    refused("model.onnx")


def safetensors(header: bytes, numbers: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + numbers


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", length=(1 << 64) - 1),
        safetensors(b'{"a":' * DEEP + b"0" + b"}" * DEEP),
        safetensors(json.dumps({"fc.weight": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 16]}}).encode(), bytes(16)),
        safetensors(json.dumps({"fc.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 60]}}).encode(), bytes(16)),
        safetensors(json.dumps({"fc.weight": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}).encode(), bytes(16)),
    ],
    ids=["a length", "deep", "a shape", "an offset", "backwards"],
)
def test_safetensors_that_lie_are_refused(
    refused: Callable[..., InputError], code: Callable[..., None], folder: Path, content: bytes
) -> None:
    code(net="import torch\ndef make():\n    return torch.nn.ModuleDict({'fc': torch.nn.Linear(4, 1)})\n")
    (folder / "net.safetensors").write_bytes(content)
    refused("net.safetensors", {"x": "1x4"}, factory="net.py:make")


def archive(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return made.getvalue()


def keras(config: object, **members: bytes) -> bytes:
    """A .keras archive with this configuration and more members."""
    metadata = json.dumps({"keras_version": "3.0.0"}).encode()
    return archive({"config.json": json.dumps(config).encode(), "metadata.json": metadata, **members})


LAMBDA = {
    "class_name": "Lambda",
    "module": "keras.layers",
    "config": {"name": "evil", "function": {"class_name": "__lambda__", "config": {"code": "4wAAAAA="}}},
}
MODELS_OF_TENSORFLOW = {
    "outside.keras": (keras({}, **{"../../escaped": b"x", "model.weights.h5": b""}), "outside"),
    "absolute.keras": (keras({}, **{"/escaped": b"x"}), "outside"),
    "bomb.keras": (keras({}, **{"model.weights.h5": bytes(1 << 28)}), "unpack"),
    "deep.keras": (archive({"config.json": b"[" * DEEP + b"]" * DEEP, "metadata.json": b"{}"}), "deep.keras"),
    "lambda.keras": (keras({"class_name": "Sequential", "config": {"layers": [LAMBDA]}}), "Python code"),
    "other.keras": (keras({"class_name": "system", "module": "os", "config": {"command": "true"}}), "none of Keras's own"),
    "junk.h5": (b"\x89HDF\r\n\x1a\n" + np.random.default_rng(0).bytes(4_000), "junk.h5"),
    "junk.tflite": (b"\x1c\x00\x00\x00TFL3" + np.random.default_rng(0).bytes(4_000), "junk.tflite"),
    "deep.pb": (deep((b"\x0a", b"\x2a", b"\x12"), DEEP), "deep.pb"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS_OF_TENSORFLOW)
def test_a_model_of_tensorflows_that_means_harm_is_refused(refused: Callable[..., InputError], folder: Path, name: str) -> None:
    pytest.importorskip("tensorflow")
    content, words = MODELS_OF_TENSORFLOW[name]
    (folder / name).write_bytes(content)
    assert words in refused(name).reason


@pytest.mark.slow
@pytest.mark.parametrize("asset", ["../../../secret.txt", "/etc/hostname"])
def test_a_saved_model_reads_no_file_but_its_own(refused: Callable[..., InputError], folder: Path, asset: str) -> None:
    """Its graph reads what it calls an asset; the file's content would come out of the model."""
    tf = pytest.importorskip("tensorflow")
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [1], name="x")
        read = tf.raw_ops.ReadFile(filename=tf.constant(asset))
        tf.identity(x + tf.cast(tf.strings.length(read), tf.float32), name="y")
    (folder / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    assert "ReadFile" in refused("graph.pb").reason
