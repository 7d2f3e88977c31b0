"""Part of tf_source.py: .keras archives and HDF5 files of Keras 2 and 3, read as data before Keras reads them as programs."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import h5py
import optimize_frozen
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

if TYPE_CHECKING:
    from types import ModuleType

    from optimizer.child import Channel

WHOLE = "Save it anew with model.save, or get the whole file."
RATIO, SMALL = 100, 1 << 26
"""An archive may unpack to so many times its own size, or to so many bytes."""

OWN = ("keras", "tf_keras", "tensorflow", "builtins")
"""Packages whose classes a file may name."""

TRUST = (
    "Pass --trust to let it run, if you know where the file comes from; --source-python names the Python in which its code is installed."
)
CUSTOM = (
    "Pass --source-python with the Python in which its code is installed and registered, or save the model as a SavedModel "
    "(model.export) and give that."
)


def opened(channel: Channel, request: Mapping[str, Any]) -> optimize_frozen.Opened:
    """The model's inference function, frozen."""
    file, name = Path(request["file"]), request["name"]
    config, version = described(channel, file, name)
    code = code_in(name, config)
    if code is not None and not request["trust"]:
        channel.refuse(code, TRUST)
    channel.see(Path(request["folder"]))
    model, keras = loaded(channel, file, name, version, config, request["trust"])
    inputs, call = called(channel, name, model)
    with channel.theirs(f"Running {name}", "Save it as a SavedModel from the program that made it, and give that."):
        function = tf.function(call).get_concrete_function(*inputs.values())
        frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    count = len(inputs)
    tensors = dict(zip(inputs, (tensor.name for tensor in frozen.inputs[:count])))
    names = output_names(model, len(function.outputs))
    outputs = dict(zip(names, (tensor.name for tensor in frozen.outputs)))
    graph = optimize_frozen.with_shapes(frozen.graph.as_graph_def(), tensors, request["shapes"])
    alone = optimize_frozen.Session(graph, tensors)

    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        found = function(*(tf.constant(feeds[label], spec.dtype) for label, spec in inputs.items()))
        return {label: array.numpy() for label, array in zip(names, found)}

    notes = [f"Read with {keras.__name__} {keras.__version__}; Keras {version} wrote it."]
    return optimize_frozen.Opened(
        tensors, outputs, alone.specs(), run, alone.tensors, graph, layer_names(model), notes, trusted=code is not None
    )


def described(channel: Channel, file: Path, name: str) -> tuple[Any, str]:
    """The configuration in a file and the version of Keras that wrote it; checks all that can be checked before it is loaded."""
    try:
        if zipfile.is_zipfile(file):
            config, version = from_archive(channel, file, name)
        else:
            with h5py.File(file, "r") as weights:
                refuse_links(channel, name, weights)
                config, version = weights.attrs.get("model_config"), weights.attrs.get("keras_version", "2")
                if config is None and name.endswith((".h5", ".hdf5")):
                    channel.refuse(f"{name} holds weights without the model they belong to.", "Save the whole model: model.save(file).")
        return json.loads(config), str(version)
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        TypeError,
        KeyError,
        RecursionError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        return channel.refuse(f"{name} is no Keras model, or not a whole one ({' '.join(str(error).split())[:100]}).", WHOLE)


