"""Which parts of a model can take an adapter: layers and experts of the text decoder, and the output head."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from merlina.domain.targets import Site, SiteKind

# Parts of a path that tell the kind of a layer, the first that fits.
_KINDS: tuple[tuple[SiteKind, tuple[str, ...]], ...] = (
    ("shared experts", ("shared_expert", "shared_mlp")),
    ("routed experts", ("experts",)),
    ("attention", ("attn", "attention")),
    ("feed-forward", ("mlp", "feed_forward", "ffn", "fc1", "fc2", "gate_proj", "up_proj", "down_proj", "dense_")),
)


def sites(model: Any) -> list[Site]:
    """Return every part that can take an adapter, in the model's order.

    Of a multimodal model only the text decoder and the output head: a preference pair is text, so that adapters on
    its vision and audio towers would never receive a gradient.
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
    """Return the name of the text decoder; empty where it is the whole model."""
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return ""
    return next((name for name, module in model.named_modules() if module is decoder), "")


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights, of quantized layers as many as they have when they are unpacked."""
    packed = sum(
        module.in_features * module.out_features - module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    )
    return packed + sum(weight.numel() for weight in model.parameters())


def _sites_of(name: str, module: nn.Module, *, is_head: bool, is_tied: bool) -> Iterator[Site]:
    if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
        inputs, outputs = _shape(module)
        yield Site(
            path=name,
            kind="output head" if is_head else "embeddings" if isinstance(module, nn.Embedding) else _kind(name),
            # A tied head's weights are the embedding's, which counts them.
            parameters=0 if is_head and is_tied else inputs * outputs,
            adapter_width=inputs + outputs,
        )
        return
    if isinstance(module, _ConvNd):
        return
    for own, weight in module.named_parameters(recurse=False):
        if weight.ndim == 3 and weight.shape[0] > 1:
            kind: SiteKind = "shared experts" if _kind(name) == "shared experts" else "routed experts"
            yield Site(
                path=f"{name}.{own}",
                kind=kind,
                is_parameter=True,
                parameters=weight.numel(),
                adapter_width=int(weight.shape[0] * (weight.shape[1] + weight.shape[2])),
            )


def _shape(module: Any) -> tuple[int, int]:
    """Inputs and outputs; the weight of a quantized layer has another shape."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = module.weight.shape
    return int(rows), int(columns)


def _kind(path: str) -> SiteKind:
    return next((kind for kind, parts in _KINDS if any(part in path for part in parts)), "other layers")


def module_names(model: nn.Module, targets: Sequence[str], chosen: Sequence[Site]) -> list[str]:
    """Return names by which peft finds the chosen layers and no others: as short as they were given, or in full."""
    wanted = [site.path for site in chosen if not site.is_parameter]
    leaves = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in wanted))
    return _names([name for name, _ in model.named_modules()], wanted, list(targets), leaves)


def parameter_names(model: nn.Module, chosen: Sequence[Site]) -> list[str]:
    """The same for parameters."""
    wanted = [site.path for site in chosen if site.is_parameter]
    short = list(dict.fromkeys(".".join(path.split(".")[-2:]) for path in wanted))
    return _names([name for name, _ in model.named_parameters()], wanted, short)


def _names(there: Sequence[str], wanted: Sequence[str], *shorter: Sequence[str]) -> list[str]:
    for names in shorter:
        used = [name for name in names if any(_ends(path, name) for path in wanted)]
        if {path for path in there if any(_ends(path, name) for name in used)} == set(wanted):
            return used
    return list(wanted)


def _ends(path: str, name: str) -> bool:
    return f".{path}".endswith(f".{name}")


def unsupported_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return those layer names that peft would take for the routed experts of an older form of the architecture.

    Some families had a layer for each expert up to transformers 4 (peft.utils.transformers_weight_conversion). peft
    reads `gate_proj` as theirs, so that other layers of this name can't have an adapter that could be loaded again.
    """
    # Without all three names of a feed-forward it raises a ValueError, instead of converting them.
    asked = LoraConfig(target_modules=[*names, *(f"merlina.{name}" for name in ("gate_proj", "up_proj", "w1", "w3"))])
    convert_peft_config_for_transformers(asked, model=model, conversions=None)
    kept = copy.copy(asked.target_modules) or ()
    return [name for name in names if name not in kept]
