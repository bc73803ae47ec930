"""Estimate the duration of a run: its FLOPs at the speed of an earlier run, or at the measured speed of this CPU.

`benchmarks/time_estimate.py` compares the estimate with measured runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from merlina.domain.adapter_targets import match
from merlina.domain.run_sizes import PACK_POSITIONS
from merlina.errors import HelperError, StoredConfigError
from merlina.preflight.memory_estimate import compute_bytes, largest_pack
from merlina.preflight.step_count import plan_steps
from merlina.schemas.datasets.config import TrainingMode
from merlina.schemas.inspection import DataFacts, ModelFacts, PairTokens
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.validation import TimeEstimate
from merlina.storage import jobs, metrics
from merlina.storage.database import Database

_POINTS = 100
_MAX_EARLIER_RUNS = 20
# Fraction of the matrix-product speed that training reaches, by bytes per number. Fitted to runs on short pairs; longer
# ones reach more.
_EFFICIENCY = {4: 0.37, 2: 0.24}
_DTYPES = {4: "float32", 2: "bfloat16"}
_WIDEST = 2048
# The memory probe runs the largest pack before the first step, which itself is slow while memory is first allocated.
_PROBED_PACKS = 2
# Constant overhead of an optimizer step.
_STEP_SECONDS = 0.01
# The methods that compute a reference, prompt targets and unrelated answers. `training/objectives.py`, which the server
# cannot import, defines them; a test holds both equal.
REFERENCE_METHODS: frozenset[TrainingMode] = frozenset({"dpo", "ipo", "kto"})
PROMPT_TARGET_METHODS: frozenset[TrainingMode] = frozenset({"orpo"})
DIVERGENCE_METHODS: frozenset[TrainingMode] = frozenset({"kto"})


@dataclass(frozen=True)
class EarlierRun:
    """A completed run, with the speed that predicts that of a new one."""

    job_id: str
    config: TrainingConfig
    tokens_per_second: float  # the prompt counts once for each answer

    def seconds_per_pair(self, tokens: PairTokens) -> float:
        return _counted_tokens(self.config, tokens) / self.tokens_per_second


def find_earlier_run(database: Database, config: TrainingConfig, device: str) -> EarlierRun | None:
    """Return the newest completed run with the same model and precision on the same kind of device, cpu or cuda."""
    with database.read() as connection:
        for record in jobs.completed_with(connection, config.base_model, _MAX_EARLIER_RUNS):
            try:
                then = read_stored_config(record.config, record.job_id)
            except StoredConfigError:
                continue  # written by another version
            if bool(record.gpus) != (device == "cuda") or _precision(then, device) != _precision(config, device):
                continue
            rows = metrics.rows(connection, record.number, max_points=_POINTS)
            if speeds := [speed for row in rows if (speed := row.metrics.get("tokens_per_second"))]:
                return EarlierRun(record.job_id, then, statistics.median(speeds))
    return None


def estimate_time(
    config: TrainingConfig,
    model: ModelFacts | None,
    data: DataFacts | None,
    rows: int | None,
    device: str,
    earlier: EarlierRun | None,
    product_rate: Callable[[str, int], float],
    *,
    evaluation_rows: int = 0,
) -> TimeEstimate | None:
    """Return the time estimate for `rows` rows to train on or hold out, and `evaluation_rows` to evaluate on.

    `product_rate` returns the CPU's FLOP/s for a dtype and a width.

    None if rows or tokens are unknown, or on a GPU without an earlier run.
    """
    if model is None or data is None or data.mean_tokens is None or not rows or not data.rows:
        return None
    tokens = data.mean_tokens
    if earlier is not None:
        then, now = _devices(earlier.config), _devices(config)
        flops_per_pair = _training_flops(earlier.config, model, tokens) + _kto_flops(earlier.config, model, tokens)
        speed = flops_per_pair / earlier.seconds_per_pair(tokens) * now / then
    elif device == "cpu":
        number_bytes = compute_bytes(config, device)
        try:
            speed = _EFFICIENCY[number_bytes] * product_rate(_DTYPES[number_bytes], min(model.hidden_size, _WIDEST))
        except HelperError:
            return None
    else:
        return None
    plan = plan_steps(config, data, rows)
    if plan is None:
        return None
    pairs, steps = rows * data.usable / data.rows, plan.steps
    held_out = pairs - plan.pairs
    trained = steps / plan.steps_per_epoch * plan.pairs
    evaluated = _evaluations(config, steps) * (held_out + evaluation_rows)
    referenced = pairs + evaluation_rows if config.training_mode in REFERENCE_METHODS else 0
    probed = (
        _PROBED_PACKS
        * largest_pack(config, data, device, PACK_POSITIONS[device])
        / (tokens.prompt + sum(_answers(config, tokens)))
    )
    flops = (
        (trained + probed) * _training_flops(config, model, tokens)
        + (evaluated + referenced) * _forward_flops(config, model, tokens)
        + (trained + evaluated + referenced) * _kto_flops(config, model, tokens)
    )
    seconds = flops / speed + (0.0 if earlier else steps * _STEP_SECONDS)
    return TimeEstimate(seconds=seconds, steps=steps, earlier_run=earlier.job_id if earlier else None)


def _precision(config: TrainingConfig, device: str) -> tuple[int, int | None]:
    return compute_bytes(config, device), config.weight_bits


def _devices(config: TrainingConfig) -> int:
    return len(config.gpu_ids or []) or 1


def _counted_tokens(config: TrainingConfig, tokens: PairTokens) -> float:
    answers = _answers(config, tokens)
    return len(answers) * tokens.prompt + sum(answers)


def _evaluations(config: TrainingConfig, steps: int) -> int:
    """Return the number of evaluations, including the one before the first step."""
    if config.eval_steps == 0:
        return 0
    every = math.ceil(steps * config.eval_steps) if config.eval_steps < 1 else int(config.eval_steps)
    return 1 + steps // every


def _answers(config: TrainingConfig, tokens: PairTokens) -> tuple[float, ...]:
    """Return the mean lengths of a pair's answers; unpaired answers count as chosen."""
    both = config.training_mode != "sft" and tokens.rejected > 0
    return (tokens.chosen, tokens.rejected) if both else (tokens.chosen,)


