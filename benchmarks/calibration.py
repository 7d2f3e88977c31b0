"""Calibration of a ResNet-50 beside ONNX Runtime's own: seconds and peak memory, each contender in a process of its own.

    python benchmarks/calibration.py                      (200 images, 3 interleaved runs: about 6 minutes on two cores)
    python benchmarks/calibration.py --images 8 --few 4 --runs 1      (does it work?)

The network has random weights (He), its BatchNorms are folded, the images are normal noise: nothing is downloaded.  Ours gives
all four ranges of every activation that can carry Q/DQ from one pass; ONNX Runtime gives one kind of range a pass, and keeps
every activation of every image for entropy and percentile, which therefore run on fewer images.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SEED = 0


def resnet50(file: Path) -> None:
    """Writes a ResNet-50 with He-initialised weights and folded BatchNorms, input (1, 3, 224, 224)."""
    draw = np.random.default_rng(SEED)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def layer(operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def weight(name: str, *shape: int, spread: float) -> str:
        weights.append(numpy_helper.from_array(draw.standard_normal(shape, np.float32) * np.float32(spread), name))
        return name

    def conv(name: str, x: str, channels: tuple[int, int], size: int, stride: int) -> str:
        into, out = channels
        kernel = weight(f"{name}.weight", out, into, size, size, spread=(2 / (into * size * size)) ** 0.5)
        bias = weight(f"{name}.bias", out, spread=0.1)
        window = {"kernel_shape": [size, size], "strides": [stride, stride], "pads": [size // 2] * 4}
        return layer("Conv", name, x, kernel, bias, **window)

    x = layer("Relu", "relu", conv("conv1", "input", (3, 64), 7, 2))
    x = layer("MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = layer("Relu", f"{name}.relu", conv(f"{name}.conv1", x, (channels, width), 1, 1))
            y = layer("Relu", f"{name}.relu#2", conv(f"{name}.conv2", y, (width, width), 3, stride))
            y = conv(f"{name}.conv3", y, (width, 4 * width), 1, 1)
            skip = x if block else conv(f"{name}.downsample", x, (channels, 4 * width), 1, stride)
            x = layer("Relu", f"{name}.relu#3", layer("Add", f"{name}.add", y, skip))
            channels = 4 * width
    x = layer("Flatten", "flatten", layer("GlobalAveragePool", "avgpool", x))
    x = layer("Gemm", "fc", x, weight("fc.weight", 1000, channels, spread=0.02), weight("fc.bias", 1000, spread=0.1), transB=1)
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 224, 224])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 1000])]
    graph = helper.make_graph(nodes, "resnet50", inputs, outputs, weights)
    onnx.save(onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)), file)


def images(count: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The same images for every contender, made one at a time."""
    for index in range(count):
        yield {"input": np.random.default_rng(SEED + 1 + index).standard_normal((1, 3, 224, 224), np.float32)}


def ours(file: Path, count: int) -> dict[str, float]:
    """One pass, then four ranges of every tensor on the uint8 grid."""
    import onnx_ir as ir

    from calibration.grid import UINT8
    from calibration.ranges import METHODS
    from kernels.target import this_cpu
    from optimizer.calibrate import calibrate
    from optimizer.model import Model, Source

    start = time.perf_counter()
    model = Model(ir.load(file), Source("onnx", file.name, ""))
    table = calibrate(model, images(count), key={}, threads=this_cpu().cores)
    parts = {"pass": time.perf_counter() - start}
    for name, method in METHODS.items():
        before = time.perf_counter()
        for seen in table.statistics.values():
            method(seen, UINT8)
        parts[name] = time.perf_counter() - before
    return {"seconds": time.perf_counter() - start, **parts, "table, MB": len(table.to_json()) / 1e6}


def _reader(count: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = images(count)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.left, None)

    return Images()