def from_archive(channel: Channel, file: Path, name: str) -> tuple[Any, str]:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > max(SMALL, RATIO * file.stat().st_size):
            channel.refuse(f"{name} would unpack to {size >> 20} MB, {size // file.stat().st_size} times its size.", WHOLE)
        for entry in entries:
            path = PurePosixPath(entry.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                channel.refuse(f"{name} would write outside of its folder ({entry.filename!r}).", "Take a model from someone you trust.")
            if entry.filename.endswith(".h5"):
                with archive.open(entry) as stream, h5py.File(stream, "r") as weights:
                    refuse_links(channel, name, weights)
        return archive.read("config.json"), json.loads(archive.read("metadata.json")).get("keras_version", "3")


def refuse_links(channel: Channel, name: str, weights: h5py.Group) -> None:
    """Refuse HDF5 that takes its numbers from other files."""
    for key in weights:
        link = weights.get(key, getlink=True)
        inner = None if isinstance(link, h5py.ExternalLink) else weights.get(key)
        if isinstance(link, h5py.ExternalLink) or (isinstance(inner, h5py.Dataset) and (inner.external or inner.is_virtual)):
            channel.refuse(f"{name} takes {key!r} from another file.", "Save it anew with model.save.")
        if isinstance(inner, h5py.Group) and isinstance(link, h5py.HardLink):
            refuse_links(channel, name, inner)


def code_in(name: str, config: Any) -> str | None:
    """What in a file would run code of its choice, in words: marshalled Python, and classes of packages that are not Keras's."""
    for entry in entries(config):
        kind = entry.get("class_name")
        if kind in {"Lambda", "__lambda__"} or "lambda" in (
            entry.get("function_type"),
            entry.get("output_shape_type"),
            entry.get("mask_type"),
        ):
            label = entry["config"].get("name", kind) if isinstance(entry.get("config"), dict) else kind
            return f"{name} holds Python code (the Lambda layer {label!r}), which runs when it is loaded."
        module = entry.get("module")
        if isinstance(module, str) and (module.split(".")[0] not in OWN if module != "builtins" else kind != "function"):
            return f"{name} names {module}.{kind}, which is none of Keras's own classes, and loading it runs that module."
    return None


def entries(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a configuration, the outermost first."""
    open_ = [config]
    while open_:
        value = open_.pop()
        if isinstance(value, dict):
            yield value
            open_.extend(value.values())
        elif isinstance(value, list):
            open_.extend(value)


def own_classes(channel: Channel, config: Any) -> dict[str, Any]:
    """The user's own classes that a configuration names with their modules: Keras 2 imports none by itself."""
    found = {}
    for entry in entries(config):
        module, kind = entry.get("module"), entry.get("class_name")
        if isinstance(module, str) and isinstance(kind, str) and module.split(".")[0] not in OWN:
            with channel.theirs(f"Importing {module}", "Make it importable, from the folder you call optimize in or in --source-python."):
                found[str(entry.get("registered_name") or kind)] = getattr(importlib.import_module(module), kind)
    return found


def loaded(channel: Channel, file: Path, name: str, version: str, config: Any, trust: bool) -> tuple[Any, ModuleType]:
    """The model by the Keras that wrote it, else by the other one; refused with what the first said."""
    there = {module.__version__.split(".")[0]: module for module in reversed(installed())}
    if not there:
        channel.refuse("Reading a Keras model needs Keras, which is not installed.", "Run pip install 'optimize[tensorflow]'.", exit_code=5)
    own = own_classes(channel, config) if trust else {}
    first = version.split(".")[0]
    first_said = ""
    for major in sorted(there, key=lambda major: major != first):
        safe = {"safe_mode": False} if trust and hasattr(there[major], "saving") else {}
        try:
            return there[major].models.load_model(str(file), custom_objects=own, compile=False, **safe), there[major]
        except Exception as error:
            first_said = first_said or f"{there[major].__name__} {there[major].__version__} says: {type(error).__name__}: {error}"
    said = " ".join(first_said.split())[:300]
    registered = sorted({str(entry["registered_name"]) for entry in entries(config) if ">" in str(entry.get("registered_name"))})
    if registered or "Unknown layer" in said or "Could not locate" in said:
        channel.refuse(f"{name} uses {', '.join(registered) or 'classes'} that Keras does not have here ({said}).", CUSTOM)
    return channel.refuse(f"{name} can't be loaded ({said}).", WHOLE)


def installed() -> list[ModuleType]:
    """Keras in each form that is here: the package of that name, the older one, TensorFlow's own."""
    found = []
    for name in ("keras", "tf_keras"):
        try:
            found.append(importlib.import_module(name))
        except ImportError:  # this form of it is not installed
            continue
    return found


def called(channel: Channel, name: str, model: Any) -> tuple[dict[str, Any], Any]:
    """The model's inputs by name, and its inference as a function of them in that order, giving its outputs in a list."""
    try:
        nest = model.input
    except (AttributeError, ValueError):
        nest = None
    if nest is None:
        channel.refuse(f"{name} was saved before its input shape was known.", "Call it once, or give it an Input layer, and save it anew.")
    flat = tf.nest.flatten(nest)
    inputs = {}
    for tensor in flat:
        label = tensor.name.split(":")[0]
        inputs[label] = tf.TensorSpec(tensor.shape, tensor.dtype, name=label)

    def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
        return tf.nest.flatten(model(tf.nest.pack_sequence_as(nest, tensors), training=False))

    return inputs, call


def output_names(model: Any, count: int) -> list[str]:
    """Keys where the model gives a mapping, else the names of the layers that give its outputs."""
    keys = list(model.output) if isinstance(model.output, dict) else list(model.output_names)
    plain = sorted(keys) if isinstance(model.output, dict) else keys
    return plain if len(set(plain)) == count else [f"output_{number}" for number in range(count)]


def layer_names(model: Any) -> list[str]:
    """Every layer's name, in models within models the path to it."""
    names = []
    for layer in model.layers:
        names.append(layer.name)
        if getattr(layer, "layers", None):
            names.extend(f"{layer.name}/{inner}" for inner in layer_names(layer))
    return names
