"""Is the model fed what it was trained on? Signs that it is not, from the first samples, the model itself and its answers.

Each sign is one sentence of what was seen and one of what to look at; none is proof, so none stops a build.  Order of channels (RGB,
BGR), height against width and everything else that leaves no trace in numbers is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np

from optimizer.data import Samples
from optimizer.engine import Arrays
from optimizer.model import Model
from optimizer.reference import Reference
from optimizer.suspicion.answers import answers_suspected
from optimizer.suspicion.learnt import learnt_suspected
from optimizer.suspicion.numbers import numbers_suspected, spread_suspected

SAMPLES = 32
"""Samples of each data set that are looked at, spread evenly over it."""


def suspected(model: Model, sets: Sequence[Samples]) -> tuple[str, ...]:
    """What speaks against the data sets being what `model` was trained on, in words.

    The model is run once on each sample, and again, for each other way of preparing them, only where its answers are wrong.
    """
    found: list[str] = []
    looked_at: list[tuple[str, Sequence[Arrays]]] = []
    for samples in sets:
        wanted = samples.preprocessing.wanted(model.inputs)
        floats = tuple(spec for spec in wanted if spec.dtype.startswith("float") and len(spec.shape) > 1)
        some = samples.take(np.unique(np.linspace(0, len(samples) - 1, SAMPLES).round().astype(int)).tolist())
        feeds = list(some)
        with closing(Reference(model.graph, optimized=True)) as reference:
            outputs = [reference.run(feed) for feed in feeds]
        found += numbers_suspected(samples.source, feeds, floats)
        found += learnt_suspected(model.graph, samples.source, feeds, floats)
        found += answers_suspected(model, samples.source, feeds, outputs, some.labels, floats)
        for other in looked_at:
            found += spread_suspected(other, (samples.source, feeds), floats)
        looked_at.append((samples.source, feeds))
    return tuple(f"Suspicious: {one}" for one in dict.fromkeys(found))
