"""A user's functions run where their folder is seen and none of our packages, lazily, and without a pickle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.process import user_arrays, user_scores, user_transform

Write = Callable[..., Path]

DATA = """
    import numpy as np
    def batches():
        for index in range(5):
            open("made", "a").write(str(index))
            yield {"x": np.full((200, 1000), index, np.float32), "y": [index] * 200}
"""


def test_arrays_come_as_they_are_asked_for(user: Write) -> None:
    folder = user(data=DATA)
    arrays = user_arrays("data.py:batches", folder)
    assert float(next(arrays)["x"].max()) == 0
    assert (folder / "made").read_text() in {"0", "01", "012"}
    rest = list(arrays)
    assert [int(item["y"][0]) for item in rest] == [1, 2, 3, 4]
    assert rest[0]["x"].dtype == np.float32
    assert not (folder / "__pycache__").exists()


def test_a_module_is_named_as_well_as_a_file_and_a_folder_below(user: Write) -> None:
    folder = user({"below/more.py": "import beside\nfrom data import batches\n", "below/beside.py": ""}, data=DATA)
    assert len(list(user_arrays("data:batches", folder))) == 5
    assert len(list(user_arrays("below/more.py:batches", folder))) == 5


def test_a_user_gets_their_own_optimizer_and_kernels_and_never_ours(user: Write) -> None:
    folder = user(
        {"kernels/__init__.py": "", "kernels/fast.py": "NUMBER = 12"},
        data="""
        import importlib.util
        import numpy as np
        import kernels.fast
        import optimizer
        def batches():
            calibration = importlib.util.find_spec("calibration")
            ours = importlib.util.find_spec("kernels.timing")
            yield {"x": np.array([optimizer.NUMBER, kernels.fast.NUMBER, calibration is None, ours is None])}
        """,
        optimizer="NUMBER = 11",
    )
    assert next(user_arrays("data.py:batches", folder))["x"].tolist() == [11, 12, 1, 1]


def test_a_user_who_has_none_finds_none_of_ours(user: Write) -> None:
    folder = user(data="import optimizer\ndef batches(): yield {}\n")
    with pytest.raises(InputError, match="No module named 'optimizer'"):
        next(user_arrays("data.py:batches", folder))


def test_a_users_module_never_shadows_an_installed_one(user: Write) -> None:
    folder = user(
        numpy="raise RuntimeError('shadowed')",
        json="import numpy\ndef batches(): yield {'x': numpy.arange(3)}",
    )
    assert next(user_arrays("json.py:batches", folder))["x"].tolist() == [0, 1, 2]


def test_a_transform_stays_open_and_may_write_into_what_it_gets(user: Write) -> None:
    folder = user(
        prepare="""
        calls = 0
        def double(array):
            global calls
            calls += 1
            array *= 2
            return array + calls
        """
    )
    with user_transform("prepare.py:double", folder) as transform:
        assert [transform(np.ones(2)).tolist() for _ in range(3)] == [[3, 3], [4, 4], [5, 5]]


def test_a_metric_gives_one_number_or_one_a_sample(user: Write) -> None:
    folder = user(
        metric="""
        def each(outputs, labels):
            return outputs["labels"].argmax(1) == labels
        def all(outputs, labels):
            return 0.5 if labels is None else 1
        """
    )
    outputs = {"labels": np.eye(4, dtype=np.float32)}
    with user_scores("metric.py:each", folder) as scored:
        each = scored(outputs, np.array([0, 1, 2, 0]))
    assert isinstance(each, np.ndarray)
    assert each.tolist() == [True, True, True, False]
    with user_scores("metric.py:all", folder) as scored:
        assert [scored(outputs, None) for _ in range(2)] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("data.py:nothing", "it defines batches"),
        ("nowhere.py:batches", "can't be found"),
        ("nowhere:batches", "can't be found"),
        ("data:batches:", "names no data function"),
        ("data.py", "names no data function"),
        ("broken.py:batches", r"SyntaxError"),
        ("missing:batches", "No module named 'no_such_package'"),
        ("raises.py:batches", r"ValueError: nothing here \(raises.py, line 3\)"),
        ("leaves.py:batches", "SystemExit: 0"),
        ("objects.py:batches", "must yield a dict of arrays of numbers"),
        ("pickles.py:batches", "must yield a dict of arrays of numbers"),
        ("dies.py:batches", "exit code 9"),
        ("dies.py:batches", "goodbye"),
    ],
)
def test_a_wrong_function_is_refused_in_words(user: Write, reference: str, words: str) -> None:
    folder = user(
        data=DATA,
        broken="def batches(:",
        missing="import no_such_package",
        raises="def batches():\n    yield {}\n    raise ValueError('nothing here')\n",
        leaves="import sys\ndef batches(): sys.exit(0)\n",
        objects="def batches(): yield [1, 2]\n",
        pickles="import numpy as np\ndef batches(): yield {'x': np.array([{}])}\n",
        dies="import os\ndef batches():\n    print('goodbye', flush=True)\n    os._exit(9)\n    yield\n",
    )
    with pytest.raises(InputError, match=words) as caught:
        list(user_arrays(reference, folder))
    assert caught.value.remedy
    assert "optimize_worker" not in sys.modules
