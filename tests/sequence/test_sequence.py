"""A state is fed back over a sequence, each run its own; errors are told over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.data import Samples, open_samples
from optimizer.errors import InputError
from optimizer.model import Model, Source, TensorSpec
from optimizer.preprocessing import InputPreprocessing, Preprocessing
from optimizer.sequence import Recorded, carried, error_over_time, independent_after, refuse_wrong_states

STATEFUL = Preprocessing({"state": InputPreprocessing(state="next")})
STEPS = 12


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """Twelve samples of two numbers: 1, 2, 3 ... in both."""
    x = np.repeat(np.arange(1, STEPS + 1, dtype=np.float32)[:, None], 2, axis=1)
    np.savez(tmp_path / "data.npz", x=x, state=np.zeros((STEPS, 2), np.float32))
    specs = (TensorSpec("x", "float32", (1, 2)), TensorSpec("state", "float32", (1, 2)))
    return open_samples("data.npz", specs, STATEFUL, tmp_path)


def leaky(keep: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """y = next = keep x state + x, without a memory of its own."""

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        held = np.float32(keep) * feeds["state"] + feeds["x"]
        return {"y": 2 * held, "next": held}

    return run


def test_a_run_gets_its_own_state_back_from_one_sample_to_the_next(samples: Samples) -> None:
    run = carried(leaky(0.5), samples)
    held, seen = 0.0, []
    for feeds in samples:
        held = 0.5 * held + float(feeds["x"][0, 0])
        seen.append((float(run(feeds)["next"][0, 0]), held))
    assert [one for one, _ in seen] == pytest.approx([other for _, other in seen])
    assert len(seen) == STEPS


def test_a_sequence_begins_anew_where_samples_were_left_out(samples: Samples) -> None:
    part = samples.take([0, 1, 5, 6])
    run = carried(leaky(1.0), part)
    assert [float(run(feeds)["next"][0, 0]) for feeds in part] == [1, 3, 6, 13]


def test_a_model_without_a_state_is_run_as_it_is(samples: Samples, tmp_path: Path) -> None:
    plain = open_samples("data.npz", samples.inputs, Preprocessing(), tmp_path)
    run = leaky(1.0)
    assert carried(run, plain) is run


def test_recorded_samples_hold_the_states_that_the_parent_had(samples: Samples) -> None:
    feeds = list(Recorded(leaky(1.0), samples))
    assert len(Recorded(leaky(1.0), samples)) == len(feeds) == STEPS
    assert [float(feed["state"][0, 0]) for feed in feeds] == [0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66]
    assert [float(feed["x"][0, 0]) for feed in feeds] == list(range(1, STEPS + 1))


def test_recorded_samples_are_the_same_at_every_pass(samples: Samples) -> None:
    recorded = Recorded(leaky(1.0), samples)
    assert [float(feed["state"][0, 0]) for feed in recorded] == [float(feed["state"][0, 0]) for feed in recorded]


def test_a_small_error_that_adds_up_in_the_state_shows_over_time(samples: Samples) -> None:
    errors = error_over_time(leaky(1.0), leaky(0.99), samples)
    assert len(errors) == STEPS
    assert errors[0] == 0.0
    assert all(later > earlier for earlier, later in pairwise(errors))


def test_an_engine_that_gives_no_number_is_infinitely_wrong_from_there_on(samples: Samples) -> None:
    def broken(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.where(feeds["x"] > 6, np.nan, array) for name, array in leaky(1.0)(feeds).items()}

    errors = error_over_time(leaky(1.0), broken, samples)
    assert np.isinf(errors[6:]).all()
    assert errors[:6] == (0.0,) * 6


def test_errors_that_stay_alike_for_long_make_long_blocks() -> None:
    draw = np.random.default_rng(0)
    noise = draw.standard_normal(4000)
    slow = np.zeros(4000)
    for step in range(1, 4000):
        slow[step] = 0.9 * slow[step - 1] + noise[step]
    assert independent_after(noise) == 1
    assert 25 <= independent_after(slow) <= 55  # twice (1 + .9) / (1 - .9), less 1


@pytest.mark.parametrize("errors", [(), (1.0,), (0.0,) * 50, (np.inf, 1.0, 2.0), (np.nan,) * 5])
def test_errors_that_tell_nothing_of_time_leave_samples_single(errors: tuple[float, ...]) -> None:
    assert independent_after(errors) == 1


def model(output: str) -> Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    net (float[1,2] x, float[1,2] state) => (float[1,2] y, {output}) {{
        y = Add (x, state)
        next = Cast <to = 1> (y)
    }}"""
    return Model(ir.from_onnx_text(text), Source("onnx", "net.onnx", "0"))


def test_a_state_that_fits_is_taken() -> None:
    refuse_wrong_states(STATEFUL, model("float[1,2] next"))
    refuse_wrong_states(STATEFUL, model("float[n,m] next"))


@pytest.mark.parametrize("output", ["double[1,2] next", "float[1,3] next", "float[1,2,1] next"])
def test_a_state_of_another_type_or_size_is_refused(output: str) -> None:
    with pytest.raises(InputError, match="can't carry the output 'next'"):
        refuse_wrong_states(STATEFUL, model(output))


def test_a_state_that_the_model_does_not_give_is_refused_with_what_it_gives() -> None:
    wrong = Preprocessing({"state": InputPreprocessing(state="stateN")})
    with pytest.raises(InputError, match=r"does not have. Its outputs are: y, next"):
        refuse_wrong_states(wrong, model("float[1,2] next"))
