"""The engines of engines.py: each neighbour by its best documented recipe, and ours.

An engine is a row of ENGINES: for which models it is, how it is built once into a folder, and how it is loaded from there for a
number of threads.  What is loaded runs one request after another; `burst` serves many at once, as its documentation says to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.engines_data import RATE, Array, Feeds
from benchmarks.engines_models import SUBJECTS, Subject
from benchmarks.engines_prepare import Run, stored

Mode = Literal["latency", "throughput"]


@dataclass(frozen=True)
class Job:
    """One engine for one model, by its name: `data` is the model's prepared folder, `folder` the engine's own."""

    name: str
    data: Path
    folder: Path
    threads: int
    mode: Mode = "latency"

    @property
    def subject(self) -> Subject:
        return SUBJECTS[self.name]

    @property
    def model(self) -> Path:
        """What neighbours take: sizes fixed, opset raised."""
        return self.data / "static.onnx"

    def calibration(self) -> list[Feeds]:
        """At most 300 samples, NNCF's default, from everywhere in the data."""
        rows = list(stored(self.data, "calibration"))
        return rows[:: -(-len(rows) // 300)]


@dataclass(frozen=True)
class Loaded:
    """`run` is one request; `burst` serves so many requests, the engine's own way of having several under way."""

    run: Run
    burst: Callable[[Feeds, int], object]


@dataclass(frozen=True)
class Engine:
    """`needs` are packages; `build` may say something about what it made, and raises where it can't make it.

    Engines with one `made` differ in how they are loaded alone.  What is ours is built for a number of threads and an objective: for
    all of them, or, where it is there to show what became of the default build, for the first alone.
    """

    name: str
    made: str
    build: Callable[[Job], str | None]
    load: Callable[[Job], Loaded]
    needs: tuple[str, ...]
    suits: Callable[[Subject], bool] = lambda _subject: True
    ours: bool = False
    everywhere: bool = True

    def missing(self) -> str | None:
        """The packages that are not installed, with the command that installs them."""
        absent = [one for one in self.needs if find_spec(one) is None]
        return f"pip install {' '.join(absent)}" if absent else None


def in_threads(runs: Sequence[Run]) -> Callable[[Feeds, int], object]:
    """One engine a thread, requests dealt out evenly."""
    pool = ThreadPoolExecutor(len(runs))

    def some(run: Run, feeds: Feeds, count: int) -> None:
        for _ in range(count):
            run(feeds)

    def burst(feeds: Feeds, count: int) -> None:
        for future in [pool.submit(some, run, feeds, count // len(runs)) for run in runs]:
            future.result()

    return burst


def one_by_one(load: Callable[[int], Run], job: Job) -> Loaded:
    """For runtimes without streams of their own: for throughput as many engines as threads, each with one."""
    runs = [load(job.threads)] if job.mode == "latency" else [load(1) for _ in range(job.threads)]
    return Loaded(runs[0], in_threads(runs))


# ONNX Runtime


def has_vnni() -> bool:
    return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def ort_as_is(job: Job) -> None:
    (job.folder / "engine.onnx").write_bytes(job.model.read_bytes())


def ort_fused(job: Job) -> None:
    """https://onnxruntime.ai/docs/performance/transformers-optimization.html: attention and its neighbours as one operator."""
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(job.model), model_type="bert", opt_level=0).save_model_to_file(str(job.folder / "engine.onnx"))


def ort_prepared(job: Job, file: Path) -> str | None:
    """Pre-process, without symbolic shape inference where that fails, as the tool's own option says to."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(job.model), str(file))
    except Exception:  # it asserts, and raises plain exceptions
        quant_pre_process(str(job.model), str(file), skip_symbolic_shape=True)
        return "its symbolic shape inference failed and was left out"
    return None


def ort_static(job: Job) -> str | None:
    """https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html: pre-process, then QDQ, U8S8, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(job.calibration())

        def get_next(self) -> Feeds | None:
            return next(self.rows, None)

    prepared = job.folder / "prepared.onnx"
    note = ort_prepared(job, prepared)
    quantize_static(
        str(prepared),
        str(job.folder / "engine.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not has_vnni(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return note


def ort_dynamic(job: Job) -> str | None:
    """The same page: transformers are fused first, the rest is pre-processed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, note = job.folder / "prepared.onnx", None
    if job.subject.transformer:
        ort_fused(job)
        (job.folder / "engine.onnx").rename(prepared)
    else:
        note = ort_prepared(job, prepared)
    quantize_dynamic(
        str(prepared), str(job.folder / "engine.onnx"), per_channel=True, reduce_range=not has_vnni(), weight_type=QuantType.QInt8
    )
    return note


def ort_load(job: Job) -> Loaded:
    import onnxruntime as ort

    def load(threads: int) -> Run:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(job.folder / "engine.onnx", options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)

    return one_by_one(load, job)


# OpenVINO


def ov_as_is(job: Job) -> None:
    import openvino as ov

    ov.save_model(ov.Core().read_model(job.model), job.folder / "engine.xml", compress_to_fp16=False)


def ov_nncf(preset: str, job: Job) -> None:
    """https://docs.openvino.ai: basic quantization flow; the transformer's type brings SmoothQuant and its preset along."""
    import nncf
    import openvino as ov

    model = nncf.quantize(ov.Core().read_model(job.model), nncf.Dataset(job.calibration()), **nncf_words(preset, job.subject))
    ov.save_model(model, job.folder / "engine.xml", compress_to_fp16=False)


def ov_accuracy_control(preset: str, job: Job) -> str:
    """The same place: quantizing with accuracy control; it may lose one point of what this benchmark measures."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(job.model)
    evaluation = list(islice(stored(job.data, "evaluation"), 300))
    exact = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    parent = np.stack([job.subject.measure.answer(exact(feeds)[0]) for feeds in evaluation])

    def validate(compiled: Any, rows: Any) -> tuple[float, list[float]]:
        answers = np.stack([job.subject.measure.answer(compiled(feeds)[0]) for feeds in rows])
        scores = job.subject.measure.score(parent[: len(answers)], answers)
        return float(scores.mean()), scores.tolist()

    quantized = nncf.quantize_with_accuracy_control(
        model, nncf.Dataset(job.calibration()), nncf.Dataset(evaluation), validate, max_drop=0.01, **nncf_words(preset, job.subject)
    )
    ov.save_model(quantized, job.folder / "engine.xml", compress_to_fp16=False)
    return f"{len(evaluation)} samples to validate on"


def nncf_words(preset: str, subject: Subject) -> Mapping[str, Any]:
    import nncf

    kind = {"model_type": nncf.ModelType.TRANSFORMER} if subject.transformer else {"preset": nncf.QuantizationPreset(preset)}
    return {"target_device": nncf.TargetDevice.CPU, **kind}


def ov_load(precision: str, job: Job) -> Loaded:
    """https://docs.openvino.ai: performance hints and precision control; tensors shared with numpy where they can be."""
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": job.mode.upper(),
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": job.threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits, five times as long was seen, where something else runs on its core
    }
    compiled = ov.compile_model(job.folder / "engine.xml", "CPU", settings)
    request, queue = compiled.create_infer_request(), ov.AsyncInferQueue(compiled)

    def run(feeds: Feeds) -> Sequence[Array]:
        found = request.infer(feeds, share_inputs=True, share_outputs=True)
        return [found[number] for number in range(len(compiled.outputs))]

    def burst(feeds: Feeds, count: int) -> None:
        for _ in range(count):
            queue.start_async(feeds, share_inputs=True)
        queue.wait_all()

    return Loaded(run, burst)


# PyTorch


def torch_nothing(job: Job) -> None:
    """The network is made anew wherever it is loaded."""


def torch_load(compiles: bool, job: Job) -> Loaded:
    """https://docs.pytorch.org: Inductor for CPU inference, weights frozen into the code."""
    import torch
    import torch._inductor.config

    from benchmarks.engines_networks import network

    torch.set_num_threads(job.threads if job.mode == "latency" else 1)
    made = network(str(job.subject.network))
    if compiles:
        torch._inductor.config.freezing = True
        made = torch.compile(made)

    def run(feeds: Feeds) -> Sequence[Array]:
        with torch.inference_mode():
            return [made(*(torch.from_numpy(array) for array in feeds.values())).numpy()]

    return Loaded(run, in_threads([run] * (job.threads if job.mode == "throughput" else 1)))


# Ours


def ours(words: Mapping[str, str], job: Job) -> str:
    """`optimize build model.onnx --config optimize.toml --threads N --objective latency|throughput ...`."""
    import optimizer

    folder = job.folder / "engine"
    outcome = optimizer.build(
        job.data / "model.onnx", folder, config=job.data / "optimize.toml", threads=job.threads, objective=job.mode, **words
    )
    if not (folder / "passport.json").exists():
        raise RuntimeError(outcome.headline)
    return outcome.headline


def ours_load(job: Job) -> Loaded:
    """`optimizer.load`; callers in as many threads as the engine has streams."""
    import onnx

    import optimizer

    graph = onnx.load(job.data / "model.onnx", load_external_data=False).graph
    constants = {one.name: np.array(RATE, np.int64) for one in graph.input if one.name == "sr"}
    outputs = [one.name for one in graph.output]
    engine = optimizer.load(job.folder / "engine")

    def run(feeds: Feeds) -> Sequence[Array]:
        found = engine.run({**feeds, **constants})
        return [found[name] for name in outputs]

    return Loaded(run, in_threads([run] * int(engine.passport.knobs.get("streams", 1))))


def _of_torch(subject: Subject) -> bool:
    return subject.network is not None


def _nncf() -> Iterator[Engine]:
    for hint, words in (("f32", ""), ("bf16", " + BF16")):
        load, needs = partial(ov_load, hint), ("openvino", "nncf")
        yield Engine(f"NNCF INT8, transformer{words}", "nncf", partial(ov_nncf, "mixed"), load, needs, lambda subject: subject.transformer)
        for preset in ("performance", "mixed"):
            yield Engine(
                f"NNCF INT8, {preset}{words}",
                f"nncf_{preset}",
                partial(ov_nncf, preset),
                load,
                needs,
                lambda subject: not subject.transformer,
            )
        control = partial(ov_accuracy_control, "mixed")
        yield Engine(f"NNCF INT8, accuracy control{words}", "nncf_control", control, load, needs, lambda subject: subject.trained)


BASELINE = "ONNX Runtime FP32"
OURS, TIGHT, EXACT = "ours", "ours, 99.9 % (--max-drop 0.1%)", "ours, exact (--precision fp32)"
ENGINES: Mapping[str, Engine] = {
    one.name: one
    for one in (
        Engine(BASELINE, "ort", ort_as_is, ort_load, ("onnxruntime",)),
        Engine(
            "ONNX Runtime FP32, transformer fusions",
            "ort_fused",
            ort_fused,
            ort_load,
            ("onnxruntime",),
            lambda subject: subject.transformer,
        ),
        Engine("ONNX Runtime INT8, static", "ort_static", ort_static, ort_load, ("onnxruntime",)),
        Engine("ONNX Runtime INT8, dynamic", "ort_dynamic", ort_dynamic, ort_load, ("onnxruntime",)),
        Engine("OpenVINO FP32", "ov", ov_as_is, partial(ov_load, "f32"), ("openvino",)),
        Engine("OpenVINO BF16", "ov", ov_as_is, partial(ov_load, "bf16"), ("openvino",)),
        *_nncf(),
        Engine("PyTorch eager", "torch", torch_nothing, partial(torch_load, False), ("torch",), _of_torch),
        Engine("PyTorch compiled", "torch", torch_nothing, partial(torch_load, True), ("torch",), _of_torch),
        Engine(EXACT, "ours_exact", partial(ours, {"precision": "fp32"}), ours_load, ("optimizer",), ours=True, everywhere=False),
        Engine(TIGHT, "ours_tight", partial(ours, {"max_drop": "0.1%"}), ours_load, ("optimizer",), ours=True, everywhere=False),
        Engine(OURS, "ours", partial(ours, {}), ours_load, ("optimizer",), ours=True),
    )
}
