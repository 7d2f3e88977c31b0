"""Files that are damaged or made to do harm are refused in words, before TensorFlow or Keras reads them as programs."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from optimizer.errors import InputError

pytest.importorskip("tensorflow")
h5py = pytest.importorskip("h5py")

WORKERS = Path(__file__).parents[2] / "optimizer" / "importers" / "workers"
PARTS = ("optimize_frozen", "optimize_tftrt", "optimize_graph_def", "optimize_keras", "optimize_saved_model", "optimize_tflite")


class Channel:
    """The child's end of the line, without a child: what is refused is raised here."""

    def refuse(self, reason: str, remedy: str, exit_code: int = 2) -> NoReturn:  # noqa: ARG002
        raise InputError(reason, remedy)


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, ModuleType]]:
    """The worker's parts, importable by their names as they are in the child."""
    loaded = {}
    for name in PARTS:
        spec = importlib.util.spec_from_file_location(name, WORKERS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = loaded[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    yield loaded
    for name in PARTS:
        del sys.modules[name]


def refused(part: ModuleType, file: Path, **more: Any) -> str:
    request = {
        "file": str(file),
        "name": file.name,
        "tags": [],
        "signature": None,
        "shapes": {},
        "trust": False,
        "folder": str(file.parent),
    }
    with pytest.raises(InputError) as error:
        part.opened(Channel(), {**request, "scratch": str(file.parent), **more})
    return error.value.reason


def archive(file: Path, config: Any = None, **entries: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        made.writestr("config.json", json.dumps(config or {}))
        for name, data in entries.items():
            made.writestr(name, data)
    return file


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.pb", "model.tflite"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut", b"\x89HDF\r\n\x1a\n" + b"\0" * 90, b"\x0a\xff\xff\xff\xff\x0f", b"junk" * 500])
def test_a_file_that_is_not_whole_is_refused(parts: dict[str, ModuleType], tmp_path: Path, name: str, data: bytes) -> None:
    part = {"pb": "optimize_graph_def", "tflite": "optimize_tflite"}.get(name.split(".")[1], "optimize_keras")
    (tmp_path / name).write_bytes(data)
    assert name in refused(parts[part], tmp_path / name)


def test_a_zip_that_unpacks_to_a_multiple_of_itself_is_refused(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    file = archive(tmp_path / "bomb.keras", big=b"\0" * (80 << 20))
    assert "would unpack to 80 MB" in refused(parts["optimize_keras"], file)


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/outside.txt", "assets/../../outside.txt", "..\\outside.txt"])
def test_a_zip_that_would_write_outside_is_refused(parts: dict[str, ModuleType], tmp_path: Path, path: str) -> None:
    file = archive(tmp_path / "path.keras", **{path: b"x"})
    assert "outside of its folder" in refused(parts["optimize_keras"], file)


@pytest.mark.parametrize(
    "layer",
    [
        {"class_name": "Lambda", "config": {"name": "twice"}},
        {"class_name": "__lambda__", "config": {"value": {"code": "4wEAAAA="}}},
        {"class_name": "TimeDistributed", "config": {"layer": {"class_name": "Lambda", "config": {"function_type": "lambda"}}}},
        {"module": "subprocess", "class_name": "Popen", "config": {}},
        {"module": "builtins", "class_name": "exec", "config": {}},
        {"module": "mine.layers", "class_name": "Own", "config": {}},
    ],
)
@pytest.mark.parametrize("form", ["keras", "h5"])
def test_code_in_a_configuration_is_refused_without_being_loaded(
    parts: dict[str, ModuleType], tmp_path: Path, layer: Any, form: str
) -> None:
    config = {"class_name": "Sequential", "config": {"layers": [layer]}}
    file = tmp_path / f"code.{form}"
    if form == "keras":
        archive(file, config)
    else:
        with h5py.File(file, "w") as made:
            made.attrs["model_config"] = json.dumps(config)
    assert "runs" in refused(parts["optimize_keras"], file)


@pytest.mark.parametrize("config", ["[" * 10_000 + "]" * 10_000, '{"class_name": ', "", "null", "3"])
def test_junk_for_a_configuration_is_refused(parts: dict[str, ModuleType], tmp_path: Path, config: str) -> None:
    file = tmp_path / "junk.h5"
    with h5py.File(file, "w") as made:
        made.attrs["model_config"] = config
    if config in {"null", "3"}:
        pytest.importorskip("tf_keras")
        assert "runs" not in str(parts["optimize_keras"].described(Channel(), file, file.name))
    else:
        assert "no Keras model, or not a whole one" in refused(parts["optimize_keras"], file)


def test_weights_that_lie_in_other_files_are_refused(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "link.h5", "w") as made:
        made.attrs["model_config"] = "{}"
        made.create_group("model_weights")["stolen"] = h5py.ExternalLink("/etc/passwd", "/")
    assert "from another file" in refused(parts["optimize_keras"], tmp_path / "link.h5")
    with h5py.File(tmp_path / "raw.h5", "w") as made:
        made.attrs["model_config"] = "{}"
        made.create_dataset("stolen", (10,), "u1", external=[("/etc/hostname", 0, 10)])
    assert "from another file" in refused(parts["optimize_keras"], tmp_path / "raw.h5")


@pytest.mark.parametrize("data", [b"", b"\x08\x01", b"\x12\xff\xff\xff\xff\x0f", b"junk" * 100])
def test_a_saved_model_that_is_not_whole_is_refused(parts: dict[str, ModuleType], tmp_path: Path, data: bytes) -> None:
    (tmp_path / "saved_model.pb").write_bytes(data)
    assert "saved_model file" in refused(parts["optimize_saved_model"], tmp_path)


def saved_model(folder: Path) -> Any:
    """A SavedModel's protobuf with one graph, its placeholder given back as `y`."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.graph_def.node.add(name="x", op="Placeholder").attr["dtype"].type = 1
    meta.signature_def["serving_default"].outputs["y"].name = "x:0"
    (folder / "saved_model.pb").touch()
    return saved


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd"])
def test_an_asset_outside_of_the_folder_is_refused(parts: dict[str, ModuleType], tmp_path: Path, path: str) -> None:
    saved = saved_model(tmp_path)
    saved.meta_graphs[0].asset_file_def.add(filename=path)
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert "outside of its folder as an asset" in refused(parts["optimize_saved_model"], tmp_path)


@pytest.mark.parametrize("op", ["WriteFile", "PyFunc", "ReadFile"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_graph_that_touches_files_or_calls_python_is_refused(parts: dict[str, ModuleType], tmp_path: Path, op: str, inside: bool) -> None:
    saved = saved_model(tmp_path)
    graph = saved.meta_graphs[0].graph_def
    (graph.library.function.add().node_def if inside else graph.node).add(name="evil", op=op)
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert f"the operator {op} (evil)" in refused(parts["optimize_saved_model"], tmp_path)


def test_engines_without_their_segments_are_refused(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    saved = saved_model(tmp_path)
    saved.meta_graphs[0].graph_def.node.add(name="TRTEngineOp_0", op="TRTEngineOp")
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert "holds the engine TRTEngineOp_0 without" in refused(parts["optimize_saved_model"], tmp_path)


def test_a_signature_or_tag_that_is_not_there_is_refused_naming_those_that_are(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(saved_model(tmp_path).SerializeToString())
    for wrong, there in (({"signature": "x"}, "serving_default"), ({"tags": ["x"]}, "serve")):
        request = {"file": str(tmp_path), "name": "m", "tags": [], "signature": None, **wrong}
        with pytest.raises(InputError) as error:
            parts["optimize_saved_model"].opened(Channel(), request)
        assert there in error.value.remedy
