"""The handover: the typed graph and the script that builds it with NVIDIA's trtexec, for those who serve with TensorRT itself.

The graph is engine-neutral: precision stands in it as Cast and Q/DQ, so that any TensorRT computes what was calibrated and gated.
TensorRT 10 must be told so (`--stronglyTyped`); TensorRT 11 knows no other way and no longer has the flag.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from kernels.target import Target
from optimizer.backends.tensorrt.losses import losses_of
from optimizer.backends.tensorrt.network import shapes_of
from optimizer.errors import InputError
from optimizer.graph import save, weights_bytes
from optimizer.plan import Shape

FOLDER = "handover"
MODEL = "model.onnx"
SCRIPT = "build.sh"
PLAN = "model.plan"

_PROTOBUF_LIMIT = 1 << 31
_ROOM = 64 << 20
"""Bytes left for the graph itself where the weights stand in the same file."""


def write_handover(
    graph: ir.Model, target: Target, folder: Path, *, shapes: Mapping[str, Shape] | None = None, name: str = ""
) -> tuple[str, ...]:
    """Write `folder/handover/`: model.onnx (with model.onnx.data where the weights are over 2 GB) and build.sh.

    `shapes` gives the sizes of inputs with free dimensions (default: what the graph's metadata names); `name` is what the model is
    called. Returns notes for the report.

    Raises:
        InputError: ONNX's checker refuses the graph, or an input with free dimensions has no sizes.
        UnavailableError: its Q/DQ are such that TensorRT would compute other numbers.
    """
    losses = losses_of(graph, target)
    place = folder / FOLDER
    place.mkdir()
    model = place / MODEL
    large = weights_bytes(graph) + _ROOM > _PROTOBUF_LIMIT
    save(graph, model, beside=f"{MODEL}.data" if large else None)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(
            f"ONNX's checker refuses the typed graph: {' '.join(str(error).split())[:400]}.", "Check the model with onnx.checker."
        ) from None
    opset = graph.opset_imports.get("", 0)
    script = place / SCRIPT
    script.write_text(_script(target, opset, _profile(graph, shapes if shapes is not None else shapes_of(graph)), name))
    script.chmod(0o755)
    return (
        f"{FOLDER}/{SCRIPT} builds {FOLDER}/{MODEL} (opset {opset}) with trtexec of TensorRT 10 or 11 on a machine with {_device(target)}; "
        "written, never run",
        *losses.notes,
    )


def _profile(graph: ir.Model, shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """The flags for inputs with free dimensions; an input of fixed sizes needs none."""
    free = [value for value in graph.graph.inputs if any(not isinstance(size, int) for size in value.shape or ())]
    missing = [value.name for value in free if value.name not in shapes]
    if missing:
        raise InputError(
            f"Input {missing[0]!r} has free dimensions, and TensorRT needs to know how large they get.",
            f"Give smallest, usual and largest sizes with --shapes {missing[0]}=min:opt:max.",
        )
    if not free:
        return ()
    chosen = {_quoted(value.name or ""): shapes[value.name or ""] for value in free}
    return tuple(
        f"--{flag}Shapes={','.join(f'{name}:{_sizes(getattr(shape, field))}' for name, shape in chosen.items())}"
        for flag, field in (("min", "smallest"), ("opt", "usual"), ("max", "largest"))
    )


def _quoted(name: str) -> str:
    """An input's name as trtexec reads it: in single quotes where it holds what separates names from sizes."""
    return f"'{name}'" if set(name) & set(":,") else name


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _device(target: Target) -> str:
    return target.device if target.name != target.compute else f"a GPU of compute capability {_capability(target)}"


def _capability(target: Target) -> str:
    """`sm_89` as nvidia-smi writes it: 8.9."""
    digits = target.compute.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1]}"


def _place_note(target: Target) -> str:
    if target.name.startswith("jetson"):
        return "# Run it on the Jetson itself, with the TensorRT of its JetPack: trtexec builds for the GPU that it runs on."
    return "# Run it on the machine that will serve: trtexec builds for the GPU that it runs on."


def _script(target: Target, opset: int, profile: tuple[str, ...], name: str) -> str:
    flags = [
        f"--saveEngine={PLAN}",
        *profile,
        "--noTF32",
        "--timingCacheFile=timing.cache",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=layers.json",
        "--skipInference",
    ]
    call = " \\\n    ".join(['"--onnx=$graph"', *(shlex.quote(flag) for flag in flags)])
    title = "".join(letter for letter in name if letter.isprintable())
    return f"""#!/usr/bin/env bash
# Builds {PLAN} from {MODEL}{f" ({title})" if title else ""} with NVIDIA's trtexec, for {_device(target)}.
{_place_note(target)}
#
#   bash ENGINE_FOLDER/handover/build.sh        asks trtexec whether it is TensorRT 10 or 11
#   bash ENGINE_FOLDER/handover/build.sh 10     TensorRT 10
#   bash ENGINE_FOLDER/handover/build.sh 11     TensorRT 11
#
# {PLAN} and its timing cache are written to the folder you are in.
# Precision stands in the graph (Cast and Q/DQ, scales in FP32), so there is no --fp16, --int8 or --calib here. The graph is in ONNX
# opset {opset}; where an older TensorRT 10 refuses that, take a newer one. TF32 is off: what is typed FP32 multiplies in FP32.
# Written by optimize, never run: no such GPU was at hand. Afterwards `optimize qualify ENGINE_FOLDER --engine {PLAN}` gates it.
set -euo pipefail
handover=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
graph=$handover/{MODEL}
case $PWD/ in "$(dirname "$handover")"/*)
  echo "the engine folder is sealed, and {PLAN} is written to the folder you are in: call build.sh from another one" >&2
  exit 2 ;;
esac

trtexec=${{TRTEXEC:-trtexec}}
if ! command -v "$trtexec" >/dev/null; then
  echo "trtexec is not on the PATH: it comes with TensorRT (often in /usr/src/tensorrt/bin); or say TRTEXEC=/path/to/trtexec" >&2
  exit 5
fi
if command -v nvidia-smi >/dev/null; then
  here=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 || true)
  if [ -n "$here" ] && [ "$here" != {_capability(target)} ]; then
    echo "This graph was typed for compute capability {_capability(target)}, this GPU has $here: its plan may be a slow one here." >&2
  fi
fi

tensorrt_10() {{
  "$trtexec" --stronglyTyped \\
    {call}
}}

tensorrt_11() {{
  "$trtexec" \\
    {call}
}}

release=${{1:-}}
if [ -z "$release" ]; then
  help=$("$trtexec" --help 2>&1 || true)
  case $help in *--stronglyTyped*) release=10 ;; *) release=11 ;; esac
fi
case $release in
  10) tensorrt_10 ;;
  11) tensorrt_11 ;;
  *) echo "usage: $0 [10|11]" >&2; exit 2 ;;
esac
"""
