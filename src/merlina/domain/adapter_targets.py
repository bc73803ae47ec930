"""The parts of a model that can take an adapter, and how `target_modules` selects them.

The run and the checks before it use the same rules: the run on each part, the checks on groups of similar parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SiteKind = Literal[
    "attention", "feed-forward", "shared experts", "routed experts", "output head", "embeddings", "other layers"
]
ALL_LINEAR, EXPERTS = "all-linear", "experts"
_NOT_LINEAR: tuple[SiteKind, ...] = ("output head", "embeddings")
LINEAR_LAYERS_ONLY = (
    "is for linear layers; set it to false, or leave experts, embeddings and output head out of target_modules"
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class Site(BaseModel):
    """A layer, a parameter with the weights of several experts, or a group of `count` similar ones."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="full name in the model; in a group, * stands for the number of a layer")
    kind: SiteKind
    is_parameter: bool = Field(default=False, description="whether it is a parameter rather than a layer")
    count: int = 1
    parameters: int = Field(description="number of weights of all `count` sites")
    adapter_width: int = Field(description="number of adapter weights per rank: inputs plus outputs, times experts")
    outputs: int = Field(default=0, description="number of outputs of all `count` sites; 0 for parameters")

    def adapter_weights(self, rank: int, *, has_magnitudes: bool) -> int:
        """Return the number of trained weights of the adapters; with DoRA there is a magnitude for each output."""
        return rank * self.adapter_width + has_magnitudes * self.outputs

    @property
    def whole_parameters(self) -> int:
        """The number of weights if the site is trained as a whole; those of a tied head are counted elsewhere."""
        return self.parameters or (self.adapter_width - self.outputs) * self.outputs

    @property
    def is_linear_layer(self) -> bool:
        """Whether the site is a linear layer other than the output head."""
        return not self.is_parameter and self.kind not in _NOT_LINEAR

    def is_named(self, target: str) -> bool:
        """Return whether an entry of `target_modules` selects the site. A group is selected by any of its layers.

        Parameters of routed experts are selected only by `experts`, by a path of two or more parts, or by `all-linear`,
        so that a name they share with a layer does not add adapters to all experts.
        """
        if target == ALL_LINEAR:
            return self.kind not in _NOT_LINEAR
        if self.is_parameter and "." not in target:
            return target == EXPERTS
        named = [self.path, self.path.rpartition(".")[0]] if self.is_parameter else [self.path]
        wanted = _NUMBER.sub("*", f".{target}") if "*" in self.path else f".{target}"
        return any(f".{path}".endswith(wanted) for path in named)


class AdapterKind(BaseModel):
    """The totals of all sites of one kind and of their adapters."""

    model_config = ConfigDict(frozen=True)

    kind: SiteKind
    adapted: int = Field(description="layers, or parameters of routed experts, that get an adapter")
    total: int = Field(description="number of sites of this kind")
    share: float = Field(description="fraction of the model's parameters in sites with an adapter")
    share_without: float = Field(description="fraction of the model's parameters in sites of this kind without one")
    trained: int = Field(description="number of adapter weights")


