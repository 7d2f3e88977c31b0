"""Part of torch_export.py and torch_run.py: a Hugging Face folder, read with the classes of transformers alone.

No code of the folder's is run, nothing is fetched, and weights come from safetensors or torch's `weights_only` loader.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optimize_checkpoint
import optimize_inputs
import torch
from torch import nn

if TYPE_CHECKING:
    from optimizer.child import Channel

WHOLE_FOLDER = "Get the whole folder, as model.save_pretrained and tokenizer.save_pretrained wrote it."
USUAL_LENGTH, LONGEST, MOST = 16, 512, 8
"""Tokens tried usually and at most (where the model does not say), and the largest batch tried."""

USUAL_SAMPLES = 16000
"""One second of speech."""


@dataclass
class Folder:
    network: nn.Module
    inputs: optimize_inputs.Inputs
    notes: list[str]
    versions: Mapping[str, str]


def read(channel: Channel, request: Mapping[str, Any]) -> Folder:
    """The network that config.json names, with the folder's weights, and the inputs that go by its kind and tokenizer."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    import transformers  # after that: it reads them once

    transformers.utils.logging.set_verbosity_error()
    folder = Path(request["file"])
    kept = config_file(channel, folder)
    with channel.theirs(f"Reading the config.json of {folder.name}", "Use a release of transformers that knows the model."):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, attn_implementation="eager")
    kind = architecture(channel, folder, transformers, kept)
    config.use_cache, config.return_dict = False, True
    network, notes = filled(channel, request, kind, config)
    if "auto_map" in kept:
        notes.append(f"The folder brings code of its own, which was not run: {kind.__name__} is the one of transformers.")
    notes.extend(optimize_checkpoint.in_float32(network))
    names = wanted_inputs(channel, folder, transformers, network)
    shapes, labels = shapes_of(channel, network, names, dict(known_sizes(folder, config)), request["shapes"])
    limits = dict.fromkeys(("input_ids", "decoder_input_ids"), vocabulary(config))
    with channel.theirs("The network", "Pass --shapes for its inputs."), torch.no_grad():
        dtypes = {name: torch.int64 if optimize_inputs.whole_numbers(name) else torch.float32 for name in shapes}
        inputs = optimize_inputs.Inputs(network, shapes, labels, dtypes, limits)
        network(**inputs.example({}))
    return Folder(network, inputs, [*notes, f"The network is {kind.__name__}."], {"transformers": transformers.__version__})


def config_file(channel: Channel, folder: Path) -> Mapping[str, Any]:
    try:
        kept = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        channel.refuse(f"The config.json of {folder.name} can't be read: {type(error).__name__}.", WHOLE_FOLDER)
    if not isinstance(kept, dict):
        channel.refuse(f"The config.json of {folder.name} holds no settings.", WHOLE_FOLDER)
    if "quantization_config" in kept:
        channel.refuse(f"The weights in {folder.name} are quantized already.", "Give the folder of the model before it was quantized.")
    return kept


def architecture(channel: Channel, folder: Path, transformers: Any, kept: Mapping[str, Any]) -> Any:
    """The class that config.json names, of transformers' own; a folder that names none holds the bare model."""
    names = kept.get("architectures") or ["AutoModel"]
    kind = getattr(transformers, str(names[0]), None)
    if names != ["AutoModel"] and not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        own = " It needs code that lies in the folder, which is never run." if "auto_map" in kept else ""
        channel.refuse(
            f"transformers {transformers.__version__} has no model {str(names[0])[:80]!r}, which {folder.name}/config.json names.{own}",
            "Give its weights and a --factory that makes the network, or use another release of transformers (--source-python).",
        )
    return kind


def filled(channel: Channel, request: Mapping[str, Any], kind: Any, config: Any) -> tuple[nn.Module, list[str]]:
    """The network with the folder's weights, all of them: what a folder lacks would be made up at random."""
    name = request["name"]
    how: dict[str, Any] = {"pretrained_model_name_or_path": request["file"], "use_safetensors": True, "local_files_only": True}
    if not request["parts"][0].endswith(".safetensors"):
        state, _ = optimize_checkpoint.read(channel, {**request, "kind": "checkpoint", "trust": False})
        how = {"pretrained_model_name_or_path": None, "state_dict": state}
    with channel.theirs(f"Loading the weights of {name}", WHOLE_FOLDER):
        # What does not fit is made up, too, and told below by name.
        network, told = kind.from_pretrained(**how, config=config, output_loading_info=True, ignore_mismatched_sizes=True)
    lacking = sorted({*map(str, told["missing_keys"]), *(str(key[0]) for key in told["mismatched_keys"])})
    if lacking:
        more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        channel.refuse(
            f"The weights in {name} lack, or have in other sizes, {', '.join(lacking[:4])}{more}, which {type(network).__name__} needs.",
            "Give the folder of the trained model, with the config.json that belongs to it.",
        )
    unused = sorted(map(str, told["unexpected_keys"]))
    notes = [f"{len(unused)} weights of the file are none of the network's ({', '.join(unused[:3])})."] if unused else []
    return network.cpu().eval().requires_grad_(False), notes


