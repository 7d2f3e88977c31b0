"""What doctor tells of extras."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from optimizer.verbs import doctor as verb

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_its_extras_are_those_of_the_project() -> None:
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[<>=!~;\[ ]", word)[0] for word in words} for extra, words in declared.items() if extra != "dev"}
    assert names == {extra: set(packages) for extra, packages in verb.EXTRAS.items()}


def test_an_extra_that_is_not_installed_is_named_though_another_backend_serves_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {name: "1" for name in verb.PACKAGES if name != "openvino"}
    monkeypatch.setattr(verb, "versions", lambda *_: here)
    assert verb.doctor().extras == {"openvino": ("openvino",)}
