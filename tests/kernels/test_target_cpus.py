"""CPUs other than this one: what they are called, which of them this one is, and what their engines may run on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels import cpus
from kernels.cpus import ALIASES, CPUS, elsewhere, lacking, multiplies_bf16, runs_here, saturates
from kernels.target import FEATURES, Target
from kernels.targets import target_from_name
from optimizer.errors import UnavailableError

ZEN4 = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Target:
    """This machine, as if it were a Zen 4."""
    machine = Target("cpu", "cpu", "x86-64", "AMD EPYC (family 25, model 17)", ZEN4, memory=1 << 30, cores=2)
    monkeypatch.setattr(cpus, "this_cpu", lambda: machine)
    return machine


@pytest.mark.parametrize("name", [*CPUS, *ALIASES])
def test_every_cpu_is_a_target_however_it_is_written(name: str) -> None:
    found = target_from_name(f" {name.upper().replace('-', '_')}")
    assert (found.name, found.features) == (ALIASES.get(name, name), CPUS[ALIASES.get(name, name)].features)


def test_features_are_those_that_this_cpu_is_asked_for_and_differ_from_row_to_row() -> None:
    assert all(set(row.features) <= set(FEATURES) for row in CPUS.values())
    assert len({frozenset(row.features) for row in CPUS.values()}) == len(CPUS)


@pytest.mark.parametrize(("name", "pairs", "bf16"), [
    ("cpu:sse4", True, False), ("cpu:haswell", True, False), ("cpu:skylake-server", True, False), ("cpu:icelake-server", False, False),
    ("cpu:alderlake", False, False), ("cpu:zen3", True, False), ("cpu:zen4", False, True), ("cpu:zen5", False, True),
    ("cpu:sapphirerapids", False, True),
])  # fmt: skip
def test_a_generation_adds_in_sixteen_bits_or_multiplies_bf16(name: str, pairs: bool, bf16: bool) -> None:
    features = CPUS[ALIASES.get(name, name)].features
    assert (saturates(features), multiplies_bf16(features)) == (pairs, bf16)


def test_a_cpu_that_this_one_is_has_this_machines_cores_and_name(here: Target) -> None:
    found = target_from_name("cpu:zen4")
    assert found == replace(here, name="cpu:avx512-bf16")
    assert runs_here(found)
    assert elsewhere(found) == ""


@pytest.mark.parametrize(("name", "words"), [
    ("cpu:avx2", "has avx512f, avx512_vnni, avx512_bf16 beyond it: an engine for it runs here, but on other kernels"),
    ("cpu:amx", "lacks its avx_vnni, amx_bf16, amx_int8: its kernels can't all run here"),
    ("cpu:avx-vnni", "has avx512f, avx512_vnni, avx512_bf16 beyond it and lacks its avx_vnni"),
])  # fmt: skip
@pytest.mark.usefixtures("here")
def test_a_cpu_with_more_or_fewer_features_is_another_one_and_says_what_that_means(name: str, words: str) -> None:
    found = target_from_name(name)
    assert not runs_here(found)
    assert found.cores == 0
    assert words in elsewhere(found)
    assert "simulation" in elsewhere(found)


@pytest.mark.parametrize(("features", "precision", "word"), [
    (ZEN4, "int8", "saturate"), (ZEN4, "int8_dynamic", "saturate"), (ZEN4, "bf16", "BF16"), (ZEN4, "fp32", None),
    (("avx2",), "int8", None), ((), "int8", None), (("avx2", "avx512f"), "int8", None),
])  # fmt: skip
def test_an_engine_may_run_on_an_older_cpu_only_where_its_numbers_stay(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], precision: str, word: str | None
) -> None:
    monkeypatch.setattr(cpus, "this_cpu", lambda: CPUS["cpu:avx2"])
    reason = lacking(features, precision)
    assert (reason is None) if word is None else (word in str(reason))


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.usefixtures("here")
def test_an_engine_for_an_older_cpu_may_run_on_a_newer_one(precision: str) -> None:
    assert all(lacking(CPUS[name].features, precision) is None for name in ("cpu:avx2", "cpu:avx512", "cpu:avx512-bf16"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cpu:avx3", "cpu:avx2"), ("haswell", "cpu:haswell"), ("zen4", "cpu:zen4"), ("cpu:icelak", "cpu:icelake"), ("cpu:", "cpu")],
)
def test_an_unknown_cpu_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        target_from_name(name)
    assert nearest in caught.value.remedy
