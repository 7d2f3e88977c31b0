from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

from kernels.target import this_cpu
from kernels.targets import target_from_name
from optimizer import backends
from optimizer.errors import UnavailableError

FUNCTIONS = {"capability", "knobs", "missing", "build", "load"}


def test_backends_are_listed_without_being_imported() -> None:
    code = "import sys, optimizer.backends as b; print(b.NAMES, [m for m in sys.modules if m.startswith('optimizer.backends.')])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'onnxruntime'" in answer
    assert answer.strip().endswith("[]")


@pytest.mark.parametrize("name", backends.NAMES)
def test_a_backend_has_its_five_functions_and_nothing_else_public(name: str) -> None:
    module = backends.backend(name)
    assert isinstance(module, ModuleType)
    own = {
        word
        for word, value in vars(module).items()
        if not word.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__
    }
    assert own == FUNCTIONS


def test_an_unknown_backend_is_refused_with_the_list() -> None:
    with pytest.raises(UnavailableError) as caught:
        backends.backend("tvm")
    assert caught.value.exit_code == 5
    assert "onnxruntime" in caught.value.remedy


def test_a_backend_whose_package_is_not_installed_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setattr(backends.importlib, "import_module", absent)
    with pytest.raises(UnavailableError, match="needs the package 'openvino'"):
        backends.backend("onnxruntime")
    assert backends.serving(this_cpu()) == ()


def test_a_mistake_inside_a_backend_is_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'optimizer.nowhere'", name="optimizer.nowhere")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        backends.backend("onnxruntime")


def test_onnxruntime_serves_this_cpu_and_no_gpu() -> None:
    assert "onnxruntime" in backends.serving(this_cpu())
    assert "onnxruntime" not in backends.serving(target_from_name("l4"))
    assert "--backend tensorrt" in (backends.missing("onnxruntime", target_from_name("l4")) or "")
