"""Part of tf_source.py: SavedModels of every age, opened in graph mode, which needs neither Keras nor the classes that saved them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optimize_frozen
import optimize_tftrt
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_from_session_graph,
    convert_variables_to_constants_v2,
)

if TYPE_CHECKING:
    from optimizer.child import Channel

USUAL_TAG = "serve"
USUAL_SIGNATURE = "serving_default"
INTERNAL = ("__saved_model_init_op", "__saved_model_train_op")
WHOLE = "Get the whole folder: saved_model.pb and the variables folder beside it."


def opened(channel: Channel, request: Mapping[str, Any]) -> optimize_frozen.Opened:
    """The signature of the SavedModel that the request names, frozen."""
    folder, name = Path(request["file"]), request["name"]
    saved = read(channel, folder, name)
    tags, meta = tagged(channel, name, saved, request["tags"])
    key, signature = signed(channel, name, meta, request["signature"])
    check_assets(channel, folder, name, meta)
    optimize_frozen.refuse_code(channel, name, meta.graph_def)
    notes = []
    if engines := optimize_tftrt.unwrap(channel, name, meta):
        notes.append(
            f"TF-TRT had put {engines} parts of it into TensorRT engines; they were replaced by the TensorFlow operators they came from."
        )
        folder = optimize_tftrt.written(saved, folder, Path(request["scratch"]) / "unwrapped")
    inputs = {label: info.name for label, info in sorted(signature.inputs.items())}
    outputs = {label: info.name for label, info in sorted(signature.outputs.items())}
    with channel.theirs(f"Opening {name}", WHOLE):
        try:
            frozen, run = by_graph(folder, tags, inputs, outputs)
        except tf.errors.FailedPreconditionError:
            # A module that holds a Keras 3 model is saved with its variables twice, and the graph restores those that nobody reads.
            frozen, run, inputs, outputs = by_objects(folder, tags, key)
            notes.append("Its graph alone does not restore all its variables, so it was loaded with the objects that hold them.")
        frozen = optimize_frozen.inlined(frozen, [*inputs.values(), *outputs.values()])
    frozen = optimize_frozen.with_shapes(frozen, inputs, request["shapes"])
    alone = optimize_frozen.Session(frozen, inputs)
    return optimize_frozen.Opened(
        inputs, outputs, alone.specs(), run, alone.tensors, frozen, notes=notes, signature=key, tags=tags, layers=variables(meta.graph_def)
    )


Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def by_graph(folder: Path, tags: Sequence[str], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> tuple[Any, Run]:
    """The graph frozen, and the signature as the graph runs it unfrozen; `inputs` and `outputs` are tensors by label."""
    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph)
        tf.compat.v1.saved_model.load(session, list(tags), str(folder))
        heads = sorted({tensor.split(":")[0] for tensor in outputs.values()})
        frozen = convert_variables_to_constants_from_session_graph(session, graph.as_graph_def(), heads)

    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        fed = {inputs[label]: array for label, array in feeds.items()}
        return dict(zip(outputs, session.run(list(outputs.values()), fed)))

    return frozen, run


def by_objects(folder: Path, tags: Sequence[str], key: str) -> tuple[Any, Run, Mapping[str, str], Mapping[str, str]]:
    """The signature's function frozen and as it is, loaded with the objects that hold its variables, and its tensors by label."""
    loaded = tf.saved_model.load(str(folder), tags=list(tags))
    function = loaded.signatures[key]
    constant = convert_variables_to_constants_v2(function, lower_control_flow=False)
    inputs = {placeholder.name.split(":")[0]: placeholder.name for placeholder in constant.inputs}
    labels = sorted(function.structured_outputs)
    outputs = dict(zip(labels, (tensor.name for tensor in constant.outputs)))

    def run(feeds: Mapping[str, Any], _alive: Any = loaded) -> Mapping[str, Any]:
        answers = function(**{label: tf.constant(array) for label, array in feeds.items()})
        return {label: answers[label].numpy() for label in labels}

    return constant.graph.as_graph_def(), run, dict(sorted(inputs.items())), outputs


def read(channel: Channel, folder: Path, name: str) -> Any:
    """The SavedModel protobuf, binary or text."""
    saved = saved_model_pb2.SavedModel()
    try:
        if (folder / "saved_model.pb").is_file():
            saved.ParseFromString((folder / "saved_model.pb").read_bytes())
        else:
            text_format.Parse((folder / "saved_model.pbtxt").read_text(), saved)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError, OSError) as error:
        channel.refuse(f"The saved_model file in {name} is not whole ({str(error)[:100]}).", WHOLE)
    if not saved.meta_graphs:
        channel.refuse(f"The saved_model file in {name} holds no graph.", WHOLE)
    return saved


def tagged(channel: Channel, name: str, saved: Any, wanted: Sequence[str]) -> tuple[list[str], Any]:
    """The graph with the tags that are wanted, or `serve`, or the only one."""
    there = [(list(meta.meta_info_def.tags), meta) for meta in saved.meta_graphs]
    if not wanted and len(there) == 1:
        return there[0]
    for tags, meta in there:
        if set(tags) == set(wanted or [USUAL_TAG]):
            return tags, meta
    known = ", ".join("+".join(sorted(tags)) or "none" for tags, _ in there)
    asked = f"has no graph tagged {'+'.join(wanted)}" if wanted else f"has {len(there)} graphs, none of them tagged {USUAL_TAG}"
    return channel.refuse(f"{name} {asked}.", f"Choose with --tag; its graphs are tagged: {known}.")


def signed(channel: Channel, name: str, meta: Any, wanted: str | None) -> tuple[str, Any]:
    """The signature that is wanted, or `serving_default`, or the only one."""
    there = {key: signature for key, signature in meta.signature_def.items() if key not in INTERNAL and signature.outputs}
    key = wanted or (USUAL_SIGNATURE if USUAL_SIGNATURE in there else next(iter(there)) if len(there) == 1 else None)
    if not there:
        channel.refuse(f"{name} was saved without a signature.", "Save it with tf.saved_model.save(model, folder, signatures=function).")
    if key is None or key not in there:
        asked = f"has no signature {wanted!r}" if wanted else f"has several signatures and none called {USUAL_SIGNATURE}"
        channel.refuse(f"{name} {asked}.", f"Choose with --signature; it has: {', '.join(sorted(there))}.")
    encoded = [label for info in (there[key].inputs, there[key].outputs) for label, tensor in info.items() if not tensor.name]
    if encoded:
        channel.refuse(f"{encoded[0]!r} of the signature {key} of {name} is no plain tensor.", "Save it anew with dense tensors.")
    return key, there[key]


def check_assets(channel: Channel, folder: Path, name: str, meta: Any) -> None:
    """Files that the graph reads when it is opened lie inside the folder."""
    inside = (folder / "assets").resolve()
    for asset in meta.asset_file_def:
        if not is_inside((inside / asset.filename).resolve(), inside):
            channel.refuse(
                f"{name} names a file outside of its folder as an asset ({asset.filename!r}).", "Keep its assets in its own folder."
            )


def is_inside(path: Path, folder: Path) -> bool:
    return folder == path or folder in path.parents


def variables(graph: Any) -> list[str]:
    """The scopes that variables lie in, which are layers: `stem_bn` for `stem_bn/gamma`."""
    names = (node.attr["shared_name"].s.decode() or node.name for node in graph.node if node.op in optimize_frozen.VARIABLES)
    return sorted({name.rpartition("/")[0] for name in names} - {""})
