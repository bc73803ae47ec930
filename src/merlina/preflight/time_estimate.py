"""How long a run will take: its arithmetic at the speed of an earlier run, or at what this processor can do.

`benchmarks/time_estimate.py` holds the estimate against runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from merlina.errors import HelperError, StoredConfigError
from merlina.preflight.memory_estimate import compute_bytes, largest_pack
from merlina.preflight.step_count import plan_steps
from merlina.schemas.inspection import DataFacts, ModelFacts, PairTokens
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.schemas.training import PACK_POSITIONS, TrainingConfig
from merlina.schemas.validation import TimeEstimate
from merlina.storage import jobs, metrics
from merlina.storage.database import Database

_POINTS = 100
_RUNS_LOOKED_AT = 20
# Of what products alone reach, by bytes of a number; fitted to runs on short pairs, longer ones reach more.
_REACHED = {4: 0.37, 2: 0.24}
_DTYPES = {4: "float32", 2: "bfloat16"}
_WIDEST = 2048
# The largest pack is tried before the first step, which is slow itself while memory is found for it.
_TRIED_PACKS = 2
# Of a step, whatever it computes.
_STEP_SECONDS = 0.01
_REFERENCED = ("dpo", "ipo", "kto")


@dataclass(frozen=True)
class EarlierRun:
    """The newest completed run with a model on a kind of device."""

    job_id: str
    config: TrainingConfig
    tokens_per_second: float  # each prompt counted with both its answers

    def seconds_a_pair(self, tokens: PairTokens) -> float:
        return _counted_tokens(self.config, tokens) / self.tokens_per_second


def find_earlier_run(database: Database, config: TrainingConfig, device: str) -> EarlierRun | None:
    """The newest completed one with the same model in the same precision on such a device, cpu or cuda."""
    with database.read() as connection:
        for record in jobs.completed_with(connection, config.base_model, _RUNS_LOOKED_AT):
            try:
                then = read_stored_config(record.config, record.job_id)
            except StoredConfigError:
                continue  # of another version
            if bool(record.gpus) != (device == "cuda") or _precision(then, device) != _precision(config, device):
                continue
            rows = metrics.rows(connection, record.number, max_points=_POINTS)
            if speeds := [speed for row in rows if (speed := row.figures.get("tokens_per_second"))]:
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
) -> TimeEstimate | None:
    """Of a data set with so many rows. `product_rate` is asked for the processor's FLOP/s by dtype and width.

    None where too little is known: on a GPU without an earlier run, and of rows that can't be counted.
    """
    if model is None or data is None or data.mean_tokens is None or not rows or not data.rows:
        return None
    tokens = data.mean_tokens
    if earlier is not None:
        then, now = _devices(earlier.config), _devices(config)
        a_pair = _training_flops(earlier.config, model, tokens) + _unrelated_flops(earlier.config, model, tokens)
        speed = a_pair / earlier.seconds_a_pair(tokens) * now / then
    elif device == "cpu":
        width = compute_bytes(config, device)
        try:
            speed = _REACHED[width] * product_rate(_DTYPES[width], min(model.hidden_size, _WIDEST))
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
    evaluated = _evaluations(config, steps) * held_out
    referenced = pairs if config.training_mode in _REFERENCED else 0
    tried = (
        _TRIED_PACKS
        * largest_pack(config, data, device, PACK_POSITIONS[device])
        / (tokens.prompt + sum(_answers(config, tokens)))
    )
    flops = (
        (trained + tried) * _training_flops(config, model, tokens)
        + (evaluated + referenced) * _forward_flops(config, model, tokens)
        + (trained + evaluated + referenced) * _unrelated_flops(config, model, tokens)
    )
    seconds = flops / speed + (0.0 if earlier else steps * _STEP_SECONDS)
    return TimeEstimate(seconds=seconds, steps=steps, earlier_run=earlier.job_id if earlier else None)


def _precision(config: TrainingConfig, device: str) -> tuple[int, int | None]:
    return compute_bytes(config, device), config.weight_bits


def _devices(config: TrainingConfig) -> int:
    return len(config.gpu_ids or []) or 1


def _counted_tokens(config: TrainingConfig, tokens: PairTokens) -> float:
    if config.training_mode == "sft":
        return tokens.prompt + tokens.chosen
    return 2 * tokens.prompt + tokens.chosen + tokens.rejected


def _evaluations(config: TrainingConfig, steps: int) -> int:
    """The first one is made before any step."""
    if config.eval_steps == 0:
        return 0
    every = math.ceil(steps * config.eval_steps) if config.eval_steps < 1 else int(config.eval_steps)
    return 1 + steps // every


def _answers(config: TrainingConfig, tokens: PairTokens) -> tuple[float, ...]:
    return (tokens.chosen,) if config.training_mode == "sft" else (tokens.chosen, tokens.rejected)


def _layer_flops(model: ModelFacts, prompt: float, *answers: float) -> float:
    """Of the layers for one unit, forwards: its products, and its attention with the prompt once."""
    looked_at = prompt**2 / 2 + sum(answer * prompt + answer**2 / 2 for answer in answers)
    products = 2 * model.linear_parameters * (prompt + sum(answers))
    return products + 4 * model.layers * model.attention_size * looked_at


def _head_flops(model: ModelFacts, targets: float) -> float:
    """Of the output head, forwards: it is only asked about targets."""
    return 2 * model.hidden_size * model.vocab_size * targets


def _targets(config: TrainingConfig, tokens: PairTokens) -> float:
    """Of a pair: its answers, and with ORPO its prompt."""
    return sum(_answers(config, tokens)) + (tokens.prompt if config.training_mode == "orpo" else 0)


def _unrelated_flops(config: TrainingConfig, model: ModelFacts, tokens: PairTokens) -> float:
    """Of what KTO holds a pair against, forwards: its prompt with another pair's answer."""
    if config.training_mode != "kto":
        return 0.0
    return _layer_flops(model, tokens.prompt, tokens.chosen) + _head_flops(model, tokens.chosen)


def _forward_flops(config: TrainingConfig, model: ModelFacts, tokens: PairTokens) -> float:
    layers = _layer_flops(model, tokens.prompt, *_answers(config, tokens))
    return layers + _head_flops(model, _targets(config, tokens))


def _training_flops(config: TrainingConfig, model: ModelFacts, tokens: PairTokens) -> float:
    """Forwards and backwards for one pair; gradients by frozen weights are never taken."""
    passes = 2 + (not config.use_lora) + config.gradient_checkpointing
    # The head's probabilities are computed again where it is trained.
    of_head = 2 if config.use_lora else 4
    of_layers = _layer_flops(model, tokens.prompt, *_answers(config, tokens))
    return passes * of_layers + of_head * _head_flops(model, _targets(config, tokens))
