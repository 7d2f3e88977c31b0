"""What each step of accuracy recovery gives on models that are hard for INT8, beside plain MinMax and NNCF.

    python -P benchmarks/recovery.py [MODEL ...] > benchmarks/recovery.md          (some minutes; needs the extras torch, tensorflow,
                                                                   huggingface and openvino, and ../shared/assets for the real models)

Every layer that can be is in INT8, none is given back to float.  Steps are kept as the planner keeps them: where the outputs come
nearer on 32 calibration samples.  NNCF, where it is installed (pip install nncf), gets the same graph and calibration samples, its
model type for transformers (with which it smooths), and beside its defaults its mixed preset with accurate bias correction and
channel alignment.
Everything is judged on samples that none of it has seen, on engines that run: OpenVINO, and ONNX Runtime for ours.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov

from calibration.grid import UINT8
from calibration.ranges import METHODS
from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.calibrate import calibrate
from optimizer.engine import Arrays
from optimizer.graph import save
from optimizer.plan import Capability, Plan
from optimizer.precision import eligible, quantized_tensors, typed
from optimizer.recovery import STEPS, Form
from optimizer.reference import Reference, simulated

SCREENING = 32

WORTH = 0.97
"""Share of the output error that a step may leave to be kept: less is chance."""

Run = Callable[[Arrays], Sequence[np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class Row:
    """A way to INT8 and what is left of the answers: of the model's first output."""

    way: str
    agreement: float | None
    accuracy: float | None
    error: float
    cosine: float
    seconds: float


def main() -> None:
    sys.path.append(str(Path(__file__).resolve().parent))
    from recovery_models import CASES

    wanted = sys.argv[1:] or list(CASES)
    cpu = this_cpu()
    print(f"Written by `python -P benchmarks/recovery.py` on {cpu.device} ({', '.join(cpu.features)}).\n")
    if find_spec("nncf") is None:
        print("NNCF is not installed (pip install nncf): its rows are left out.\n")
    for name in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            print(f"## {name}\n", flush=True)
            show(list(rows(CASES[name](Path(scratch)), Path(scratch))))


def show(found: Sequence[Row]) -> None:
    print("| INT8 by | same answer as FP32 | right answers | output error | cosine | processor seconds |\n|---|---|---|---|---|---|")
    for row in found:
        agreement, accuracy = ("" if share is None else f"{share:.1%}" for share in (row.agreement, row.accuracy))
        print(f"| {row.way} | {agreement} | {accuracy} | {row.error:.4f} | {row.cosine:.4f} | {row.seconds:.1f} |")
    print(flush=True)


