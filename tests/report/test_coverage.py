from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli.build import command
from optimizer.demands import after_demands, int8_missed
from optimizer.engine import Built, Candidate, Parity, Realised
from optimizer.errors import InputError
from optimizer.plan import Plan
from optimizer.report.coverage import UNKNOWN, coverage
from optimizer.request import Request, request_from_words

LAYERS = (
    Realised("stem", "Conv", "int8", "fp32", ms=0.5, reason="its scale is odd", multiplications=100),
    Realised("body", "Conv", "int8", "int8", ms=1.0, multiplications=800),
    Realised("relu", "Relu", "fp32", "fp32", ms=0.1),
    Realised("pool", "MaxPool", "int8", "int8"),
    Realised("gone", "Relu", "int8", "folded", reason="the kernel before it clips"),
    Realised("head", "Gemm", "fp32", "fp32", ms=0.2, multiplications=100),
)


def test_coverage_counts_layers_that_were_asked_for_and_the_multiplications_of_all_with_weights() -> None:
    found = coverage(LAYERS, {"head": "it decides"})
    assert found is not None
    assert (found.asked, found.got, found.share) == (3, 2, 0.8)
    assert [(one.layer, one.asked, one.reason, one.share, one.ms) for one in found.missing] == [
        ("stem", True, "its scale is odd", 0.1, 0.5),
        ("head", False, "it decides", 0.1, 0.2),
    ]
    assert found.sentence == "INT8 was asked for 3 layers, and 2 run in it: 80.0% of all multiplications by weights"


def test_dynamic_int8_is_int8_and_a_product_that_nobody_found_in_the_engine_is_not() -> None:
    dynamic = Realised("a", "MatMul", "int8_dynamic", "int8_dynamic", multiplications=1)
    lost = Realised("b", "MatMul", "int8", "folded", reason="merged with its neighbours", multiplications=3)
    found = coverage([dynamic, lost])
    assert found is not None
    assert (found.got, found.share) == (1, 0.25)
    assert [one.layer for one in found.missing] == ["b"]


def test_there_is_no_coverage_of_what_nobody_has_built_nor_a_share_where_no_layer_holds_weights() -> None:
    assert coverage([Realised("a", "Conv", "int8", UNKNOWN)]) is None
    assert coverage([]) is None
    found = coverage([Realised("a", "Relu", "fp32", "fp32")])
    assert found is not None
    assert found.share is None
    assert found.sentence == "INT8 was asked for no layer"


def missed(wanted: float | None, layers: tuple[Realised, ...] = LAYERS) -> str | None:
    subject = Candidate("int8", Plan("onnxruntime", "cpu", "fp32", reasons={"head": "it decides"}), built=Built(layers))
    return int8_missed(Request(Path("net.onnx"), Path("out"), min_int8_coverage=wanted), subject)


@pytest.mark.parametrize("wanted", [None, 0.5, 0.8])
def test_a_share_of_int8_that_is_reached_misses_nothing(wanted: float | None) -> None:
    assert missed(wanted) is None


def test_a_share_of_int8_that_is_not_reached_names_the_layers_with_their_reasons() -> None:
    assert missed(0.9) == (
        "80.0% of the multiplications by weights are in INT8, and 90% were demanded: "
        "stem has 10.0% (its scale is odd); head has 10.0% (it decides)"
    )
    many = tuple(Realised(f"layer{number}", "Gemm", "fp32", "fp32", multiplications=1) for number in range(8))
    assert (missed(0.1, many) or "").endswith("; and 3 more layers")


def test_a_build_that_misses_its_share_of_int8_fails_whatever_the_gate_says() -> None:
    subject = Candidate("int8", Plan("onnxruntime", "cpu", "fp32"), built=Built(LAYERS))
    passed = Parity("pass", "top1", 0.9, 0.9, 0.01, 0.0, -0.001, 0.001, 2000, None, "here", "it holds")
    parity, code = after_demands(Request(Path("net.onnx"), Path("out"), min_int8_coverage=0.9), subject, passed, ())
    assert (parity.verdict, code) == ("fail", 3)
    assert "stem has 10.0%" in parity.reason
    assert after_demands(Request(Path("net.onnx"), Path("out"), min_int8_coverage=0.8), subject, passed, ()) == (passed, 0)


def test_a_share_of_int8_can_not_be_met_where_nothing_tells_of_any() -> None:
    assert "no built engine tells" in (missed(0.1, (Realised("a", "Conv", "int8", UNKNOWN),)) or "")
    assert "no layer of this model holds weights" in (missed(0.1, (Realised("a", "Relu", "fp32", "fp32"),)) or "")


@pytest.mark.parametrize(("share", "words"), [(1.5, "is a share"), (0, "above 0"), (-1, "above 0"), (True, "above 0"), ("0.9", "above 0")])
def test_a_share_is_a_number_up_to_one(share: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        request_from_words("net.onnx", "out", min_int8_coverage=share)


def test_a_share_of_int8_and_another_precision_contradict_each_other(tmp_path: Path) -> None:
    config = tmp_path / "optimize.toml"
    config.write_text("min_int8_coverage = 0.9\n")
    assert request_from_words("net.onnx", "out", config).min_int8_coverage == 0.9
    with pytest.raises(InputError, match="both asked for"):
        request_from_words("net.onnx", "out", config, precision="fp32")


def test_help_says_what_the_share_is_of() -> None:
    told = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "--min-int8-coverage X" in told
    assert "of all multiplications by weights runs in INT8" in told
