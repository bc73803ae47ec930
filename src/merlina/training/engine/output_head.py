"""Log-probabilities of target tokens from hidden states, without a tensor of targets x vocabulary.

Legend: M targets, m targets of a chunk, H hidden size, V vocabulary size, h a hidden state [H], W the head's weight
[V, H], y the target's token id.

    logits  z = factor * h W^T                          [V]
    result  log p = z[y] - log sum_v exp(z[v])          a scalar
    d log p / dh = factor * (W[y] - softmax(z) W)       [H]

Targets are processed in chunks. If the head is frozen, the forward pass computes d log p / dh while a chunk's logits
exist, and the backward pass only multiplies it by the incoming gradient: [M, H] is stored instead of [M, V]. If the
head is trained, the backward pass computes each chunk's logits again.

Size of what this avoids: 4,096 targets of a model with 128,000 tokens make 4,096 x 128,000 x 4 bytes = 2 GiB of logits,
and autograd would keep their softmax as well; a chunk takes 64 MiB in 16 bits, or 256 MiB with GPU kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from merlina.training.engine.kernel_choice import kernels_for

# The size of a chunk of logits in 16 bits: large enough for matrix products to run at the full rate. On a GPU with
# kernels, a chunk has no float32 copy, so it can be larger.
_CHUNK_BYTES, _KERNEL_CHUNK_BYTES = 64 * 2**20, 256 * 2**20
# On a CPU the softmax processes few rows at a time, so that their float32 copy stays in the cache.
_CACHE_BYTES = 3 * 2**20
_SMALLEST_CHUNK = 16


class OutputHead:
    """The output head of a causal language model, which turns hidden states into log-probabilities of tokens."""

    def __init__(self, causal_lm: Any) -> None:
        self._head: nn.Module = causal_lm.get_output_embeddings()
        self._factor, self._cap = _adjustments(causal_lm.config.get_text_config())
        vocabulary = self._head.weight.shape[0] if not hasattr(self._head, "out_features") else self._head.out_features
        self._vocabulary = int(vocabulary)

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each target, shape [M], float32, from hidden[M, H] and targets[M]."""
        head = self._active_head()
        if type(head) is nn.Linear and head.bias is None and self._cap is None:
            weight = head.weight
            # A custom function is not autocast, so the cast that autocast would make is made here.
            dtype = torch.get_autocast_dtype(hidden.device.type) if _autocasts(hidden) else weight.dtype
            chunk = self._chunk(_CHUNK_BYTES if kernels_for(hidden) is None else _KERNEL_CHUNK_BYTES)
            result: Tensor = _TargetLogprobs.apply(hidden.to(dtype), weight, targets, self._factor, chunk)
            return result
        # Any other head (a bias, an adapter, quantized weights, capped logits) runs as it is, with recomputed chunks.
        chunk = self._chunk(_CHUNK_BYTES)
        chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        return torch.cat([checkpoint(self._one_chunk, *chunk, use_reentrant=False) for chunk in chunks])

    def _active_head(self) -> Any:
        """Return the head to compute with.

        If the head is trained as a whole beside adapters, this is the trained copy, or the original while adapters are
        disabled.
        """
        # Not imported with this module, which spare processes import: peft opens every GPU.
        from peft.utils.other import ModulesToSaveWrapper

        head = self._head
        if not isinstance(head, ModulesToSaveWrapper):
            return head
        return head.original_module if head.disable_adapters else head.modules_to_save["default"]

    def _chunk(self, size: int) -> int:
        """Return the number of targets with logits, of two bytes each, that take `size` bytes."""
        return max(_SMALLEST_CHUNK, size // (2 * self._vocabulary))

    def _one_chunk(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each target of a chunk, shape [m], from hidden[m, H] and targets[m]."""
        weight: Any = self._head.weight
        logits = self._head(hidden.to(weight.dtype) if weight.is_floating_point() else hidden).float() * self._factor
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, factor: float, chunk: int) -> Tensor:
        cast = weight.to(hidden.dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        result = hidden.new_empty(len(targets), dtype=torch.float32)
        # A frozen head needs d log p / dh only, which takes the place of hidden states and logits.
        gradient = torch.empty_like(hidden) if wants_hidden and not wants_weight else None
        for begin in range(0, len(targets), chunk):
            part = slice(begin, begin + chunk)
            logits = hidden[part] @ cast.t()  # [m, V]
            if gradient is None:
                result[part] = _logprobs(logits, targets[part], factor)
            else:
                result[part] = _logprobs_and_gradient(logits, targets[part], factor)
                torch.mm(logits, cast, out=gradient[part])
        if wants_weight:
            ctx.save_for_backward(hidden, weight, targets)
        elif wants_hidden:
            ctx.save_for_backward(gradient)
        ctx.factor, ctx.chunk = factor, chunk
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        outer: Tensor = gradients[0]  # [M]
        # One saved tensor: the head is frozen and its gradients exist already.
        if len(ctx.saved_tensors) == 1:
            (gradient,) = ctx.saved_tensors
            return gradient * outer[:, None].to(gradient.dtype), None, None, None, None
        # d log p / dz = onehot(y) - softmax(z), from which both gradients follow.
        hidden, weight, targets = ctx.saved_tensors
        cast = weight.to(hidden.dtype)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for begin in range(0, len(targets), ctx.chunk):
            part = slice(begin, begin + ctx.chunk)
            d_logits = hidden[part] @ cast.t()
            _logprobs_and_gradient(d_logits, targets[part], ctx.factor)
            # times the incoming gradient of each target
            d_logits.mul_(outer[part, None].to(cast.dtype))
            d_hidden[part] = d_logits @ cast
            # Summed over chunks in the dtype of the weight, which is float32 if it is trained.
            d_weight += d_logits.t() @ hidden[part]
        return d_hidden, d_weight, None, None, None


def _logprobs(logits: Tensor, targets: Tensor, factor: float) -> Tensor:
    """Return log-probabilities of targets[m] under softmax(factor * logits[m, V]), float32. May overwrite logits."""
    kernels = kernels_for(logits)
    if kernels is not None:
        result: Tensor = kernels.target_logprobs(logits, targets, factor, differentiate=False)
        return result
    return _logprobs_and_gradient(logits, targets, factor)


def _logprobs_and_gradient(logits: Tensor, targets: Tensor, factor: float) -> Tensor:
    """Return what `_logprobs` returns and overwrite the logits by its gradient, factor * (onehot - softmax)."""
    kernels = kernels_for(logits)
    if kernels is not None:
        result: Tensor = kernels.target_logprobs(logits, targets, factor, differentiate=True)
        return result
    result = logits.new_empty(len(targets), dtype=torch.float32)
    rows = max(1, _CACHE_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(targets)
    for begin in range(0, len(targets), rows):
        part = slice(begin, begin + rows)
        full = logits[part].float() * factor
        # Subtracting the largest logit keeps exp from overflowing and cancels out.
        largest = full.amax(-1, keepdim=True)
        target_logits = full.gather(1, targets[part, None])  # z[y], [rows, 1]
        total = full.sub_(largest).exp_().sum(-1, keepdim=True)  # the denominator of the softmax
        result[part] = (target_logits - largest - total.log())[:, 0]
        # -factor * softmax(z), then + factor at the target
        full.mul_(-factor / total)
        logits[part] = full.scatter_add_(1, targets[part, None], torch.full_like(target_logits, factor))
    return result


def _autocasts(hidden: Tensor) -> bool:
    return torch.is_autocast_enabled(hidden.device.type)


def _adjustments(config: Any) -> tuple[float, float | None]:
    """Return the factor of logits and their cap, or None: Granite divides, Cohere multiplies, Gemma 2 caps."""
    factor = 1 / (getattr(config, "logits_scaling", None) or 1) * (getattr(config, "logit_scale", None) or 1)
    return factor, getattr(config, "final_logit_softcapping", None)
