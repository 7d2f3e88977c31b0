"""An engine of one CPU on another: loaded where it gives the same numbers, refused where it would not, in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from kernels import cpus
from kernels.cpus import CPUS
from kernels.target import this_cpu
from optimizer.backends import backend
from optimizer.errors import UnavailableError
from optimizer.package.load import load
from optimizer.package.passport import Passport, seal

GRAPH = """<ir_version: 9, opset_import: ["": 20]> net (float[batch,3,4,4] input) => (float[batch,3] logits)
{ pooled = GlobalAveragePool(input)  logits = Flatten<axis = 1>(pooled) }"""
VNNI = CPUS["cpu:avx512-vnni"].features


@pytest.fixture
def engine(tmp_path: Path, passport: Passport, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that builds an engine folder for a CPU with `features` and then stands on a machine like `here`."""

    def make(here: str, **words: object) -> Path:
        folder = tmp_path / "engine"
        folder.mkdir()
        backend("onnxruntime").build(ir.from_onnx_text(GRAPH), this_cpu(), {"threads": 1, "spinning": False}, folder)
        seal(folder, replace(passport, knobs={"threads": 1, "spinning": False}, **words))  # type: ignore[arg-type]
        monkeypatch.setattr(cpus, "this_cpu", lambda: CPUS[here])
        return folder

    return make


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_weights_of_eight_bits_are_refused_where_pairs_of_their_products_saturate(engine: Callable[..., Path], precision: str) -> None:
    folder = engine("cpu:avx2", features=VNNI, precision=precision)
    with pytest.raises(UnavailableError, match="without VNNI, adds pairs of their products in 16 bits") as refusal:
        load(folder)
    assert "avx512_vnni" in refusal.value.remedy


def test_bf16_is_refused_where_it_can_only_be_emulated(engine: Callable[..., Path]) -> None:
    with pytest.raises(UnavailableError, match="BF16"):
        load(engine("cpu:avx512", features=CPUS["cpu:amx"].features, precision="bf16"))


@pytest.mark.parametrize(("here", "words"), [
    ("cpu:avx2", {"features": VNNI, "precision": "fp32"}),
    ("cpu:amx", {"features": VNNI, "precision": "int8"}),
    ("cpu:avx-vnni", {"features": VNNI, "precision": "int8"}),
    ("cpu:avx2", {"target": "cpu:avx2", "features": ("avx2",), "precision": "int8"}),
    ("cpu:avx512", {"target": "cpu:avx2", "features": ("avx2",), "precision": "int8"}),
    ("cpu:avx2", {"precision": "int8"}),
])  # fmt: skip
def test_what_gives_the_same_numbers_is_loaded(engine: Callable[..., Path], here: str, words: dict[str, object]) -> None:
    with load(engine(here, **words)) as loaded:
        assert loaded.run({"input": np.ones((1, 3, 4, 4), np.float32)})["logits"].tolist() == [[1, 1, 1]]