def _layer_flops(model: ModelFacts, prompt: float, *answers: float) -> float:
    """Return the forward FLOPs of all layers for one packed example: linear layers and causal attention.

    With a prompt of 100 and answers of 20 and 30 tokens, the products cover 150 positions, and attention computes
    100²/2 + (20·100 + 20²/2) + (30·100 + 30²/2) = 10,650 scores per head.
    """
    scores = prompt**2 / 2 + sum(answer * prompt + answer**2 / 2 for answer in answers)
    products = 2 * model.linear_parameters * (prompt + sum(answers))
    return products + 4 * model.layers * model.attention_size * scores


def _head_flops(model: ModelFacts, targets: float) -> float:
    """Return the forward FLOPs of the output head, which only computes logits of target tokens."""
    return 2 * model.hidden_size * model.vocab_size * targets


def _targets(config: TrainingConfig, tokens: PairTokens) -> float:
    """Return the number of target tokens of a pair: its answers, and for orpo its prompt."""
    return sum(_answers(config, tokens)) + (tokens.prompt if config.training_mode in PROMPT_TARGET_METHODS else 0)


def _kto_flops(config: TrainingConfig, model: ModelFacts, tokens: PairTokens) -> float:
    """Return the forward FLOPs of KTO's divergence estimate: a prompt with the answer of another pair."""
    if config.training_mode not in DIVERGENCE_METHODS:
        return 0.0
    return _layer_flops(model, tokens.prompt, tokens.chosen) + _head_flops(model, tokens.chosen)


def _forward_flops(config: TrainingConfig, model: ModelFacts, tokens: PairTokens) -> float:
    layers = _layer_flops(model, tokens.prompt, *_answers(config, tokens))
    return layers + _head_flops(model, _targets(config, tokens))


def _trains_head(config: TrainingConfig, model: ModelFacts) -> bool:
    """Return whether the output head is trained as a whole."""
    whole, _ = match(model.sites, config.modules_to_save or [])
    return not config.use_lora or any(site.kind == "output head" for site in whole)


def _training_flops(config: TrainingConfig, model: ModelFacts, tokens: PairTokens) -> float:
    """Return the forward and backward FLOPs for one pair; frozen weights have no gradients."""
    passes = 2 + (not config.use_lora) + config.gradient_checkpointing
    # A trained head recomputes its probabilities in the backward pass.
    head_passes = 4 if _trains_head(config, model) else 2
    layers = _layer_flops(model, tokens.prompt, *_answers(config, tokens))
    return passes * layers + head_passes * _head_flops(model, _targets(config, tokens))
