"""Does the parity ladder find what is wrong, at its rung and layer, and stay silent where nothing is? Writes ladder.md.

    python -P benchmarks/ladder.py [FAULTS]

Seeded models of six families go up the ladder: source, imported, fused, typed (by a plan in FP32, FP16 or INT8), engine.  Into FAULTS
of them (default 100) one fault is planted, at a random layer of a random rung; as many go up as they are.  A few more have PyTorch
itself for their source.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

sys.path.append(str(Path(__file__).parents[1]))  # -P leaves it out

from benchmarks.ladder_faults import FLOAT_FAULTS, INTEGER_FAULTS, Fault
from benchmarks.ladder_models import FAMILIES, Array, Draw, feeds_of
from kernels.targets import target_from_name
from optimizer.backends import backend
from optimizer.calibrate import calibrate
from optimizer.climbing import source_form
from optimizer.engine import Engine
from optimizer.errors import InputError, OptimizeError
from optimizer.fusion import fuse
from optimizer.graph import clone, save
from optimizer.importers import ImportRequest, load, running
from optimizer.model import FOR_LAYER, Model, Source, is_layer
from optimizer.parity.difference import difference, total
from optimizer.parity.divergence import Form, graph_form
from optimizer.parity.ladder import Climbed, Sizes, climb, start
from optimizer.parity.metrics import METRICS
from optimizer.plan import Plan, Shape
from optimizer.planner.plans import everywhere, half, ranged
from optimizer.planner.problem import Problem
from optimizer.precision import typed
from optimizer.reference import Reference, simulated

EFFECTIVE, COST = 1e-3, 4.0
"""A fault counts where it moves an output by this part of its size, and at a rung of lower precision by this many times what that costs."""

CLEAN = "clean"

KINDS = tuple(one.__name__ for one in FLOAT_FAULTS + INTEGER_FAULTS)


@dataclass(frozen=True)
class Trial:
    """One model that went up the ladder: the fault that was planted, and the rung and layer that the ladder named."""

    family: str
    plan: str
    kind: str
    rung: str
    layers: tuple[str, ...]
    named_rung: str | None
    named_layer: str | None

    @property
    def right(self) -> bool:
        """Whether nothing was named of a clean model, else whether rung and layer are the ones; a joined name holds its layers."""
        if self.kind == CLEAN:
            return self.named_rung is None
        named = set((self.named_layer or "").split("+"))
        return self.named_rung == self.rung and any(named & set(layer.split("+")) for layer in self.layers)


PLANS = {"fp32": "cpu", "int8": "cpu", "int8_dynamic": "cpu", "fp16": "l4", "int8 for an L4": "l4"}


def _plan(fused: Model, word: str, samples: list[dict[str, Array]]) -> tuple[Problem, Plan]:
    """A plan for a backend, with ranges from the samples."""
    target = target_from_name(PLANS[word])
    name = "onnxruntime" if target.kind == "cpu" else "tensorrt"
    table = calibrate(fused, samples, key={})
    problem = Problem(fused, name, target, backend(name).capability(target), {"threads": 1}, "auto", table=table)
    plan = None
    if word.startswith("int8"):
        plan = everywhere(problem, "int8_dynamic" if word == "int8_dynamic" else "int8")
    elif word == "fp16":
        plan = half(problem, "fp16")
    return problem, ranged(problem, plan, "minmax") if plan is not None else problem.plan("fp32", "nothing lowered")


def _planted(graph: ir.Model, faults: tuple[Fault, ...], kind: str, draw: Draw) -> tuple[ir.Model, tuple[str, ...]] | None:
    """A copy with a fault of this kind at a random node, and the layers that may be named for it; None where it applies nowhere."""
    order = draw.permutation(len(graph.graph))
    fault = next(one for one in faults if one.__name__ == kind)
    for index in order:
        if fault in FLOAT_FAULTS and not is_layer(graph.graph[int(index)]):
            continue
        copy = clone(graph)
        node = copy.graph[int(index)]
        layers = _concerned(graph.graph[int(index)])
        if fault(copy, node, draw):
            passes.RemoveUnusedNodesPass()(copy)
            return copy, layers
    return None


def _concerned(node: ir.Node) -> tuple[str, ...]:
    """The layer that a node is, or is for; of a tensor's scale, the layer that writes it and those that read it."""
    found = [node.name or ""] if is_layer(node) else [node.metadata_props.get(FOR_LAYER, "")]
    if node.op_type == "QuantizeLinear":
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        found += [maker.name or ""] if maker is not None else []
    return tuple(found)


def _run(form: Form, sizes: Sizes) -> list[dict[str, Array]] | None:
    try:
        with closing(form.opened(())) as running:
            return [dict(running.run(feed)) for feeds in sizes.values() for feed in feeds]
    except InputError:
        return None


def _apart(one: list[dict[str, Array]] | None, other: list[dict[str, Array]] | None) -> float:
    if one is None or other is None:
        return float("inf")
    return max(total(difference(a[name], b[name]) for a, b in zip(one, other, strict=True)).relative for name in one[0])


