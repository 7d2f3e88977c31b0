"""Is the predicted flip rate that of held-out data? Real models, INT8 plans of all degrees of damage, few samples against many.

    python -P benchmarks/screening.py ASSETS       (minutes on one core)

ASSETS is the folder with resnet8_cifar10.h5, the CIFAR-10 data, kws_saved_model and speech_16k.wav (windows of one second at random
places and loudness: screening out of the first half of the recording, held-out ones out of the second).  Plans differ in range
method, in how many bits their weights use, and in which layers stay in float.  Each is run on 2,000 held-out samples, which give
the share of answers that really change, and on small draws of calibration samples, from which it is predicted.  Prints, in markdown,
how prediction and truth agree, and how well the order of the plans is told by the prediction and by counting flips on the same draw.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.stats import spearmanr

from calibration.grid import UINT8
from calibration.ranges import METHODS
from calibration.table import Table
from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.calibrate import calibrate
from optimizer.fusion import fuse
from optimizer.importers import ImportRequest, load
from optimizer.model import Model
from optimizer.parity.metrics import METRICS
from optimizer.plan import Capability, Plan
from optimizer.planner.flips import Flips, change, flips, read
from optimizer.precision import eligible, quantized_tensors, typed
from optimizer.reference import Reference, simulated

CALIBRATION = 200
"""Samples that give the ranges; the draws for screening come from the others."""

HELD_OUT = 2000
SIZES = (16, 32, 100)
DRAWS = 8
BATCH = 50
BANDS = ((0.0, 0.005), (0.005, 0.02), (0.02, 0.05), (0.05, 0.2))
"""Shares of changed answers by which plans are grouped: from safe to hopeless."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Outputs:
    """What a graph gave: (samples, classes) on the samples for screening and on the held-out ones."""

    screening: Array
    held_out: Array


def cifar(assets: Path) -> tuple[Array, Array]:
    """Images as the model takes them, (n, 32, 32, 3) of 0 to 255: for calibration and screening, and held out."""
    near, far = (np.load(assets / f"cifar10_{part}.npz")["x"].astype(np.float32) for part in ("calibration", "evaluation"))
    return near, far


def speech(assets: Path) -> tuple[Array, Array]:
    """Cepstra of one second each, (n, 49, 10, 1), from the first half of the recording and from the second."""
    with wave.open(str(assets / "speech_16k.wav")) as file:
        sound = np.frombuffer(file.readframes(-1), np.int16).astype(np.float32) / 32768
    draw = np.random.default_rng(0)

    def windows(part: Array, count: int) -> Array:
        starts = draw.integers(0, len(part) - 16000, count)
        return np.stack([cepstra(part[start : start + 16000] * draw.uniform(0.3, 1.5)) for start in starts])

    first, second = np.array_split(sound, 2)
    return windows(first, 600), windows(second, HELD_OUT)


