"""What each exact rewrite gives alone: the fused model with it against the fused model without it, paired, FP32, one thread's CPU time.

    python -P benchmarks/rewrites.py ASSETS [--seconds 2] [--least 1.03]
    python -P benchmarks/rewrites.py ASSETS --model FILE.onnx [--shape x=1x3x224x224]

ASSETS is the folder with the shared models; the three of the package rapidocr-onnxruntime come with them where it is installed.
Prints, in markdown, rule, layer and the ratio in ONNX Runtime and OpenVINO of every offer (above 1 is faster), then the best of each
rule.  `--model` may be given several times and replaces the list; free dimensions are 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov

from kernels.target import this_cpu
from kernels.timing import Timing, race
from optimizer.fusion import fuse
from optimizer.fusion.rewrites import offers, rewritten
from optimizer.graph import fixed
from optimizer.importers import ImportRequest, load
from optimizer.model import Model
from optimizer.plan import Rewrite, Shape

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
Sizes = Mapping[str, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every exact rewrite alone.")
    parser.add_argument("assets", type=Path)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--least", type=float, default=0.0, help="leave out what is slower than this in both engines")
    given = parser.parse_args()
    sizes = {name: tuple(map(int, size.split("x"))) for name, _, size in (each.partition("=") for each in given.shape)}
    models = [(file, sizes, None) for file in given.model] or list(shared(given.assets))
    best: dict[str, tuple[float, str]] = {}
    print(f"CPU: {this_cpu().device}\n\n| model | rule | layer | ONNX Runtime | OpenVINO |\n|---|---|---|---|---|")
    for file, shape, factory in models:
        for rewrite, timings in measured(static(file, shape, factory), given.seconds):
            ratio = max(timing.ratio for timing in timings)
            best[rewrite.rule] = max(best.get(rewrite.rule, (0.0, "")), (ratio, f"{file.name}: {rewrite.layer}"))
            if ratio >= given.least:
                cells = " | ".join(f"{timing.ratio:.3f} [{timing.low:.3f}, {timing.high:.3f}]" for timing in timings)
                print(f"| {file.name} | {rewrite.rule} | {rewrite.layer} | {cells} |", flush=True)
    print("\n| rule | best ratio | where |\n|---|---|---|")
    for rule, (ratio, where) in sorted(best.items(), key=lambda each: -each[1][0]):
        print(f"| {rule} | {ratio:.3f} | {where} |")


def shared(assets: Path) -> Iterator[tuple[Path, Sizes, str | None]]:
    """The shared models and those of rapidocr-onnxruntime, with the sizes that they are mostly run at."""
    if (found := find_spec("rapidocr_onnxruntime")) is not None and found.origin is not None:
        folder = Path(found.origin).parent / "models"
        yield folder / "ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 320, 320)}, None
        yield folder / "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}, None
        yield folder / "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}, None
    yield assets / "silero_vad_16k.onnx", {"input": (1, 576), "state": (2, 1, 128)}, None
    yield assets / "kws_saved_model", {}, None
    yield assets / "resnet8_cifar10.h5", {}, None
    yield assets / "resnet20_cifar10.th", {"input": (1, 3, 32, 32)}, f"{EXAMPLES}/resnet20.py:make"


def static(file: Path, sizes: Sizes, factory: str | None) -> Model:
    """The fused model with every size known."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = {name: Shape(size, size, size) for name, size in sizes.items()}
        model = fuse(load(ImportRequest(file, Path(folder), Path.cwd(), factory=factory, shapes=shapes)))
        known = {spec.name: sizes.get(spec.name) or [each if isinstance(each, int) else 1 for each in spec.shape] for spec in model.inputs}
        return fuse(model.with_graph(fixed(model.graph, known)))


def measured(model: Model, seconds: float) -> Iterator[tuple[Rewrite, list[Timing]]]:
    """Each offer with its timing in both engines."""
    plain = [engine(model) for engine in ENGINES]
    for rewrite in offers(model):
        after = rewritten(model, [rewrite])
        yield (
            rewrite,
            [_timed(before, engine(after), seconds) for engine, before in zip(ENGINES, plain, strict=True)],
        )


def _timed(before: Callable[[], object], after: Callable[[], object], seconds: float) -> Timing:
    """CPU time, since what else runs on the machine takes from it less than from the time that passes."""
    contenders = {"fused": before, "rewritten": after}
    return race(contenders, "fused", seconds=seconds, timed_on=this_cpu().name, clock=time.process_time)["rewritten"]


def onnxruntime(model: Model) -> Callable[[], object]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model.graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = _feed(model)
    return lambda: session.run(None, feed)


def openvino(model: Model) -> Callable[[], object]:
    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(ir.to_proto(model.graph).SerializeToString()), "CPU", settings)
    request, feed = compiled.create_infer_request(), _feed(model)
    request.infer(feed)
    return lambda: request.infer(share_outputs=True)


def _feed(model: Model) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    feed = {}
    for spec in model.inputs:
        numbers = draw.normal(size=spec.shape) if "float" in spec.dtype else draw.integers(0, 2, spec.shape)
        feed[spec.name] = np.asarray(numbers).astype(spec.dtype)
    return feed


ENGINES = (onnxruntime, openvino)


if __name__ == "__main__":
    main()
