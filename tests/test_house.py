"""The house: who may know whom, what loads without extras, and how little `--help` needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = ("numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch", "tensorrt_rtx", "rich", "msgspec")
EXTRAS = ("torch", "safetensors", "tensorrt_rtx", "polygraphy", "sklearn", "scipy")
EXCUSED = (
    "optimizer.launch",  # a program, not a module
    "optimizer.importers.workers",  # programs too
    "optimizer.backends.tensorrt.worker",  # runs in the builder's child
)
"""Modules that are no part of what must load without extras, each with the reason."""


def python(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rooms_know_only_what_lies_below_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


IMPORT_ALL = """
import importlib, json, pkgutil, sys

blocked, excused = json.loads(sys.argv[1])

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
failed = []
for room in ("optimizer", "calibration", "kernels"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + ".", onerror=failed.append):
        if not module.name.startswith(tuple(excused)):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                failed.append(f"{module.name} needs {error.name}")
print(json.dumps(failed))
"""


def test_every_module_loads_with_no_extra_installed() -> None:
    assert json.loads(python(IMPORT_ALL, json.dumps([EXTRAS, EXCUSED]))) == []


LOADED_BY_HELP = """
import sys
from optimizer.cli.main import run
codes = [run([*words, "--help"]) for words in ([], ["build"], ["inspect"], ["verify"], ["bench"], ["doctor"])]
assert codes == [0] * 6, codes
print("\\n" + " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_help_loads_nothing_heavy() -> None:
    loaded = set(python(LOADED_BY_HELP).splitlines()[-1].split())
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = set(python("import sys, optimizer; print(*{name.partition('.')[0] for name in sys.modules})").split())
    assert not loaded & set(HEAVY)


def test_only_the_command_line_and_the_console_view_know_rich() -> None:
    knowing = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "optimizer").rglob("*.py")
        if any(line.strip().startswith(("import rich", "from rich")) for line in file.read_text().splitlines())
    }
    assert knowing <= {"optimizer/report/views/console.py", "optimizer/cli/_progress.py"}


def test_nothing_prints_but_the_command_line() -> None:
    printing = [
        str(file.relative_to(ROOT))
        for room in ("optimizer", "calibration", "kernels")
        for file in (ROOT / room).rglob("*.py")
        if "cli" not in file.parts and any(line.strip().startswith("print(") for line in file.read_text().splitlines())
    ]
    assert printing == []


def test_no_pickle_is_written_and_read_only_where_the_user_trusts_it() -> None:
    using = [
        str(file.relative_to(ROOT))
        for room in ("optimizer", "calibration", "kernels")
        for file in (ROOT / room).rglob("*.py")
        if any(word in file.read_text() for word in ("pickle.load", "pickle.dump", "allow_pickle=True", "weights_only=False"))
    ]
    assert using == ["optimizer/importers/workers/optimize_checkpoint.py"]