def cepstra(sound: Array) -> Array:
    """Ten cepstral coefficients, from 40 mel bands of 20 Hz to 4 kHz, of 49 frames of 30 ms every 20 ms: float32 (49, 10, 1)."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 480)[::320][:49] * np.hanning(480)
    edges = np.linspace(_mel(20.0), _mel(4000.0), 42)
    pitch = _mel(np.arange(257) * 16000 / 512)[:, None]
    rising, falling = (pitch - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - pitch) / np.diff(edges)[1:]
    bands = np.log(np.abs(np.fft.rfft(frames, 512)) @ np.maximum(0, np.minimum(rising, falling)) + 1e-6)
    waves = np.cos(np.pi / 40 * (np.arange(40)[:, None] + 0.5) * np.arange(10)) * np.sqrt(2 / 40)
    found: Array = (bands @ waves).astype(np.float32)[..., None]
    return found


def _mel(hertz: Any) -> Any:
    return 1127 * np.log1p(hertz / 700)


MODELS: Mapping[str, tuple[str, Callable[[Path], tuple[Array, Array]]]] = {
    "ResNet-8, CIFAR-10": ("resnet8_cifar10.h5", cifar),
    "keyword spotting, speech": ("kws_saved_model", speech),
}


def plans(model: Model, table: Table, limits: Sequence[int], methods: Sequence[str]) -> Iterator[ir.Model]:
    """Typed graphs: weights within each limit, ranges by each method, layers left in float: none, the first, the last, every second."""
    capability, able, heavy = _layers(model)
    for limit, method, out in product(limits, methods, ([], heavy[:1], heavy[:3], heavy[-3:], heavy[1::2])):
        yield quantized(model, table, replace(capability, weight_limit=limit), method, [layer for layer in able if layer not in out])


def alone(model: Model, table: Table, limits: Sequence[int]) -> Iterator[ir.Model]:
    """Typed graphs with one or two layers in INT8 and no other: the least damage that a plan can do."""
    capability, able, heavy = _layers(model)
    few = [{layer} for layer in heavy] + [set(pair) for pair in zip(heavy, heavy[2:], strict=False)]
    for limit, layers in product(limits, few):
        yield quantized(model, table, replace(capability, weight_limit=limit), "mse", [layer for layer in able if layer in layers])


def _layers(model: Model) -> tuple[Capability, list[str], list[str]]:
    """What the backend can do, the layers that can be in INT8, and those that hold weights."""
    capability = backend("onnxruntime").capability(this_cpu())
    able = [layer for layer, why in eligible(model, capability, "int8").items() if why is None]
    return capability, able, [layer.name for layer in model.layers if layer.parameters]


def quantized(model: Model, table: Table, capability: Capability, method: str, layers: Sequence[str]) -> ir.Model:
    plan = Plan("onnxruntime", "cpu", "fp32", precisions=dict.fromkeys(layers, "int8"))
    tensors = quantized_tensors(model, plan, capability)
    ranges = {tensor: METHODS[method](table.statistics[tensor], UINT8) for tensor in tensors}
    return simulated(typed(model, replace(plan, ranges=ranges), capability))


def ran(graph: ir.Model, near: Array, far: Array) -> Outputs:
    with closing(Reference(graph, optimized=True)) as reference:
        name = reference.inputs[0].name

        def outputs(samples: Array) -> Array:
            batches = np.split(samples, range(BATCH, len(samples), BATCH))
            return np.concatenate([next(iter(reference.run({name: batch}).values())) for batch in batches])

        return Outputs(outputs(near), outputs(far))


def imported(assets: Path, file: str) -> Model:
    with tempfile.TemporaryDirectory() as scratch:
        return fuse(load(ImportRequest(assets / file, Path(scratch), Path(scratch))))


def predicted(parent: Outputs, got: Outputs, chosen: NDArray[np.intp]) -> Flips:
    """The flips that the chosen screening samples predict."""
    rows = [{"y": row[None]} for row in parent.screening[chosen]]
    reading = read(METRICS["agreement"], [{"x": np.zeros((1, 1))}] * len(rows), rows)
    assert reading is not None
    return flips([change(want, have, reading) for want, have in zip(parent.screening[chosen], got.screening[chosen], strict=True)])


@dataclass(frozen=True)
class Agreement:
    """Real rates (plans,) beside what draws of one size predicted and counted, each (draws, plans)."""

    real: Array
    rate: Array
    low: Array
    high: Array
    observed: Array

    def order(self, told: Array) -> float:
        """The mean rank correlation of what the draws told with the real rates."""
        return float(np.mean([spearmanr(row, self.real).statistic if np.ptp(row) else 0.0 for row in told]))

    def factors(self, low: float, high: float) -> Array:
        """Predicted over real, of the plans whose real rate lies between."""
        chosen = (self.real > low) & (self.real <= high)
        return (self.rate[:, chosen] / self.real[chosen]).reshape(-1)

    def covered(self, held_out: int) -> tuple[float, float]:
        """How often the real rate, given its own error on `held_out` samples, is not below the lower bound, and not above the upper."""
        error = 2 * np.sqrt(self.real * (1 - self.real) / held_out)
        return float((self.low <= self.real + error).mean()), float((self.high >= self.real - error).mean())


def agreement(parent: Outputs, tried: Sequence[Outputs], size: int, draws: int = DRAWS) -> Agreement:
    """What draws of `size` samples tell of the plans that change at most a fifth of all answers."""
    real = np.array([(got.held_out.argmax(1) != parent.held_out.argmax(1)).mean() for got in tried])
    tried = [got for got, rate in zip(tried, real, strict=True) if rate <= BANDS[-1][1]]
    found = []
    for seed in range(draws):
        chosen = np.random.default_rng(seed).choice(len(parent.screening), size, replace=False)
        found.append([predicted(parent, got, chosen) for got in tried])
    columns = {name: np.array([[getattr(one, name) for one in row] for row in found]) for name in ("rate", "low", "high", "observed")}
    return Agreement(real=real[real <= BANDS[-1][1]], **columns)


def main() -> None:
    assets, tables = Path(sys.argv[1]), []
    for name, (file, data) in MODELS.items():
        model = imported(assets, file)
        near, far = data(assets)
        table = calibrate(model, [{model.inputs[0].name: x[None]} for x in near[:CALIBRATION]], key={})
        graphs = chain(plans(model, table, (127, 31, 15, 11, 7), tuple(METHODS)), alone(model, table, (127, 31, 11)))
        parent, *tried = (ran(graph, near[CALIBRATION:], far) for graph in chain([model.graph], graphs))
        tables.append((name, {size: agreement(parent, tried, size) for size in SIZES}))
    show(tables)


def show(tables: Sequence[tuple[str, Mapping[int, Agreement]]]) -> None:
    """Both tables, in markdown."""
    print(f"CPU: {cpu()}\n\n| model | samples | plans | predicted / real: 5 %, median, 95 % | within a factor of two | ", end="")
    print("real rate not below, not above the bounds | order by prediction | order by counting |\n|---|---|---|---|---|---|---|---|")
    rows = [(name, size, found) for name, sizes in tables for size, found in sizes.items()]
    for name, size, found in rows:
        factors = found.factors(0.0, 1.0)
        within = np.mean((factors > 0.5) & (factors < 2.0))
        covered = ", ".join(f"{each:.2f}" for each in found.covered(HELD_OUT))
        print(f"| {name} | {size} | {len(found.real)} | {_spread(factors)} | {within:.2f} | {covered} ", end="")
        print(f"| {found.order(found.rate):.3f} | {found.order(found.observed):.3f} |")
    print("\n| model | samples | plans that change | plans | predicted / real: 5 %, median, 95 % | counted no flip |")
    print("|---|---|---|---|---|---|")
    print("\n".join(filter(None, (banded(*row, band) for row in rows for band in BANDS))))


def banded(name: str, size: int, found: Agreement, band: tuple[float, float]) -> str:
    chosen = (found.real > band[0]) & (found.real <= band[1])
    if not chosen.any():
        return ""
    nothing = (found.observed[:, chosen] == 0.0).mean()
    low, high, missed = (f"{100 * share:.3g}" for share in (*band, nothing))
    return f"| {name} | {size} | {low} to {high} % | {chosen.sum()} | {_spread(found.factors(*band))} | {missed} % |"


def _spread(factors: Array) -> str:
    return ", ".join(f"{each:.2f}" for each in np.quantile(factors, (0.05, 0.5, 0.95)))


def cpu() -> str:
    text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    features = [feature for feature in ("avx512_vnni", "avx512_bf16", "amx_int8") if feature in text]
    return f"{fields['Model name'].strip()}, family {fields['CPU family'].strip()}, model {fields['Model'].strip()}, {' '.join(features)}"


if __name__ == "__main__":
    main()