def quantize_static(file: Path, count: int, method: str) -> dict[str, float]:
    """ONNX Runtime's whole: calibrate, quantize the weights, write the model."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    start = time.perf_counter()
    kind = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize(file, file.with_name("quantized.onnx"), _reader(count), calibrate_method=CalibrationMethod[method], **kind)
    return {"seconds": time.perf_counter() - start}


def calibrator(file: Path, count: int) -> dict[str, float]:
    """ONNX Runtime's MinMax pass without what quantize_static does around it."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    start = time.perf_counter()
    found = create_calibrator(file, None, str(file.with_name("augmented.onnx")), CalibrationMethod.MinMax)
    found.collect_data(_reader(count))
    found.compute_data()
    return {"seconds": time.perf_counter() - start}


CONTENDERS: Mapping[str, Callable[[Path, int], dict[str, float]]] = {
    "ours: MinMax, percentile, entropy and MSE": ours,
    "ONNX Runtime: MinMax, calibrator alone": calibrator,
    "ONNX Runtime: MinMax, quantize_static": partial(quantize_static, method="MinMax"),
    "ONNX Runtime: entropy, quantize_static": partial(quantize_static, method="Entropy"),
    "ONNX Runtime: percentile, quantize_static": partial(quantize_static, method="Percentile"),
}
KEEPS_EVERYTHING = ("ONNX Runtime: entropy, quantize_static", "ONNX Runtime: percentile, quantize_static")


def peak_gigabytes() -> float:
    """The most memory that this process had resident. (`ru_maxrss` would count what the parent had when it started us.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def measure(contender: str, file: Path, count: int) -> dict[str, float]:
    """What a contender reports out of a fresh process, with the peak of that process's memory in GB."""
    command = [sys.executable, __file__, "--contender", contender, "--model", str(file), "--images", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: Mapping[str, list[dict[str, float]]], counts: Mapping[str, int]) -> str:
    """A markdown table of medians, with the least and the most where there were several runs."""
    lines = ["| | images | seconds | ms an image | processor seconds | peak RSS, GB |", "|---|---|---|---|---|---|"]
    for name, found in runs.items():
        seconds = [run["seconds"] for run in found]
        middle = statistics.median(seconds)
        spread = f" ({min(seconds):.1f} to {max(seconds):.1f})" if len(seconds) > 1 else ""
        peak = max(run["peak"] for run in found)
        processor = statistics.median(run["processor"] for run in found)
        each = 1000 * middle / counts[name]
        lines.append(f"| {name} | {counts[name]} | {middle:.1f}{spread} | {each:.0f} | {processor:.1f} | {peak:.2f} |")
    return "\n".join(lines)


def main() -> None:
    # Python looks beside a script first, and this one is named like the package that it measures.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=200, help="images of the passes that keep little")
    parser.add_argument("--few", type=int, default=50, help="images of those that keep every activation; 0 leaves them out")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, interleaved; those that keep everything run once")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        found = CONTENDERS[options.contender](options.model, options.images)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        found |= {"peak": peak_gigabytes(), "processor": usage.ru_utime + usage.ru_stime}
        print(json.dumps(found))
        return

    from kernels.target import this_cpu

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    counts = {name: options.few if name in KEEPS_EVERYTHING else options.images for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resnet50.onnx"
        resnet50(file)
        for turn in range(options.runs):
            for name in CONTENDERS:
                if counts[name] and (turn == 0 or name not in KEEPS_EVERYTHING):
                    print(f"run {turn + 1} of {options.runs}: {name}", file=sys.stderr, flush=True)
                    runs[name].append(measure(name, file, counts[name]))
    runs = {name: found for name, found in runs.items() if found}
    cpu = this_cpu()
    print(f"{cpu.device}, {cpu.cores} cores ({', '.join(cpu.features)}); medians of {options.runs} interleaved runs (least to most)\n")
    print(table(runs, counts))
    own = runs[next(iter(CONTENDERS))]
    parts = {part: statistics.median(run[part] for run in own) for part in own[0] if part not in {"seconds", "processor", "peak"}}
    print("\nOurs in seconds: " + ", ".join(f"{part} {value:.2f}" for part, value in parts.items()))


if __name__ == "__main__":
    main()
