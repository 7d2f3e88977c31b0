"""Weights are found wherever a training script put them; what is no checkpoint, or does not fit, is refused in words."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def checkpoint(part: Any) -> Any:
    return part("optimize_checkpoint")


def request(file: Path) -> dict[str, Any]:
    kind = "safetensors" if file.suffix == ".safetensors" else "checkpoint"
    return {"file": str(file), "name": file.name, "kind": kind, "parts": [str(file)], "trust": False, "factory": None}


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"fc1": torch.nn.Linear(6, 8), "bn": torch.nn.BatchNorm1d(8)})


def weights() -> dict[str, Any]:
    return {key: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) for key, tensor in network().state_dict().items()}


STATE = weights()
ZEROS = {key: torch.zeros_like(tensor) for key, tensor in STATE.items()}


def prefixed(prefix: str) -> dict[str, Any]:
    return {prefix + key: tensor for key, tensor in STATE.items()}


@pytest.mark.parametrize(
    "saved",
    [
        OrderedDict(STATE),
        {"state_dict": STATE, "best": 0.5},
        {"epoch": 3, "checkpoint": {"model": STATE}},
        {"model_state": prefixed("module.")},
        prefixed("_orig_mod.module."),
        {"state_dict": {**prefixed("network."), "loss.weight": torch.ones(3)}},
        {"params": prefixed("module._orig_mod.model.")},
        {"generator": prefixed("ema_model.module.")},
        {key.replace("fc1.", "fc1._orig_mod."): tensor for key, tensor in STATE.items()},
        {"optimizer": {"state": {0: {"exp": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}, "net": STATE},
        {key: tensor for key, tensor in STATE.items() if "num_batches" not in key},
    ],
    ids=[
        "plain",
        "nested",
        "deep",
        "parallel",
        "compiled",
        "harness",
        "three deep",
        "generator",
        "part compiled",
        "beside the optimizer",
        "old",
    ],
)
def test_weights_are_found_wherever_training_put_them(checkpoint: Any, tmp_path: Path, saved: Any, channel: Any) -> None:
    torch.save(saved, tmp_path / "net.pt")
    made = network()
    read = checkpoint.read(channel, request(tmp_path / "net.pt"))[0]
    assert list(checkpoint.filled(channel, "net.pt", made, read)) == []
    for key in ("fc1.weight", "bn.running_var"):
        torch.testing.assert_close(made.state_dict()[key], STATE[key])


def test_of_two_sets_of_weights_one_is_taken_and_told(checkpoint: Any, channel: Any) -> None:
    made = network()
    saved = {"ema": ZEROS, "model": STATE, "other": {"fc1.weight": torch.ones(1)}}
    assert list(checkpoint.filled(channel, "net.pt", made, saved)) == [
        "The weights are those under 'model'; the file also holds 'ema', 'other'."
    ]
    torch.testing.assert_close(made.state_dict()["fc1.weight"], STATE["fc1.weight"])
    saved = {"critic": {"fc1.weight": torch.ones(1)}, "generator": prefixed("module.")}
    assert list(checkpoint.filled(channel, "net.pt", made, saved)) == [
        "The weights are those under 'generator'; the file also holds 'critic'."
    ]


def test_half_precision_weights_are_taken_to_float32_and_told(checkpoint: Any) -> None:
    made = network().half()
    assert list(checkpoint.in_float32(made)) == ["Weights in float16 were taken to float32."]
    assert made.fc1.weight.dtype == torch.float32
    assert list(checkpoint.in_float32(made)) == []


def test_safetensors_are_read_as_well(checkpoint: Any, tmp_path: Path, channel: Any) -> None:
    pytest.importorskip("safetensors.torch").save_file(STATE, tmp_path / "net.safetensors")
    read = checkpoint.read(channel, request(tmp_path / "net.safetensors"))[0]
    torch.testing.assert_close(read["fc1.weight"], STATE["fc1.weight"])


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_weights_of_all_shards_come_together(checkpoint: Any, tmp_path: Path, form: str, channel: Any) -> None:
    save = pytest.importorskip("safetensors.torch").save_file if form == "safetensors" else torch.save
    parts = [str(tmp_path / f"{number}.{form}") for number in range(len(STATE))]
    for part, key in zip(parts, STATE, strict=True):
        save({key: STATE[key]}, part)
    read, trusted = checkpoint.read(channel, {**request(tmp_path / f"0.{form}"), "parts": parts})
    assert set(read) == set(STATE)
    assert not trusted


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4", "pickle 5"])
def test_no_form_of_pickle_runs(checkpoint: Any, tmp_path: Path, form: str, channel: Any) -> None:
    file, proof = tmp_path / "bad.pt", tmp_path / "proof"
    if form.startswith("pickle"):
        file.write_bytes(pickle.dumps({"state_dict": Touch(proof)}, protocol=int(form[-1])))
    else:
        torch.save({**STATE, "more": Touch(proof)}, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match="nothing in it was run") as caught:
        checkpoint.read(channel, request(file))
    assert "system" in caught.value.reason
    assert not proof.exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        (lambda: torch.nn.Linear(6, 3), "torch.nn.modules.linear.Linear"),
        (lambda: {"weights": STATE, "best": np.float64(0.5)}, "numpy"),
        (lambda: [1, 2, 3], "no weights by name, but list"),
        (lambda: {"epoch": 3}, "no weights by name, but dict"),
        (lambda: {**STATE, "fc3.weight": torch.ones(2)}, "'fc3.weight' is not in the network"),
        (lambda: {key: value for key, value in STATE.items() if key != "fc1.bias"}, "'fc1.bias' is missing"),
        (lambda: {**STATE, "fc1.weight": torch.ones(8, 7)}, "'fc1.weight' is (8, 7) in the file and (8, 6) in the network"),
        (lambda: prefixed("a.b.c.d."), "8 more"),
    ],
)
def test_a_checkpoint_that_can_not_be_used_is_refused_in_words(
    checkpoint: Any, tmp_path: Path, make: Callable[[], Any], words: str, channel: Any
) -> None:
    torch.save(make(), tmp_path / "net.pt")
    with pytest.raises(InputError) as caught:
        list(checkpoint.filled(channel, "net.pt", network(), checkpoint.read(channel, request(tmp_path / "net.pt"))[0]))
    assert words in caught.value.reason
    assert caught.value.remedy


@pytest.mark.parametrize("kind", ["empty", "junk", "cut", "scripted", "safetensors"])
def test_a_file_that_is_no_whole_checkpoint_is_refused(checkpoint: Any, tmp_path: Path, kind: str, channel: Any) -> None:
    file = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pt")
    torch.save(STATE, file)
    whole = file.read_bytes()
    if kind == "scripted":
        torch.jit.save(torch.jit.script(torch.nn.Linear(6, 3)), file)
    else:
        file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2]}.get(kind, np.random.default_rng(1).bytes(3000)))
    with pytest.raises(InputError) as caught:
        checkpoint.read(channel, request(file))
    assert file.name in caught.value.reason
    assert str(tmp_path) not in caught.value.reason
    assert "optimize_checkpoint" not in sys.modules
