"""What ONNX Runtime makes of a typed graph, seen: the graph as it optimized it, and the time of each kernel in its profile."""

from __future__ import annotations

import bisect
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from optimizer.backends.onnxruntime.session import ERRORS, FILE, first_line, open_session, options, specs
from optimizer.graph import weights_bytes
from optimizer.model import SHAPES, TensorSpec
from optimizer.plan import Knobs

_LEAST_RUNS = 4
_MOST_RUNS = 30
_SECONDS = 0.5
_FREE_SIZES = (1, 16, 128, 1024)
"""Sizes that are tried for a free dimension of which nothing is known; the first that the model takes is the one."""

_SUFFIX = "_kernel_time"

Event = Mapping[str, Any]
"""An entry of ONNX Runtime's profile: `ts` and `dur` in microseconds."""


@dataclass(frozen=True)
class Profile:
    """A session seen from inside.

    `milliseconds` is the typical time in a run by node of `optimized` and `output_bytes` what it wrote in the last one, empty where
    the engine could not be run on made-up inputs; `run_milliseconds` is the time of whole runs, `activation_bytes` the most that was
    alive at once; `note` says what inputs they were, or why there were none.
    """

    optimized: ir.Model
    weights_bytes: int
    milliseconds: Mapping[ir.Node, float] = field(default_factory=dict)
    output_bytes: Mapping[ir.Node, int] = field(default_factory=dict)
    run_milliseconds: float | None = None
    activation_bytes: int | None = None
    note: str = ""


def profiled(typed: ir.Model, folder: Path, knobs: Knobs) -> Profile:
    """Load the engine in `folder` as `Session` does, run it a few times on made-up inputs, and look.

    Everything that ONNX Runtime writes goes to a folder inside `folder` that is removed before this returns.

    Raises:
        UnavailableError: ONNX Runtime can't load the engine.
    """
    with TemporaryDirectory(dir=folder, prefix=".profile-") as scratch:
        chosen = options(knobs)
        chosen.enable_profiling = True
        chosen.profile_file_prefix = str(Path(scratch) / "profile")
        chosen.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        # With the weights in a file of their own the optimized graph may be larger than a protobuf.
        chosen.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.weights")
        chosen.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        session = open_session(folder / FILE, chosen)
        note, count = _run(session, typed)
        events = json.loads(Path(session.end_profiling()).read_text())
        optimized = ir.load(Path(scratch) / "optimized.onnx")
        weights = weights_bytes(optimized)
        _forget_weights(optimized)
    if not count:
        return Profile(optimized, weights, note=note)
    nodes, runs = _settled(events, count)
    by_node = _by_node(optimized, nodes)
    return Profile(
        optimized,
        weights,
        milliseconds={node: _typical(found, runs) for node, found in by_node.items()},
        output_bytes={node: sum(_written(node, found[-1]).values()) for node, found in by_node.items()},
        run_milliseconds=_typical(runs, runs),
        activation_bytes=_peak(by_node),
        note=note,
    )


def _run(session: ort.InferenceSession, typed: ir.Model) -> tuple[str, int]:
    """Run the session on the first made-up inputs that it takes; a note on what happened, and the number of runs."""
    inputs = specs(session.get_inputs())
    failure = ""
    for feeds, words in _made_up(inputs, typed):
        try:
            start, runs = time.perf_counter(), 0
            while runs < _LEAST_RUNS or (runs < _MOST_RUNS and time.perf_counter() - start < _SECONDS):
                session.run(None, feeds)
                runs += 1
        except ERRORS as error:
            failure = first_line(error)
        else:
            return words, runs
    return f"ONNX Runtime could not run the engine on made-up inputs, so there are no times by layer: {failure}", 0


def _made_up(inputs: Sequence[TensorSpec], typed: ir.Model) -> Iterator[tuple[dict[str, Any], str]]:
    """Feeds to try: noise for floats, zeros for what may be an index; the usual shapes where the graph tells, else small ones."""
    usual = {name: tuple(sizes[1]) for name, sizes in json.loads(typed.metadata_props.get(SHAPES, "{}")).items()}
    unknown = any(isinstance(size, str) for spec in inputs if spec.name not in usual for size in spec.shape[1:])
    for size in _FREE_SIZES if unknown else (1,):
        shapes = {spec.name: usual[spec.name] if spec.name in usual else _sized(spec, size) for spec in inputs}
        words = f"Times by layer were taken with free dimensions at {size}, because nothing told their usual sizes." if unknown else ""
        yield {spec.name: _array(spec.dtype, shapes[spec.name]) for spec in inputs}, words


