"""What a PyTorch file is shows in its content; what would run code, swell, or reach out of its folder is refused before it is loaded."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.importers import pytorch as importer
from optimizer.importers._torch_file import examined
from optimizer.model import Model

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Load = Callable[..., Model]
STATE = {"weight": torch.ones(3, 6), "bias": torch.zeros(3)}


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def archive(file: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as made:
        for name, data in entries.items():
            made.writestr(name, data)


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child may be started."""

    def child(*_: Any, **__: Any) -> None:
        raise AssertionError("the file was handed to a worker")

    monkeypatch.setattr(importer, "Child", child)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ts", ".torchscript", ".bin", ".pt2"])
def test_what_can_run_code_is_told_by_its_content_whatever_it_is_called(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"code{ending}"
    torch.save(STATE, file)
    assert examined(file).kind == "checkpoint"
    torch.save(STATE, file, _use_new_zipfile_serialization=False)
    assert examined(file).kind == "checkpoint"
    torch.jit.save(torch.jit.script(torch.nn.Linear(6, 3)), file)
    assert examined(file).kind == "torchscript"
    archive(file, {"net/data.pkl": b"", "net/constants.pkl": b""})
    assert examined(file).kind == "torchscript"
    archive(file, {"net/data.pkl": b"", "net/archive_format": b"pt2"})
    assert examined(file).kind == "exported"
    archive(file, {"serialized_exported_program.json": b"{}", "version": b"8.9"})
    assert examined(file).kind == "exported"


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("form", ["torchscript", "exported"])
def test_a_program_is_handed_to_nobody_without_trust(load: Load, folder: Path, tmp_path: Path, form: str) -> None:
    proof = tmp_path / "proof"
    evil = pickle.dumps(Touch(proof))
    inside = {"torchscript": "net/constants.pkl", "exported": "net/archive_format"}[form]
    archive(folder / "net.pt", {"net/data.pkl": evil, inside: evil, "net/data/sample_inputs/model.pt": evil})
    with pytest.raises(InputError, match="can run any code that is in it; nothing was loaded") as caught:
        load("net.pt", {"input": "1x6"})
    assert "--trust" in caught.value.remedy
    assert "state_dict" in caught.value.remedy
    assert not proof.exists()


@pytest.mark.usefixtures("unopened")
def test_what_is_no_file_of_torchs_or_an_attack_is_handed_to_nobody(load: Load, folder: Path) -> None:
    torch.save(STATE, folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    with zipfile.ZipFile(folder / "bomb.pt", "w") as bomb:
        bomb.writestr("bomb/data.pkl", b"")
        bomb.filelist[0].file_size = 1 << 40
    archive(folder / "plain.pt", {"readme.txt": b"hello"})
    tar = bytes(257) + b"ustar" + bytes(3)
    files = {"empty.pt": b"", "empty.safetensors": b"", "cut.pt": whole[: len(whole) // 2], "junk.pt": b"junk", "old.pt": tar}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    words = {"bomb.pt": "unpacks to 1099.5 GB", "plain.pt": "none of PyTorch's", "empty.pt": "is empty", "old.pt": "neither an archive"}
    for name in (*files, "bomb.pt", "plain.pt"):
        with pytest.raises(InputError) as caught:
            load(name, {"input": "1x6"}, factory="net.py:make", trust=True)
        assert words.get(name, "") in caught.value.reason
        assert name in caught.value.reason


def nested(depth: int) -> bytes:
    """A pickle of lists in lists."""
    return b"\x80\x02" + b"](" * depth + b"e" * depth + b"."


@pytest.mark.parametrize("name", ["deep.pt", "deep.index.json"])
def test_ten_thousand_deep_nesting_is_refused_in_words(load: Load, folder: Path, name: str) -> None:
    data = nested(10_000) if name == "deep.pt" else b'{"weight_map": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    (folder / name.replace("deep.index", "deep.safetensors.index")).write_bytes(data)
    with pytest.raises(InputError) as caught:
        load(name.replace("deep.index", "deep.safetensors.index"), {"input": "1x6"}, factory="net.py:make")
    assert "RecursionError" not in caught.value.reason


def index(folder: Path, names: dict[str, str], file: str = "model.safetensors.index.json") -> Path:
    (folder / file).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / file


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_index_stands_for_all_its_shards(folder: Path, form: str) -> None:
    save = save_file if form == "safetensors" else torch.save
    names = [f"net-{n}-of-2.{form}" for n in (1, 2)]
    for name, key in zip(names, STATE, strict=True):
        save({key: STATE[key]}, folder / name)
    file = index(folder, dict(zip(STATE, names, strict=True)), f"net.{form}.index.json")
    found = examined(file)
    assert (found.kind, [part.name for part in found.parts]) == ("safetensors" if form == "safetensors" else "checkpoint", names)
    before = found.sha256
    save({"bias": torch.ones(3)}, folder / names[1])
    assert examined(file).sha256 != before


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("bad", ["../out.safetensors", "/etc/hosts", "sub/x.safetensors", "..", "", "gone.safetensors", "link.safetensors"])
def test_an_index_names_files_beside_it_only(load: Load, folder: Path, tmp_path: Path, bad: str) -> None:
    save_file(STATE, tmp_path / "out.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    save_file({"weight": STATE["weight"]}, folder / "a.safetensors")
    index(folder, {"weight": "a.safetensors", "bias": bad})
    with pytest.raises(InputError) as caught:
        load("model.safetensors.index.json", {"input": "1x6"}, factory="net.py:make")
    assert {"gone.safetensors": "not beside it", "link.safetensors": "leads out"}.get(bad, "outside its own folder") in caught.value.reason


def test_links_into_the_cache_of_hugging_face_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(STATE, blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    (snapshot / "config.json").write_text("{}")
    assert examined(snapshot).parts == (snapshot / "model.safetensors",)


def test_a_shard_that_is_a_program_is_refused(folder: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(6, 3)), folder / "a.bin")
    with pytest.raises(InputError, match="no shard of weights"):
        examined(index(folder, {"weight": "a.bin"}, "pytorch_model.bin.index.json"))


def test_safetensors_that_lie_about_their_sizes_are_refused(load: Load, code: Callable[..., None], folder: Path) -> None:
    code(net="import torch\nmake = lambda: torch.nn.Linear(6, 3)\n")
    save_file(STATE, folder / "net.safetensors")
    whole = bytearray((folder / "net.safetensors").read_bytes())
    whole[:8] = (1 << 62).to_bytes(8, "little")
    (folder / "net.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match="can't be read as a checkpoint"):
        load("net.safetensors", {"input": "1x6"}, factory="net.py:make")


def test_junk_of_every_length_is_refused_and_never_raises_anything_else(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "whole.pt")
    whole, rng = (tmp_path / "whole.pt").read_bytes(), np.random.default_rng(0)
    for number in range(200):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            data[place] = rng.integers(256)
        (tmp_path / f"{number}.pt").write_bytes(data)
        with suppress(InputError):
            assert examined(tmp_path / f"{number}.pt").kind in {"checkpoint", "torchscript", "exported"}
