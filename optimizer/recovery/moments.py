"""What layers read, summed up over the data: means and second moments of the rows that a weight is multiplied with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.engine import Arrays
from optimizer.recovery.layers import Floats, groups, known, matrix, rows
from optimizer.reference import Reference

WIDEST = 4096
"""Inputs of a layer whose moments are kept as one matrix; of more the products across blocks of that many are left out."""

_ROWS = 4096
"""Rows that are summed up for a layer, spread over all samples."""

_BYTES = 512 << 20
"""What the moments of one pass over the data may hold; where there are more, there are several passes."""


@dataclass(frozen=True)
class Moments:
    """Of the rows that were seen: their mean (groups, inputs), and mean products (groups, block, block) of each block of inputs."""

    mean: Floats
    products: tuple[Floats, ...]

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Each block's place among the inputs, and its mean products."""
        start = 0
        for products in self.products:
            yield slice(start, start + products.shape[1]), products
            start += products.shape[1]

    def centred(self) -> Moments:
        """The same around the mean: what is left for a weight to do where a bias takes care of the mean."""
        parts = (products - self.mean[:, cut, None] * self.mean[:, None, cut] for cut, products in self.blocks())
        return Moments(self.mean, tuple(parts))


def moments(graph: ir.Model, layers: Sequence[ir.Node], feeds: Sequence[Arrays]) -> Iterator[tuple[ir.Node, Moments]]:
    """Each layer with the moments of what it reads, from as few passes over the data as memory allows.

    Layers that read the same tensor in the same way share one pair of moments.
    """
    alike: dict[tuple[str, ...], list[ir.Node]] = {}
    for node in layers:
        alike.setdefault(_reading(node), []).append(node)
    batch: list[list[ir.Node]] = []
    for nodes in alike.values():
        if batch and sum(_bytes(one[0]) for one in (*batch, nodes)) > _BYTES:
            yield from _passed(graph, batch, feeds)
            batch = []
        batch.append(nodes)
    yield from _passed(graph, batch, feeds)


def _reading(node: ir.Node) -> tuple[str, ...]:
    """What the rows of a layer depend on."""
    if node.op_type != "Conv":
        return (node.inputs[0].name or "" if node.inputs[0] is not None else "",)
    attributes = (f"{name}={node.attributes[name].value}" for name in sorted(node.attributes))
    return (node.inputs[0].name or "" if node.inputs[0] is not None else "", str(known(node, 1).shape[1:]), *attributes)


def _bytes(node: ir.Node) -> int:
    inputs = int(matrix(node).shape[2])
    return 8 * groups(node) * inputs * min(inputs, WIDEST)


def _passed(graph: ir.Model, batch: Sequence[Sequence[ir.Node]], feeds: Sequence[Arrays]) -> Iterator[tuple[ir.Node, Moments]]:
    """One pass over the data for the layers of a batch, those that read alike together."""
    sums = [_Sums() for _ in batch]
    names = [nodes[0].inputs[0].name or "" for nodes in batch if nodes[0].inputs[0] is not None]
    most = -(-_ROWS // len(feeds))
    with closing(Reference(graph, watch=tuple(dict.fromkeys(names)), optimized=True)) as reference:
        for feed in feeds:
            arrays = reference.run(feed)
            for nodes, name, total in zip(batch, names, sums, strict=True):
                total.add(rows(nodes[0], arrays[name], most))
    for nodes, total in zip(batch, sums, strict=True):
        found = total.mean()
        yield from ((node, found) for node in nodes)


class _Sums:
    """Sums over the rows seen so far."""

    def __init__(self) -> None:
        self._count = 0
        self._first: Floats | float = 0.0
        self._second: list[Floats] = []

    def add(self, rows: NDArray[np.float32]) -> None:
        starts = range(0, rows.shape[2], WIDEST)
        blocks = [rows[:, :, start : start + WIDEST] for start in starts]
        products = [(block.transpose(0, 2, 1) @ block).astype(np.float64) for block in blocks]
        self._second = [old + new for old, new in zip(self._second, products, strict=True)] if self._second else products
        self._first = self._first + rows.sum(axis=1, dtype=np.float64)
        self._count += rows.shape[1]

    def mean(self) -> Moments:
        return Moments(np.asarray(self._first / self._count), tuple(total / self._count for total in self._second))
