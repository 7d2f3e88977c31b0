"""What another budget would buy, how near the best refused plan came, and why the one that ships won."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels.timing import Timing
from optimizer.engine import Built, Candidate, Parity, Realised
from optimizer.plan import Plan, Rewrite
from optimizer.report.outlook import closest_miss, looser, outlook
from optimizer.report.why import why_it_won


def parity(
    verdict: str, drop: float | None, low: float | None, high: float | None, needed: int | None = None, metric: str = "top1"
) -> Parity:
    return Parity(verdict, metric, 0.8, None, 0.008, drop, low, high, 2000, needed, "here", "why")  # type: ignore[arg-type]


def candidate(name: str, ratio: float, judged: Parity | None = None, flips: float | None = None, lossy: bool = True) -> Candidate:
    plan = Plan("openvino", "cpu", "fp32", precisions={"conv": "int8"} if lossy else {})
    timing = Timing(10 / ratio, 0, 0, "fp32", ratio, ratio - 0.02, ratio + 0.02, 99, "", "here")
    bounds = {"flip_rate": flips, "flip_low": flips / 2, "flip_high": flips * 1.5} if flips is not None else {}
    return Candidate(name, plan, timing=timing, parity=judged, distance=0.1 if lossy else 1e-7, **bounds)


NUMERIC = Parity("pass", "max_abs", 1e-7, 2e-7, 4e-7, 2e-7, 2e-7, 2e-7, 4, None, "here", "no lossy step")
BASE = candidate("fp32", 1.0, NUMERIC, lossy=False)
SHIPPED = candidate("bf16", 1.6, parity("pass", 0.001, -0.002, 0.004))


def test_a_larger_budget_buys_what_was_measured_or_predicted_within_it() -> None:
    measured = candidate("int8", 2.0, parity("fail", 0.012, 0.0085, 0.0155))
    guessed = candidate("int8 dynamic", 2.6, flips=0.02)
    slow, lost = candidate("slow", 1.1, flips=0.001), candidate("hopeless", 9.0, flips=0.5)
    assert looser(SHIPPED, [BASE, SHIPPED, measured, guessed, slow, lost]) == (
        "with 1.60 pp instead of 0.80 pp allowed: INT8 2.00x, measured drop 1.20 pp [0.85, 1.55]",
        "with 4.00 pp instead of 0.80 pp allowed: INT8 dynamic 2.60x, predicted drop at most 3.00 pp",
    )


def test_of_two_plans_within_a_budget_the_faster_is_told_and_each_budget_has_to_buy_speed() -> None:
    tried = [
        BASE,
        SHIPPED,
        candidate("int8", 2.0, flips=0.007),
        candidate("faster", 2.5, flips=0.0075),
        candidate("same", 2.51, flips=0.03),
    ]
    assert looser(SHIPPED, tried) == ("with 1.20 pp instead of 0.80 pp allowed: faster 2.50x, predicted drop at most 1.12 pp",)


def test_nothing_is_said_of_a_budget_where_none_was_judged_or_nothing_is_known() -> None:
    assert looser(BASE, [BASE, candidate("int8", 2.0, flips=0.01)]) == ()
    assert looser(SHIPPED, [BASE, SHIPPED, candidate("int8", 2.0)]) == ()
    assert outlook(BASE, []) == ()


def test_embeddings_are_told_by_their_cosine() -> None:
    shipped = replace(SHIPPED, parity=parity("pass", 0.001, 0.0, 0.002, metric="cosine"))
    assert looser(shipped, [shipped, replace(candidate("int8", 2.0), distance=0.15)]) == (
        "with 0.012 instead of 0.008 allowed: INT8 2.00x, predicted drop at most 0.0112",
    )


def test_where_nothing_faster_passed_the_closest_miss_is_told_with_what_would_decide_it() -> None:
    near = candidate("int8", 2.0, parity("inconclusive", 0.002, -0.003, 0.0085, 2600))
    far = candidate("int8 dynamic", 3.0, parity("fail", 0.03, 0.02, 0.04))
    assert closest_miss(BASE, [BASE, far, near]) == (
        "closest miss: INT8 (2.00x), 0.20 pp [-0.30, 0.85] where 0.80 pp is allowed: about 600 more samples would decide"
    )
    assert closest_miss(BASE, [BASE, far]).endswith("3.00 pp [2.00, 4.00] where 0.80 pp is allowed: surely 1.20 pp too much")
    assert closest_miss(SHIPPED, [BASE, SHIPPED, near]) == ""
    assert closest_miss(far, [far]) == ""  # the verdict itself tells that


def test_the_reasons_name_engine_rewrites_precisions_and_what_each_step_gave() -> None:
    places = tuple(Rewrite("FoldColumns", f"conv{index}") for index in range(5))
    plan = Plan(
        "openvino",
        "cpu",
        "bf16",
        rewrites=(*places, Rewrite("FreeIm2col", "stem")),
        precisions={"conv": "int8"},
        recovery=("smoothing", "gptq"),
        reasons={"stem": "front end", "conv": "int8 is faster", "head": "front end"},
    )
    realised = (*(Realised(f"c{index}", "Conv", "int8", "int8") for index in range(18)), Realised("head", "Gemm", "bf16", "bf16"))
    won = replace(candidate("openvino int8", 2.6, SHIPPED.parity, flips=0.006), plan=plan, built=Built(realised), gain=1.62, seconds=12.04)
    rewritten = replace(candidate("rewritten", 1.6, lossy=False), gain=1.6)
    tried = [BASE, rewritten, replace(candidate("no step", 1.2), gain=0.75), won, replace(candidate("lost", 4.0), gain=1.5)]
    assert why_it_won(won, tried) == (
        "openvino INT8 runs on openvino, 2.60 times as fast as FP32; layers: 18 in INT8, 1 in BF16; "
        "predicted to lose: 0.6 % flip [0.3, 0.9].",
        "Rewritten exactly: FoldColumns at conv0, conv1, conv2 and 2 more; FreeIm2col at stem. Accuracy recovered by smoothing, gptq.",
        "Not in INT8: stem, head (front end).",
        "What each step gave over the fastest before it: rewritten 1.60x, openvino INT8 1.62x in 12 s.",
    )


@pytest.mark.parametrize("subject", [BASE, replace(BASE, timing=None), Candidate("fp32", Plan("tensorrt", "l4", "fp16"))])
def test_a_plan_without_anything_to_tell_is_told_in_one_sentence(subject: Candidate) -> None:
    (said,) = why_it_won(subject, [subject])
    assert said.startswith(f"FP32 runs on {subject.plan.backend}")