def engine_form(graph: ir.Model, named: ir.Model) -> Form:
    """ONNX Runtime's engine of a typed graph, which should give what the graph `named` gives."""

    def opened(watch: Sequence[str]) -> Engine:
        shown = clone(graph)
        there = {value.name: value for node in shown.graph for value in node.outputs if not value.is_graph_output()}
        shown.graph.outputs.extend(there[name] for name in watch if name in there)
        with TemporaryDirectory() as folder:
            save(shown, Path(folder) / "engine.onnx")
            return backend("onnxruntime").load(Path(folder), {"threads": 1})

    return Form("engine", named, opened, own=False)


def _source(graph: ir.Model, named: ir.Model) -> Form:
    return Form("source", named, lambda watch: Reference(graph, [name for name in watch if name in _tensors(graph)]), own=False)


def _tensors(graph: ir.Model) -> set[str]:
    return {value.name or "" for node in graph.graph for value in node.outputs}


def forms_of(clean: ir.Model, word: str, draw: Draw, plant: Callable[[str, ir.Model], ir.Model]) -> list[Form]:
    """The forms of one model on its way, each graph handed to `plant` by its rung's name before it goes on."""
    source = Source("benchmark", "model", "")
    imported = plant("imported", clean)
    fused = plant("fused", fuse(Model(clone(imported), source)).graph)
    problem, plan = _plan(Model(fused, source), word, feeds_of(clean, draw, 16))
    forms = [_source(clean, imported), graph_form("imported", imported), graph_form("fused", fused)]
    whole = typed(problem.model, plan, problem.capability)
    lowered = plant("typed", simulated(whole))
    forms.append(graph_form("typed", lowered))
    if problem.capability.runs_here:
        forms.append(engine_form(plant("engine", whole), lowered))
    return forms


def trial(seed: int, kind: str | None) -> Trial:
    """A model with one fault of this kind at a random rung and layer, drawn again until it changes an output, or a clean one."""
    draw = np.random.default_rng(seed)
    while True:
        family, word = str(draw.choice(list(FAMILIES))), str(draw.choice(list(PLANS)))
        integer = kind in {one.__name__ for one in INTEGER_FAULTS}
        rungs = ["typed", "engine"] if integer else ["imported", "fused", "typed", "engine"]
        if kind == "frozen_length":
            rungs.remove("engine")  # an engine that does not run shows no layer
        rung = str(draw.choice(rungs)) if kind else ""
        clean = FAMILIES[family](draw)
        planted: list[tuple[str, ...]] = []

        def plant(where: str, graph: ir.Model, rung: str = rung, planted: list[tuple[str, ...]] = planted) -> ir.Model:
            found = _planted(graph, FLOAT_FAULTS + INTEGER_FAULTS, kind, draw) if kind and where == rung else None
            if found is None:
                return graph
            planted.append(found[1])
            return found[0]

        state = draw.bit_generator.state
        forms = forms_of(clean, word, draw, plant)
        if kind and not planted:
            continue
        sizes: Sizes = {"the usual shapes": feeds_of(clean, draw, 3), "the longest": feeds_of(clean, draw, 1, time=20)}
        if kind and not _effective(forms, rung, clean, word, state, sizes):
            continue
        broken = _climbed(forms, sizes).broken
        layers = planted[0] if planted else ()
        return Trial(family, word, kind or CLEAN, rung, layers, broken and broken.rung, broken and broken.worst_layer)


def _climbed(forms: Sequence[Form], sizes: Sizes) -> Climbed:
    """Up to the first rung that breaks."""
    climbed = start(forms[0], sizes)
    for form in forms[1:]:
        climbed = climb(climbed, form, sizes, METRICS["cosine"])
        if climbed.broken is not None:
            break
    return climbed


def _effective(forms: list[Form], rung: str, clean: ir.Model, word: str, state: Any, sizes: Sizes) -> bool:
    """Whether the fault changes what the model answers: by a thousandth of an output, or fourfold what lower precision costs."""
    draw = np.random.default_rng()
    draw.bit_generator.state = state
    sound = next(form for form in forms_of(clean, word, draw, lambda _, graph: graph) if form.name == rung)
    faulty = next(form for form in forms if form.name == rung)
    parent, right, wrong = (_run(form, sizes) for form in (forms[0], sound, faulty))
    cost = _apart(parent, right) if rung == "typed" else 0.0
    return _apart(right, wrong) > max(EFFECTIVE, COST * cost)


NETWORK = """
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(12, 32), nn.LayerNorm(32), nn.LayerNorm(32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)
        self.softmax, self.head = nn.Softmax(dim=-1), nn.Linear(32, 6)

    def forward(self, x):
        h = self.embed(x)
        n = self.norm1(h)
        h = h + self.softmax(self.query(n) @ self.key(n).transpose(1, 2) / 32**0.5) @ self.value(n)
        return self.head(h + self.fc2(self.act(self.fc1(self.norm2(h)))))

class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.1)
        self.conv2, self.act2 = nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x):
        h = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.fc(self.pool(h).flatten(1))

def encoder():
    return Encoder()

def images():
    return Images()
"""


