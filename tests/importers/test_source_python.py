"""The environment that trained the model: another Python with an older TensorFlow, where nothing of optimize is installed.

It lies in .venv-older at the repository's root, made at the first run and kept. OPTIMIZE_OTHER_PYTHON names the Python to make it
with; otherwise it is looked for on the PATH and where pyenv keeps its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from optimizer import graph, importers
from optimizer.errors import InputError
from optimizer.importers import ImportRequest
from optimizer.model import Model

pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENVIRONMENT = Path(__file__).parents[2] / ".venv-older"
TENSORFLOW = {(3, 8): "2.13.1", (3, 9): "2.15.1", (3, 10): "2.15.1", (3, 11): "2.15.1"}
"""By the minor version of Python, the last TensorFlow for it that brings Keras 2; its tensorflow-cpu installs without CUDA."""

MODELS = """
import numpy as np
import tensorflow as tf
from scaling import Scaling

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers

def network(*more):
    x = tf.keras.Input((8, 8, 3), name="image")
    y = layers.DepthwiseConv2D(3, name="depthwise")(layers.Conv2D(4, 3, activation="relu", name="conv")(x))
    y = layers.GlobalAveragePooling2D()(layers.BatchNormalization(name="norm")(y))
    for layer in more:
        y = layer(y)
    return tf.keras.Model(x, layers.Dense(5, name="logits")(y))

plain, custom = network(), network(Scaling(3.0, name="scaling"))
plain.save("plain.h5")
plain.export("saved") if hasattr(plain, "export") else tf.saved_model.save(plain, "saved")
custom.save("custom.keras")
x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
np.savez("answers.npz", x=x, plain=plain(x, training=False).numpy(), custom=custom(x, training=False).numpy())
"""

SCALING = """
import tensorflow as tf

@tf.keras.utils.register_keras_serializable("ours")
class Scaling(tf.keras.layers.Layer):
    def __init__(self, by, **more):
        super().__init__(**more)
        self.by = by

    def call(self, x):
        return x * self.by

    def get_config(self):
        return {**super().get_config(), "by": self.by}
"""


@dataclass(frozen=True)
class Older:
    """An environment and what was made in it: `plain.h5`, `saved/`, `custom.keras` and the answers to `x`."""

    python: Path
    tensorflow: str
    folder: Path
    answers: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Older:
    found = next(other_pythons(), None)
    if found is None:
        wanted = ", ".join(f"3.{minor}" for _, minor in TENSORFLOW)
        pytest.skip(f"there is no other Python ({wanted}) on the PATH, and OPTIMIZE_OTHER_PYTHON names none")
    program, release = found
    python = installed(program, TENSORFLOW[release])
    folder = tmp_path_factory.mktemp("trained")
    (folder / "scaling.py").write_text(SCALING)
    subprocess.run([python, "-c", MODELS], cwd=folder, env=bare(), check=True, capture_output=True)
    with np.load(folder / "answers.npz") as answers:
        return Older(python, TENSORFLOW[release], folder, dict(answers))


def other_pythons() -> Iterator[tuple[Path, tuple[int, int]]]:
    """Interpreters of another minor version than ours that an older TensorFlow is made for, with their versions."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = [os.environ.get("OPTIMIZE_OTHER_PYTHON"), *(shutil.which(f"python3.{minor}") for _, minor in reversed(TENSORFLOW))]
    for program in [*(Path(name) for name in named if name), *sorted(root.glob("3.*/bin/python"), reverse=True)]:
        asked = subprocess.run([program, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
        release = tuple(int(number) for number in asked.stdout.split()) if asked.returncode == 0 else ()  # a shim may name nothing
        if release in TENSORFLOW and release != sys.version_info[:2]:
            yield program, (release[0], release[1])


def installed(program: Path, tensorflow: str) -> Path:
    """The interpreter of an environment with that TensorFlow, made where it is not there yet."""
    python, marker = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "made-of.txt"
    made_of = f"{program}\ntensorflow-cpu {tensorflow}\n"
    if not (marker.is_file() and marker.read_text() == made_of):
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([program, "-m", "venv", ENVIRONMENT], env=bare(), check=True, capture_output=True)
        install = [python, "-m", "pip", "install", "--quiet", f"tensorflow-cpu=={tensorflow}"]
        done = subprocess.run(install, env=bare(), capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"an older TensorFlow can't be installed here: {done.stderr.strip().splitlines()[-1]}")
        marker.write_text(made_of)
    return python


def bare() -> dict[str, str]:
    """Our variables without those that lead to our own environment."""
    ours = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
    return {**{name: value for name, value in os.environ.items() if name not in ours}, "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.fixture
def bring(older: Older, tmp_path: Path) -> Callable[..., tuple[ImportRequest, Model]]:
    """Imports a file that was made in the older environment, there."""

    def call(name: str, **how: object) -> tuple[ImportRequest, Model]:
        asked = ImportRequest(older.folder / name, tmp_path, older.folder, source_python=older.python, **how)
        return asked, importers.load(asked)

    return call


def answers(model: Model, x: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    graph.save(model.graph, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {model.inputs[0].name: x})[0]


def files(folder: Path) -> set[Path]:
    """All files in a folder, but for what Python compiled when the models were made."""
    return {file for file in folder.rglob("*") if "__pycache__" not in file.parts}


@pytest.mark.parametrize(
    ("name", "layers"), [("plain.h5", ["conv", "depthwise", "logits"]), ("saved", []), ("custom.keras", ["scaling", "logits"])]
)
def test_a_model_is_imported_and_run_where_it_was_trained(
    older: Older, bring: Callable[..., tuple[ImportRequest, Model]], tmp_path: Path, name: str, layers: list[str]
) -> None:
    before = files(ENVIRONMENT), files(older.folder)
    how, model = bring(name, trust=name == "custom.keras")
    assert model.source.versions["tensorflow"] == older.tensorflow
    assert not model.source.versions["python"].startswith("{}.{}.".format(*sys.version_info))
    assert model.source.interpreter
    named = " ".join(layer.name for layer in model.layers)
    assert all(layer in named for layer in layers)
    expected = older.answers["custom" if name == "custom.keras" else "plain"]
    np.testing.assert_allclose(answers(model, older.answers["x"], tmp_path), expected, rtol=1e-4, atol=1e-5)
    parent = importers.running(how, model)
    try:
        found = parent.run({model.inputs[0].name: older.answers["x"]})
    finally:
        parent.close()
    np.testing.assert_allclose(found[model.outputs[0].name], expected, rtol=1e-4, atol=1e-5)
    assert (files(ENVIRONMENT), files(older.folder)) == before


def test_code_of_the_users_is_refused_there_too_without_trust(bring: Callable[..., tuple[ImportRequest, Model]]) -> None:
    with pytest.raises(InputError) as caught:
        bring("custom.keras")
    assert "--trust" in caught.value.remedy
