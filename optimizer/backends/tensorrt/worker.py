"""The child that parses and builds: TensorRT-RTX has been seen to crash, and then only this process goes.

Run as `python -P -m optimizer.backends.tensorrt.worker`. The request names two files, `model` to read and `engine` to write;
`compute` (`["SM89"]`), `shapes` of free inputs as smallest, usual and largest, and `layers`, the user's name of each node. What
comes back are the events `progress`, then `list` with the lines of the fused layer list and the log's about memory, or an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from optimizer.child import Channel, run

NAME = "optimize"
"""Name of every network: an engine's bytes depend on it, and where it is not set, on the run as well."""

UNAVAILABLE = 5
_REMEDY = "Keep the operator out of the model, build for another target, or use the handover with NVIDIA's own TensorRT."
_RELEASE = "Install the release of tensorrt-rtx that README names."
_SECONDS_BETWEEN_EVENTS = 0.1
_WORD_OF_MEMORY = ("Total Weights Memory", "Total Activation Memory", "Max Scratch Memory")
_BUILD_ERROR = re.compile(r"Error Code \d+: [\w ]+ \((?:\[[^\]]*\] )?(?P<words>.*?)\.? In \w+ at /", re.DOTALL)
"""A build error is `Error Code 1: Myelin ([pass.cpp:337: name] the words that matter. In function at /source:line)`."""


class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
    """Keeps what the report needs of a log of thousands of lines: errors, memory, and the layer list."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.layers: list[str] | None = None
        self.memory: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)
        elif message.startswith("Layers:\n"):
            self.layers = [line for line in message.splitlines() if line.startswith("Name: ")]
        elif message.startswith(_WORD_OF_MEMORY):
            self.memory.append(message)


class Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]
    """Phases of the build as progress events, a few a second."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._totals: dict[str, int] = {}
        self._sent = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
        self._totals[phase_name] = num_steps
        self._tell(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._tell(phase_name, step + 1)
        return True

    def phase_finish(self, phase_name: str) -> None:
        self._totals.pop(phase_name, None)

    def _tell(self, phase: str, done: int) -> None:
        now = time.monotonic()
        if now - self._sent >= _SECONDS_BETWEEN_EVENTS:
            self._sent = now
            self._channel.send("progress", step=phase, done=done, total=self._totals.get(phase, 0))


def main(channel: Channel) -> None:
    request = channel.receive().event
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = NAME
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["model"]):
        channel.refuse(*_refusal(parser, request["layers"]), exit_code=UNAVAILABLE)
    engine = builder.build_serialized_network(network, _config(builder, request, channel))
    if engine is not None and log.layers is None:
        channel.refuse(f"TensorRT-RTX {trt.__version__} lists no layers, so nothing tells what it built.", _RELEASE, UNAVAILABLE)
    if engine is None:
        channel.refuse(
            f"TensorRT-RTX can't build an engine for {' '.join(request['compute'])}: {_words(log.errors)}.", _REMEDY, UNAVAILABLE
        )
    Path(request["engine"]).write_bytes(memoryview(engine))
    channel.send("list", layers=log.layers, memory=log.memory, release=trt.__version__)


def _config(builder: Any, request: Mapping[str, Any], channel: Channel) -> Any:
    config = builder.create_builder_config()
    config.progress_monitor = Monitor(channel)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; FP32 then keeps 10 bits of 23
    config.num_compute_capabilities = len(request["compute"])
    for index, compute in enumerate(request["compute"]):
        config.set_compute_capability(getattr(trt.ComputeCapability, compute), index)
    shapes: Mapping[str, Sequence[Sequence[int]]] = request["shapes"]
    if shapes:
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.items():
            profile.set_shape(name, *sizes)
        config.add_optimization_profile(profile)
    return config


def _refusal(parser: Any, layers: Mapping[str, str]) -> tuple[str, str]:
    """The parser's first error in one line, with the layer that it stands at."""
    error = parser.get_error(0)
    words = [line for line in error.desc().splitlines() if line.strip() and not line.startswith("Invalid Node")]
    kind = error.code().name.replace("_", " ").lower()
    layer = layers.get(error.node_name()) or error.node_name()
    return f"TensorRT-RTX can't read layer {layer!r} ({error.node_operator()}): {kind}: {_words(words)}.", _REMEDY


def _words(errors: Sequence[str]) -> str:
    """The part of a failed build's log that says why, in one line."""
    found = next((match["words"] for line in errors if (match := _BUILD_ERROR.search(line))), None)
    return " ".join((found or next(iter(errors), "it gave no reason")).rstrip(".").split())


if __name__ == "__main__":
    run(main)