def rows(case: Any, scratch: Path) -> Iterator[Row]:
    """Each way's row, FP32 first."""
    parent = Reference(case.model.graph, optimized=True)
    first = case.model.outputs[0].name
    exact = [parent.run(feed)[first] for feed in case.evaluation]

    def row(way: str, run: Run, seconds: float = 0.0) -> Row:
        return judged(way, exact, [run(feed)[0] for feed in case.evaluation], case.labels, seconds)

    yield row("FP32", lambda feed: [parent.run(feed)[first]])
    if find_spec("nncf") is not None:
        for way, options in nncf_recipes(case.transformer).items():
            start = time.process_time()
            quantized = by_nncf(case, scratch, options)
            yield row(way, openvino_runs(quantized), time.process_time() - start)
    screening = case.calibration[:: max(1, len(case.calibration) // SCREENING)][:SCREENING]
    table = calibrate(case.model, case.calibration, key={})
    for name, engine in (("openvino", on_openvino), ("onnxruntime", on_onnxruntime)):
        capability = backend(name).capability(this_cpu())
        form, plan = Form(case.model, table), minmax(case.model, table, name, capability)
        words = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}[name]
        yield row(f"{words}: MinMax", engine(typed(form.model, plan, capability), scratch))
        for step in STEPS if name == "openvino" else ():
            start = time.process_time()
            found = step(form, plan, capability, case.calibration)
            if found is None:
                print(f"{step.__name__}: nothing to do", file=sys.stderr)
                continue
            print(found.note, file=sys.stderr)
            run = engine(typed(found.form.model, found.plan, capability), scratch)
            yield row(f"{words}: MinMax and {step.__name__}", run, time.process_time() - start)
        start = time.process_time()
        form, plan = all_together(form, plan, capability, case.calibration, screening)
        way = f"{words}: " + (", ".join(plan.recovery) or "no step helps")
        yield row(f"**{way}**", engine(typed(form.model, plan, capability), scratch), time.process_time() - start)


def minmax(model: Any, table: Any, name: str, capability: Capability) -> Plan:
    """Every layer that can be in static INT8, its tensors by smallest and largest number."""
    layers = [layer for layer, why in eligible(model, capability, "int8").items() if why is None]
    plan = Plan(name, "cpu", "fp32", precisions=dict.fromkeys(layers, "int8"))
    ranges = {tensor: METHODS["minmax"](table.statistics[tensor], UINT8) for tensor in quantized_tensors(model, plan, capability)}
    return replace(plan, ranges=ranges)


def all_together(form: Form, plan: Plan, capability: Capability, feeds: Sequence[Arrays], screening: Sequence[Arrays]) -> tuple[Form, Plan]:
    """The steps in their order, each kept where the outputs come nearer on the screening samples."""
    first = form.model.outputs[0].name
    parent = Reference(form.model.graph)
    exact = [parent.run(feed)[first] for feed in screening]

    def error(form: Form, plan: Plan) -> float:
        engine = Reference(simulated(typed(form.model, plan, capability)))
        return relative(exact, [engine.run(feed)[first] for feed in screening])

    least = error(form, plan)
    for step in STEPS:
        found = step(form, plan, capability, feeds)
        if found is not None and (now := error(found.form, found.plan)) < WORTH * least:
            form, plan, least = found.form, found.plan, now
    return form, plan


def relative(exact: Sequence[Any], found: Sequence[Any]) -> float:
    """Root mean square error as a part of the exact numbers' root mean square."""
    off = sum(float(np.square(np.asarray(a, np.float64) - b).sum()) for a, b in zip(exact, found, strict=True))
    return (off / sum(float(np.square(np.asarray(a, np.float64)).sum()) for a in exact)) ** 0.5


def judged(way: str, exact: Sequence[Any], found: Sequence[Any], labels: Any, seconds: float) -> Row:
    scores = exact[0].ndim == 2
    answers, others = (np.array([one.argmax() for one in many]) for many in (exact, found))
    cosines = [float((a.ravel() @ b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(exact, found, strict=True)]
    agreement = float((answers == others).mean()) if scores else None
    accuracy = None if labels is None else float((others == labels).mean())
    return Row(way, agreement, accuracy, relative(exact, found), float(np.mean(cosines)), seconds)


def on_openvino(graph: ir.Model, scratch: Path) -> Run:
    save(graph, scratch / "typed.onnx")
    return openvino_runs(ov.Core().read_model(scratch / "typed.onnx"))


def openvino_runs(model: Any) -> Run:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda feed: [np.array(request.infer(dict(feed))[0])]


def on_onnxruntime(graph: ir.Model, scratch: Path) -> Run:
    save(graph, scratch / "typed.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(scratch / "typed.onnx", options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, dict(feed))


def nncf_recipes(transformer: bool) -> dict[str, dict[str, Any]]:
    import nncf

    kind = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    aligned = nncf.AdvancedQuantizationParameters(disable_channel_alignment=False)
    accurate = {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False, "advanced_parameters": aligned}
    return {"NNCF": kind, "NNCF, mixed preset, accurate bias correction, channels aligned": {**kind, **accurate}}


def by_nncf(case: Any, scratch: Path, options: dict[str, Any]) -> Any:
    import nncf

    save(case.model.graph, scratch / "float.onnx")
    data = nncf.Dataset([dict(feed) for feed in case.calibration])
    with redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(ov.Core().read_model(scratch / "float.onnx"), data, subset_size=len(case.calibration), **options)


if __name__ == "__main__":
    main()