def group(sites: Iterable[Site]) -> list[Site]:
    """Group sites by path, ignoring the numbers of layers."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(_NUMBER.sub("*", site.path), []).append(site)
    return [
        found[0].model_copy(
            update={
                "path": path,
                "count": len(found),
                "parameters": sum(site.parameters for site in found),
                "adapter_width": sum(site.adapter_width for site in found),
                "outputs": sum(site.outputs for site in found),
            }
        )
        for path, found in groups.items()
    ]


def match(sites: Iterable[Site], targets: Sequence[str]) -> tuple[list[Site], list[str]]:
    """Return the selected sites, and the targets that select none."""
    found, used = [], set()
    for site in sites:
        names = [target for target in targets if site.is_named(target)]
        used.update(names)
        if names:
            found.append(_selected_part_of(site, names))
    return found, [target for target in targets if target not in used]


def match_whole_layers(
    sites: Sequence[Site], names: Sequence[str], targets: Sequence[str], *, is_quantized: bool
) -> tuple[list[Site], str | None]:
    """Return the sites that `modules_to_save` selects, and what forbids to train them as a whole, or None."""
    layers = [site for site in sites if not site.is_parameter]
    chosen, missing = match(layers, names)
    if missing:
        return chosen, describe_missing(missing, layers, all_missing=True)
    adapted, _ = match(layers, targets)
    if twice := sorted({_leaf(site) for site in chosen} & {_leaf(site) for site in adapted}):
        return chosen, f"{', '.join(twice)} would also get an adapter; remove it from target_modules or here"
    quantized = sorted({_leaf(site) for site in chosen if site.is_linear_layer}) if is_quantized else []
    if quantized:
        return chosen, f"{', '.join(quantized)} cannot be trained as a whole in 4 or 8 bits; use the full precision"
    return chosen, None


def _leaf(site: Site) -> str:
    return site.path.rsplit(".", 1)[-1]


def _selected_part_of(site: Site, names: Sequence[str]) -> Site:
    """Return the selected part of a group: one site for each target that has the number of a layer."""
    if "*" not in site.path or any(not _NUMBER.search(f".{name}") for name in names):
        return site
    part = min(1.0, len(names) / site.count)
    return site.model_copy(
        update={
            "count": max(1, round(site.count * part)),
            "parameters": round(site.parameters * part),
            "adapter_width": round(site.adapter_width * part),
            "outputs": round(site.outputs * part),
        }
    )


def by_kind(
    sites: Sequence[Site], adapted: Sequence[Site], rank: int, model_parameters: int, *, has_magnitudes: bool = False
) -> list[AdapterKind]:
    """Return how much of each kind gets an adapter, the kind with the most trained weights first."""
    kinds = []
    for kind in dict.fromkeys(site.kind for site in sites):
        all_of_kind, adapted_of_kind = [[site for site in some if site.kind == kind] for some in (sites, adapted)]
        with_adapter = sum(site.parameters for site in adapted_of_kind)
        kinds.append(
            AdapterKind(
                kind=kind,
                adapted=sum(site.count for site in adapted_of_kind),
                total=sum(site.count for site in all_of_kind),
                share=with_adapter / model_parameters,
                share_without=(sum(site.parameters for site in all_of_kind) - with_adapter) / model_parameters,
                trained=sum(site.adapter_weights(rank, has_magnitudes=has_magnitudes) for site in adapted_of_kind),
            )
        )
    return sorted(kinds, key=lambda kind: -kind.trained)


def describe(kinds: Sequence[AdapterKind]) -> str:
    """Describe in one sentence which parts get an adapter and which do not."""
    adapted = [
        f"{kind.kind} ({kind.adapted:,} of {kind.total:,}, {kind.trained:,} weights)" for kind in kinds if kind.trained
    ]
    others = [
        f"{kind.kind} ({kind.total - kind.adapted:,} of {kind.total:,}, {kind.share_without:.1%} of the model)"
        for kind in kinds
        if kind.adapted < kind.total
    ]
    without = f"; none on {', '.join(others)}" if others else ""
    fraction = sum(kind.share for kind in kinds)
    return f"Adapters on {', '.join(adapted)}, which are {fraction:.1%} of the model's parameters{without}"


def warn_about_experts(kinds: Sequence[AdapterKind]) -> str | None:
    """Return a warning if a mixture-of-experts model is trained without its routed experts."""
    left_out = [kind for kind in kinds if kind.kind == "routed experts" and kind.adapted == 0]
    if not left_out:
        return None
    return (
        f"the routed experts, {left_out[0].share_without:.1%} of the model's parameters, get no "
        f"adapter; add {EXPERTS!r} to train them as well"
    )


def describe_missing(missing: Sequence[str], sites: Iterable[Site], *, all_missing: bool) -> str:
    """Describe the targets that select nothing in the model."""
    named = f"the model has no layers named {', '.join(missing)}"
    if not all_missing:
        return f"{named}; the others are trained"
    names = {EXPERTS if site.is_parameter else site.path.rsplit(".", 1)[-1] for site in sites}
    return f"{named}; it has {', '.join(sorted(names))}"