def wanted_inputs(channel: Channel, folder: Path, transformers: Any, network: Any) -> list[str]:
    """The inputs that the network is made for, with those that its tokenizer gives."""
    taken = optimize_inputs.arguments(network)
    names = [network.main_input_name]
    if names == ["input_ids"]:
        with channel.theirs(f"Reading the tokenizer of {folder.name}", WHOLE_FOLDER):
            given = tokenizer_inputs(folder, transformers, network.config)
        names.extend(name for name in given if name in taken and name not in names)
    if network.config.is_encoder_decoder and "decoder_input_ids" in taken:
        names.append("decoder_input_ids")
    return names


def vocabulary(config: Any) -> int:
    """How many different tokens there are; a model of several parts has it in its text part."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", 2)


def tokenizer_inputs(folder: Path, transformers: Any, config: Any) -> list[str]:
    """What the folder's tokenizer gives; where there is none, what models of that kind take."""
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return list(tokenizer.model_input_names)
    return ["attention_mask", *(["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else [])]


def known_sizes(folder: Path, config: Any) -> Iterator[tuple[str, list[Any]]]:
    """The dimensions of the inputs of each kind of model: a fixed size, or a free one as (label, smallest, usual, largest)."""
    batch = ("batch", 1, 1, MOST)
    longest = min(LONGEST, getattr(config, "max_position_embeddings", None) or LONGEST)
    tokens = ("sequence", 1, min(USUAL_LENGTH, longest), longest)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        yield name, [batch, tokens]
    yield "decoder_input_ids", [batch, ("decoder_sequence", *tokens[1:])]
    if height_width := image_size(folder, config):
        yield "pixel_values", [batch, getattr(config, "num_channels", 3), *height_width]
    yield "input_values", [batch, ("samples", USUAL_SAMPLES // 10, USUAL_SAMPLES, 10 * USUAL_SAMPLES)]
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        yield "input_features", [batch, config.num_mel_bins, 2 * config.max_source_positions]


def image_size(folder: Path, config: Any) -> list[int] | None:
    """Height and width as config.json or preprocessor_config.json has them."""
    size = getattr(config, "image_size", None)
    file = folder / "preprocessor_config.json"
    if size is None and file.is_file():
        kept = json.loads(file.read_bytes())
        size = kept.get("crop_size") or kept.get("size")
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    return [size, size] if isinstance(size, int) else list(size) if size else None


def shapes_of(
    channel: Channel, network: nn.Module, names: list[str], sizes: Mapping[str, list[Any]], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[tuple[str, int], str]]:
    """Shapes as [smallest, usual, largest] and labels of free dimensions: those `given` by the user, and the others to fit them."""
    taken = optimize_inputs.arguments(network)
    names = [*names, *(name for name in given if name not in names)]
    for name in names:
        if name not in taken:
            channel.refuse(f"The network's forward has no argument {name!r}; it takes {', '.join(names)}.", "Correct --shapes.")
        if name not in sizes and name not in given:
            channel.refuse(f"The shape of the network's input {name!r} is not known.", optimize_inputs.SHAPES.format(name))
        if name in sizes and name in given and len(given[name][0]) != len(sizes[name]):
            channel.refuse(f"The input {name!r} has {len(sizes[name])} dimensions.", optimize_inputs.SHAPES.format(name))
    labels = {(name, axis): size[0] for name in names for axis, size in enumerate(sizes.get(name, ())) if isinstance(size, tuple)}
    fixed = {label: [shape[axis] for shape in given[name]] for (name, axis), label in labels.items() if name in given}
    return {name: given.get(name) or three_shapes(sizes[name], fixed) for name in names}, labels


def three_shapes(sizes: list[Any], fixed: Mapping[str, list[int]]) -> list[list[int]]:
    """The smallest, usual and largest shape, where the labels in `fixed` have sizes already."""
    three = [fixed.get(size[0], size[1:]) if isinstance(size, tuple) else [size] * 3 for size in sizes]
    return [[size[place] for size in three] for place in range(3)]
