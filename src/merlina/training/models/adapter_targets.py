"""The parts of a model that can have an adapter: layers and experts of the text decoder, and the output head."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from merlina.domain.adapter_targets import Site, SiteKind

# Substrings of a module's path by which the kind of a layer is recognized, in order of precedence.
_KINDS: tuple[tuple[SiteKind, tuple[str, ...]], ...] = (
    ("shared experts", ("shared_expert", "shared_mlp")),
    ("routed experts", ("experts",)),
    ("attention", ("attn", "attention")),
    ("feed-forward", ("mlp", "feed_forward", "ffn", "fc1", "fc2", "gate_proj", "up_proj", "down_proj", "dense_")),
)


def sites(model: Any) -> list[Site]:
    """Return every part that can have an adapter, in the model's order.

    A multimodal model offers only its text decoder and output head: preference pairs are text, so adapters on vision
    and audio towers would never receive a gradient.
    """
    prefix, head, embedding = _text_decoder(model), model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and embedding is not None and head.weight is embedding.weight
    return [
        site
        for name, module in model.named_modules()
        if module is head or not prefix or name == prefix or name.startswith(f"{prefix}.")
        for site in _sites_of(name, module, is_head=module is head, is_tied=is_tied)
    ]


def _text_decoder(model: Any) -> str:
    """Return the name of the text decoder; empty if it is the whole model."""
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return ""
    return next((name for name, module in model.named_modules() if module is decoder), "")


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights. Quantized layers count with all weights that they represent."""
    # Two 4-bit weights share one element, so the others are not counted as parameters.
    hidden = sum(
        module.in_features * module.out_features - module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    )
    return hidden + sum(weight.numel() for weight in model.parameters())


def _sites_of(name: str, module: nn.Module, *, is_head: bool, is_tied: bool) -> Iterator[Site]:
    if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
        inputs, outputs = _shape(module)
        yield Site(
            path=name,
            kind="output head" if is_head else "embeddings" if isinstance(module, nn.Embedding) else _kind(name),
            # The weights of a tied head are counted with the embedding.
            parameters=0 if is_head and is_tied else inputs * outputs,
            adapter_width=inputs + outputs,
            outputs=outputs,
        )
        return
    if isinstance(module, _ConvNd):
        return
    for parameter, weight in module.named_parameters(recurse=False):
        if weight.ndim == 3 and weight.shape[0] > 1:
            kind: SiteKind = "shared experts" if _kind(name) == "shared experts" else "routed experts"
            yield Site(
                path=f"{name}.{parameter}",
                kind=kind,
                is_parameter=True,
                parameters=weight.numel(),
                adapter_width=int(weight.shape[0] * (weight.shape[1] + weight.shape[2])),
            )


def _shape(module: Any) -> tuple[int, int]:
    """Return inputs and outputs of a layer. The weight of a quantized layer has another shape."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = module.weight.shape
    return int(rows), int(columns)


def _kind(path: str) -> SiteKind:
    return next((kind for kind, parts in _KINDS if any(part in path for part in parts)), "other layers")


def module_names(model: nn.Module, targets: Sequence[str], chosen: Sequence[Site]) -> list[str]:
    """Return names by which peft finds exactly the chosen layers: as given, else the last component, else in full."""
    wanted = [site.path for site in chosen if not site.is_parameter]
    leaves = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in wanted))
    return _names([name for name, _ in model.named_modules()], wanted, list(targets), leaves)


def parameter_names(model: nn.Module, chosen: Sequence[Site]) -> list[str]:
    """Return names by which peft finds exactly the chosen parameters."""
    wanted = [site.path for site in chosen if site.is_parameter]
    short = list(dict.fromkeys(".".join(path.split(".")[-2:]) for path in wanted))
    return _names([name for name, _ in model.named_parameters()], wanted, short)


def _names(all_names: Sequence[str], wanted: Sequence[str], *shorter: Sequence[str]) -> list[str]:
    for names in shorter:
        used = [name for name in names if any(is_named(path, name) for path in wanted)]
        if {path for path in all_names if any(is_named(path, name) for name in used)} == set(wanted):
            return used
    return list(wanted)


def is_named(path: str, name: str) -> bool:
    """Return whether `name` is the end of a module's path, as peft matches names: `q_proj` or `mlp.up_proj`."""
    return f".{path}".endswith(f".{name}")


def unsupported_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return layer names that peft would interpret as the routed experts of an earlier form of the architecture.

    Up to transformers 4, some families had one layer for each expert (peft.utils.transformers_weight_conversion). peft
    converts the name `gate_proj` to theirs, so an adapter on other layers of this name could not be loaded again.
    """
    # peft raises a ValueError unless all names of a feed-forward are present, so dummy names complete them.
    asked = LoraConfig(target_modules=[*names, *(f"merlina.{name}" for name in ("gate_proj", "up_proj", "w1", "w3"))])
    convert_peft_config_for_transformers(asked, model=model, conversions=None)
    kept = copy.copy(asked.target_modules) or ()
    return [name for name in names if name not in kept]
