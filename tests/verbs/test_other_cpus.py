"""What the commands say of CPUs other than this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernels import cpus
from kernels.cpus import CPUS
from optimizer.errors import UnavailableError
from optimizer.package.passport import read, seal
from optimizer.verbs.doctor import doctor
from optimizer.verbs.qualify import qualify


@pytest.fixture(autouse=True)
def zen4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "this_cpu", lambda: replace(CPUS["cpu:avx512-bf16"], name="cpu", device="AMD EPYC", cores=2))


def test_doctor_lists_them_and_tells_which_of_them_this_one_is() -> None:
    served = {one.target: one for one in doctor().served if one.backend == "onnxruntime"}
    assert all(served[name].missing is None for name in CPUS)
    assert [name for name in CPUS if served[name].runs_here] == ["cpu:avx512-bf16"]


def test_an_engine_is_qualified_only_on_the_cpu_that_it_is_for(engine: Callable[..., Path]) -> None:
    folder = engine()
    passport = read(folder)
    seal(folder, replace(passport, target="cpu:avx2", features=CPUS["cpu:avx2"].features))
    with pytest.raises(UnavailableError, match="Nothing can be qualified for cpu:avx2 here") as refusal:
        qualify(folder)
    assert "exactly avx2" in refusal.value.remedy
    assert not (folder / "attestations").exists()