def with_pytorch(name: str, shape: tuple[int, ...], kinds: Sequence[str | None]) -> list[Trial]:
    """A network of PyTorch's, run by PyTorch beside the graph that was imported from it, once for each fault and once without (None)."""
    import torch

    trials = []
    with TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "net.py").write_text(NETWORK)
        made: dict[str, Any] = {}
        exec(NETWORK, made)
        torch.manual_seed(0)
        torch.save(made[name]().state_dict(), folder / "net.pth")
        how = ImportRequest(folder / "net.pth", folder, folder, factory=f"net.py:{name}", shapes={"x": Shape(shape, shape, shape)})
        imported = load(how)
        draw = np.random.default_rng(0)
        (feed,) = [spec.name for spec in imported.inputs]
        sizes: Sizes = {"the usual shapes": [{feed: draw.standard_normal(shape).astype(np.float32)} for _ in range(3)]}
        with closing(running(how, imported)) as source:
            for kind in kinds:
                wrong, layers = _effective_fault(imported.graph, kind, sizes, draw) if kind is not None else (imported.graph, ())
                broken = _climbed([source_form(imported, source), graph_form("imported", wrong)], sizes).broken
                named = (broken and broken.rung, broken and broken.worst_layer)
                trials.append(Trial(f"{name}, by PyTorch", "fp32", kind or CLEAN, "imported" if kind else "", layers, *named))
    return trials


def _effective_fault(graph: ir.Model, kind: str, sizes: Sizes, draw: Draw) -> tuple[ir.Model, tuple[str, ...]]:
    """A fault that is drawn again until it changes an output."""
    right = _run(graph_form("right", graph), sizes)
    while True:
        found = _planted(graph, FLOAT_FAULTS, kind, draw)
        if found is not None and _apart(right, _run(graph_form("wrong", found[0]), sizes)) > EFFECTIVE:
            return found


def _one(job: tuple[int, str | None]) -> Trial:
    try:
        return trial(*job)
    except OptimizeError as error:  # which does not travel between processes
        raise RuntimeError(f"{job}: {error}") from None


def main(count: int) -> None:
    jobs = [(seed, KINDS[seed % len(KINDS)]) for seed in range(count)] + [(10_000 + seed, None) for seed in range(count)]
    with ProcessPoolExecutor(2) as pool:
        trials = list(pool.map(_one, jobs))
    kinds = (None, "dropped_bias", "swapped_channels", "clipped")
    trials += with_pytorch("images", (1, 3, 16, 16), (*kinds, "wrong_padding"))
    trials += with_pytorch("encoder", (1, 12, 12), (*kinds, "wrong_axis"))
    Path(__file__).with_suffix(".md").write_text(told(trials, count))


def told(trials: Sequence[Trial], count: int) -> str:
    """The tables as Markdown."""
    faulty, clean = [one for one in trials if one.kind != CLEAN], [one for one in trials if one.kind == CLEAN]
    right = sum(one.right for one in faulty)
    alarms = sum(not one.right for one in clean)
    lines = [
        "# What the parity ladder finds",
        "",
        f"`python -P benchmarks/ladder.py {count}`: {len(faulty)} faults, {right} found at their rung and layer "
        f"({100 * right / len(faulty):.1f} %); {len(clean)} clean models, {alarms} false alarms.",
        "",
        "Seeded models of six families, of several sizes, in two lengths where the length is free; a plan drawn among",
        f"{', '.join(PLANS)} (minmax ranges from 16 samples); one fault in a random layer of a random rung. One that changes",
        f"nothing is drawn again: it counts where it moves an output by {EFFECTIVE:g} of its size, and at the rung of lower precision by",
        f"{COST:g} times what the precision itself costs there. It is found where the first rung that breaks is the one it was planted at,",
        "and the layer that is named there is the one (of a tensor's scale: the layer that writes or one that reads it), alone or joined",
        "with the layers between which nothing can be compared. A frozen length is not planted into engines: one that does not run shows",
        "no layer. Those by PyTorch have the framework itself as their source.",
        "",
        *_table("fault", faulty, lambda one: one.kind.replace("_", " ")),
        "",
        *_table("rung", faulty, lambda one: one.rung),
        "",
        *_table("family", faulty, lambda one: one.family),
        "",
        *_table("plan", faulty, lambda one: one.plan),
        "",
        "Not found, or falsely alarmed:",
        "",
        *([f"- {_words(one)}" for one in trials if not one.right] or ["- none"]),
        "",
    ]
    return "\n".join(lines)


def _table(title: str, trials: Sequence[Trial], of: Callable[[Trial], str]) -> list[str]:
    all_, right = Counter(map(of, trials)), Counter(of(one) for one in trials if one.right)
    return [f"| {title} | planted | found |", "|---|---|---|", *(f"| {name} | {all_[name]} | {right[name]} |" for name in sorted(all_))]


def _words(one: Trial) -> str:
    planted = f"{one.kind.replace('_', ' ')} at {one.rung}, {' or '.join(one.layers)}" if one.kind != CLEAN else CLEAN
    named = f"named {one.named_rung}, {one.named_layer}" if one.named_rung else "nothing named"
    return f"{one.family}, {one.plan}: {planted}; {named}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
