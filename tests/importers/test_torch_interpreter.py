"""A network comes in through the interpreter that trained it, where torch and onnx are all that is installed beside the user's code."""

from __future__ import annotations

import ast
import platform
import venv
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer import importers
from optimizer.errors import InputError
from optimizer.importers import ImportRequest
from optimizer.importers import pytorch as importer
from optimizer.model import Model
from optimizer.plan import Shape

torch = pytest.importorskip("torch")

NEEDED = (
    *("torch", "torchgen", "functorch", "numpy", "numpy.libs", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"),
    *("typing_extensions.py", "onnx", "google", "ml_dtypes"),
)
WORKERS = Path(importers.__file__).parent / "workers"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with torch and onnx, linked, and a module of the user's; there is no onnxscript in it."""
    folder = tmp_path_factory.mktemp("theirs")
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    installed = Path(torch.__file__).parents[1]
    for name in NEEDED:
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    (packages / "their_network.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(6, 3)\n"
    )
    return folder / "bin" / "python"


def test_the_users_interpreter_needs_torch_and_onnx_and_nothing_of_ours(
    load: Callable[..., Model], folder: Path, tmp_path: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "find_spec", lambda _: None)  # it is not asked whether torch is here
    state = {"weight": torch.ones(3, 6), "bias": torch.zeros(3)}
    torch.save(state, folder / "net.pt")
    how: dict[str, Any] = {"factory": "their_network:Net", "source_python": theirs}
    model = load("net.pt", {"input": "1:1:4x6"}, **how)
    assert model.source.interpreter == f"Python {platform.python_version()}"
    assert any(note.startswith("Exported by torch's older exporter") for note in model.source.notes)
    request = ImportRequest(folder / "net.pt", tmp_path, folder, shapes={"input": Shape((1, 6), (1, 6), (4, 6))}, **how)
    with closing(importers.running(request, model)) as source:
        np.testing.assert_array_equal(source.run({"input": np.ones((2, 6), np.float32)})["output"], np.full((2, 3), 6, np.float32))


def test_an_interpreter_without_torch_is_refused_with_the_way_out(load: Callable[..., Model], folder: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    packages = next((tmp_path / "bare").glob("lib/python*/site-packages"))
    (packages / "numpy").symlink_to(Path(np.__file__).parent)
    torch.save({"weight": torch.ones(3, 6)}, folder / "net.pt")
    with pytest.raises(InputError, match="has no torch") as caught:
        load("net.pt", {"input": "1x6"}, factory="net:make", source_python=tmp_path / "bare" / "bin" / "python")
    assert "pip install torch" in caught.value.remedy


@pytest.mark.parametrize(
    "worker", ["optimize_checkpoint", "optimize_inputs", "optimize_huggingface", "optimize_network", "torch_export", "torch_run"]
)
def test_workers_are_written_in_the_oldest_python_of_a_users(worker: str) -> None:
    text = (WORKERS / f"{worker}.py").read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    newer = {"removeprefix", "removesuffix", "is_relative_to"}
    assert not [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in newer]
    assert "from __future__ import annotations" in text
    assert "strict=" not in text.replace("strict=True, ", "")
