"""The networks of this folder written out once, and the table that the models of a run fill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BEGIN, END = "<!-- models, written by make table -->", "<!-- end of models -->"
HEADER = (
    "| model | from | import s | nodes | furthest from its parent | sensitivity | ONNX Runtime | TensorRT-RTX, l4 |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pytorch`, `tensorflow` and `onnx` in it, each network in the form that its framework saves it in."""
    folder = tmp_path_factory.mktemp("networks")
    for framework, script in (("pytorch", "torch_networks.py"), ("tensorflow", "keras_networks.py")):
        (folder / framework).mkdir()
        said = subprocess.run([sys.executable, "-P", HERE / script, folder / framework], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
    (folder / "onnx").mkdir()
    spec = spec_from_file_location("onnx_networks", HERE / "onnx_networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(folder / "onnx")
    return folder


@pytest.fixture(scope="session")
def packaged() -> Path:
    """The folder of installed packages, in which two bring trained models."""
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None, "the packages with trained models are not installed: make setup does it"
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))).parent


@pytest.fixture(scope="session")
def table() -> Iterator[dict[str, str]]:
    """Rows by model; `make table` has them written into README, between the two marks."""
    rows: dict[str, str] = {}
    yield rows
    if file := os.environ.get("OPTIMIZE_TABLE"):
        text = Path(file).read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        assert after, f"{file} has no place for the table"
        lines = "".join(f"{row}\n" for row in rows.values())
        Path(file).write_text(f"{before}{BEGIN}\n{HEADER}{lines}{END}{after}", encoding="utf-8")