def _sized(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape with `size` for free dimensions, but 1 for a free first one, which is the batch where there is one."""
    return tuple(found if isinstance(found, int) else (1 if axis == 0 else size) for axis, found in enumerate(spec.shape))


def _array(dtype: str, shape: tuple[int, ...]) -> Any:
    if dtype == "object":
        return np.full(shape, "", dtype=object)
    kind = ir.DataType[dtype.upper()].numpy() if dtype == "bfloat16" else np.dtype(dtype)
    if kind.kind in "iub":
        return np.zeros(shape, kind)
    return np.random.default_rng(0).standard_normal(shape).astype(kind)


def _settled(events: Sequence[Event], count: int) -> tuple[list[Event], list[Event]]:
    """The node events and the run events of the last `count` runs without the first of them, which allocates."""
    runs = sorted((event for event in events if event["name"] == "model_run"), key=lambda event: float(event["ts"]))[1 - count :]
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and event["ts"] >= runs[0]["ts"]]
    return nodes, runs


def _typical(events: Sequence[Event], runs: Sequence[Event]) -> float:
    """Milliseconds that some events take in a run: the mean of the middle half of the runs, which an interruption is not in."""
    starts = [run["ts"] for run in runs]
    totals = np.zeros(len(runs))
    for event in events:
        totals[bisect.bisect_right(starts, event["ts"]) - 1] += event["dur"] / 1000
    quarter = len(runs) // 4
    return float(np.sort(totals)[quarter : len(runs) - quarter].mean())


def _by_node(optimized: ir.Model, events: Sequence[Event]) -> dict[ir.Node, list[Event]]:
    """The events of each node of the main graph. One without a name is called by its operator and a number that is written
    nowhere else: those of one operator are told apart by their order, which is the graph's."""
    by_name: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: float(event["ts"])):
        by_name[event["name"].removesuffix(_SUFFIX)].append(event)
    found = {node: by_name.pop(node.name) for node in optimized.graph if node.name and node.name in by_name}
    unnamed: dict[str, list[ir.Node]] = defaultdict(list)
    for node in optimized.graph:
        if not node.name:
            unnamed[node.op_type].append(node)
    for operator, nodes in unnamed.items():
        left = [name for name in by_name if name.rpartition("_")[0] == operator]
        if len(left) == len(nodes):
            found |= {node: by_name[name] for node, name in zip(nodes, left, strict=True)}
    return found


def _peak(by_node: Mapping[ir.Node, Sequence[Event]]) -> int:
    """Bytes of all tensors that are alive at once, at most, over one run in ONNX Runtime's order; inputs are the caller's.

    Buffers inside kernels are not in it, nor what ONNX Runtime saves by writing over an input that is no longer needed.
    """
    ran = sorted(by_node.items(), key=lambda pair: float(pair[1][-1]["ts"]))
    last = {value: number for number, (node, _) in enumerate(ran) for value in node.inputs if value is not None}
    alive: dict[ir.Value, int] = {}
    peak = 0
    for number, (node, events) in enumerate(ran):
        alive |= _written(node, events[-1])
        peak = max(peak, sum(alive.values()))
        for value in [value for value in alive if last.get(value, -1) <= number and not value.is_graph_output()]:
            del alive[value]
    return peak


def _written(node: ir.Node, event: Event) -> dict[ir.Value, int]:
    """Bytes of each output of a node, as it wrote them in a run."""
    found: dict[ir.Value, int] = {}
    for value, size in zip((value for value in node.outputs if value.name), event["args"].get("output_type_shape", []), strict=False):
        for dtype, shape in size.items():
            found[value] = _itemsize(dtype) * int(np.prod(shape, dtype=np.int64))
    return found


def _itemsize(dtype: str) -> int:
    """Bytes of a number by the name that ONNX Runtime's profile has for its type."""
    names = {"float": "float32", "double": "float64", "bfloat16": "float16", "string": "object"}
    return np.dtype(names.get(dtype, dtype)).itemsize


def _forget_weights(optimized: ir.Model) -> None:
    """Let go of tensors in a file that is about to be removed; names, shapes and types stay."""
    for value in optimized.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None
