"""The table of GPUs: facts that the rest of the program decides by."""

import re

import pytest

from kernels.gpus import ALIASES, GPUS, RTX, RTX_LISTED

MAKER_WORDS = re.compile(r"^(NVIDIA|GeForce|Tesla|Jetson|any GPU)")


@pytest.mark.parametrize("name", ["t4", "l4", "a10g", "a100", "rtx-4090", "rtx-5090", "h100", "jetson-orin", "sm_86", "sm_120"])
def test_the_gpus_that_people_ask_for_are_in_the_table(name: str) -> None:
    assert GPUS[name].name == name
    assert GPUS[name].kind == "gpu"


@pytest.mark.parametrize(
    ("name", "features"),
    [("t4", (RTX, RTX_LISTED)), ("a100", (RTX,)), ("sm_121", (RTX, RTX_LISTED)), ("h100", ()), ("jetson-orin", ()), ("b200", ())],
)
def test_a_row_says_whether_tensorrt_rtx_builds_for_it_and_whether_nvidia_lists_that(name: str, features: tuple[str, ...]) -> None:
    assert GPUS[name].features == features


def test_every_row_has_an_architecture_and_a_makers_name() -> None:
    for target in GPUS.values():
        assert re.fullmatch(r"sm_\d{2,3}", target.compute), target.name
        assert MAKER_WORDS.match(target.device), target.name


def test_units_are_bytes_and_operations_per_second() -> None:
    l4 = GPUS["l4"]
    assert l4.memory == 24_000_000_000
    assert l4.bandwidth == 300e9
    assert l4.peaks["int8"] == 242e12


def test_peaks_grow_as_the_type_narrows() -> None:
    """A digit that slipped in the table shows here: INT8 is twice FP16 on every tensor core since Turing."""
    for target in GPUS.values():
        if {"fp16", "int8"} <= set(target.peaks):
            assert target.peaks["int8"] == pytest.approx(2 * target.peaks["fp16"], rel=0.02), target.name
        if "fp16" in target.peaks:
            assert target.peaks["fp16"] > target.peaks["fp32"], target.name


def test_a_plain_architecture_knows_no_sizes() -> None:
    assert (GPUS["sm_89"].memory, GPUS["sm_89"].bandwidth, dict(GPUS["sm_89"].peaks)) == (0, 0, {})


def test_no_turing_gpu_claims_bf16() -> None:
    assert all("bf16" not in target.peaks for target in GPUS.values() if target.compute == "sm_75")


def test_every_alias_leads_to_a_row_and_hides_none() -> None:
    assert set(ALIASES.values()) <= set(GPUS)
    assert not set(ALIASES) & set(GPUS)
    assert ALIASES["rtx4090"] == "rtx-4090"
    assert ALIASES["4090"] == "rtx-4090"
