"""Operators of a library of the user's: refused by name without it, run everywhere with it, and never loaded unasked."""

from __future__ import annotations

import ctypes.util
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_extensions
import pytest

import optimizer
from optimizer import importers
from optimizer.errors import InputError
from optimizer.importers import ImportRequest
from optimizer.model import CUSTOM_OPS, Model

Load = Callable[..., Model]
Write = Callable[..., onnx.ModelProto]

LIBRARY = Path(onnxruntime_extensions.get_library_path())

TEXT = """
    g (float[N, 8] x) => (float[N, 8] y) <float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
        a, b = ai.onnx.contrib.NegPos(x)
        c = Mul(b, w)
        y = Add(a, c)
    }
"""
DOMAIN = "ai.onnx.contrib"


def test_an_operator_that_nobody_has_is_refused_by_name_and_the_way_out_told(load: Load, model: Write) -> None:
    model(TEXT, domains=[DOMAIN])
    with pytest.raises(InputError, match=r"'NegPos' of the domain 'ai\.onnx\.contrib'") as caught:
        load("model.onnx")
    assert "--custom-ops" in caught.value.remedy


def test_an_operator_of_a_function_or_a_branch_is_seen_too(load: Load, folder: Path) -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 20, "mine" : 1, "foreign" : 1]>
        g (float[N] x) => (float[N] y) { y = mine.twice(x) }
        <domain: "mine", opset_import: ["" : 20, "foreign" : 1]>
        twice (a) => (b) { b = foreign.Thing(a) }
        """
    )
    onnx.save(proto, folder / "model.onnx")
    with pytest.raises(InputError, match="'Thing' of the domain 'foreign'"):
        load("model.onnx")


def test_with_the_library_it_comes_in_with_its_types_known_and_runs_in_its_parent(load: Load, model: Write, folder: Path) -> None:
    model(TEXT, domains=[DOMAIN])
    imported = load("model.onnx", custom_ops=LIBRARY)
    assert imported.graph.metadata_props[CUSTOM_OPS] == str(LIBRARY)
    assert all(value.dtype is not None for node in imported.graph.graph for value in node.outputs)
    assert imported.source.code_ran
    assert any(LIBRARY.name in note and "SHA-256" in note for note in imported.source.notes)
    x = np.array([[-1, 2, -3, 4, 0, 0, 0, 0]], np.float32)
    with closing(importers.running(ImportRequest(folder / "model.onnx", folder, folder, custom_ops=LIBRARY), imported)) as parent:
        assert parent.run({"x": x})["y"].tolist() == [[-1, 4, -3, 16, 0, 0, 0, 0]]


def test_a_library_that_is_none_or_not_there_is_refused(load: Load, model: Write, folder: Path) -> None:
    model(TEXT, domains=[DOMAIN])
    (folder / "junk.so").write_bytes(b"\x7fELF" + bytes(100))
    other = ctypes.util.find_library("m")
    libraries = [folder / "junk.so", folder / "model.onnx"]
    libraries += [path for path in Path("/lib").rglob(other or "") if path.is_file()][:1] if other else []
    for library in libraries:
        with pytest.raises(InputError, match="is no library of operators for ONNX Runtime") as caught:
            load("model.onnx", custom_ops=library)
        assert str(folder) not in caught.value.reason
    with pytest.raises(InputError, match=r"no file 'nowhere\.so'"):
        load("model.onnx", custom_ops=folder / "nowhere.so")


def test_a_library_that_no_operator_needs_is_never_loaded(load: Load, model: Write, folder: Path) -> None:
    model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    (folder / "junk.so").write_bytes(b"junk")
    imported = load("model.onnx", custom_ops=folder / "junk.so")
    assert CUSTOM_OPS not in imported.graph.metadata_props
    assert imported.source.notes == ("No operator of this model needs junk.so, so it was left alone.",)


def test_an_engine_brings_its_library_and_runs_it_only_where_it_is_trusted(model: Write, folder: Path, tmp_path: Path) -> None:
    model(TEXT, domains=[DOMAIN])
    out = tmp_path / "out"
    np.savez(folder / "data.npz", x=np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32))
    outcome = optimizer.build(folder / "model.onnx", out, custom_ops=LIBRARY, calibration=str(folder / "data.npz"), precision="fp32")
    assert outcome.exit_code == 0
    with outcome.engine() as engine:
        assert any(LIBRARY.name in note for note in engine.passport.notes)
        assert "engine.so" in engine.passport.files
    for file in out.iterdir():
        assert str(LIBRARY.parent).encode() not in file.read_bytes() or file.name == "engine.so"
    with pytest.raises(InputError, match=r"brings engine\.so.*native code") as caught:
        optimizer.load(out)
    assert "--trust" in caught.value.remedy
    with optimizer.load(out, trust=True) as engine:
        assert engine.run({"x": np.full((1, 8), 2, np.float32)})["y"].tolist() == [[2, 4, 6, 8, 10, 12, 14, 16]]
