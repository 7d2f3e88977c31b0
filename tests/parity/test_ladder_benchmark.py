"""A small part of benchmarks/ladder.py: planted faults are found at their rung and layer, clean models raise no alarm."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "ladder.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_the_ladder", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swapped_channels", "clipped", "stale_scale_of_smaller_data", "dropped_integer_bias"])
def test_a_planted_fault_is_found_at_its_rung_and_layer(benchmark: ModuleType, kind: str) -> None:
    found = benchmark.trial(1, kind)
    assert found.right, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_clean_model_raises_no_alarm(benchmark: ModuleType, seed: int) -> None:
    found = benchmark.trial(seed, None)
    assert found.right, found
