"""A sharded frozen model on two processes over gloo, compared with the whole model in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merlina.domain.run_sizes import shards_weights
from merlina.schemas.training.config import TrainingConfig
from merlina.training.distributed.ranks import SINGLE_PROCESS, Ranks, join_ranks
from merlina.training.distributed.sharding import is_sharded, shard_frozen_weights
from merlina.training.engine.packing import PackedExample
from merlina.training.engine.passes import PackedBatching, PassPlanner
from merlina.training.loop.memory_probe import find_fitting_planner
from merlina.training.loop.trainer import PreferenceTrainer
from merlina.training.models.adapters import make_trainable
from merlina.training.models.loading import ModelSpec, load_model
from merlina.training.models.tokens import TokenPair
from tests.harness import training_config
from tests.training.models import held_out_set

pytestmark = pytest.mark.slow

_MODES: dict[str, dict[str, Any]] = {
    "orpo": {"gradient_checkpointing": True},
    "kto": {},
    "dpo": {
        "use_dora": True,
        "modules_to_save": ["lm_head", "embed_tokens"],
        "neftune_noise_alpha": 5.0,
        "ld_alpha": 0.5,
    },
}


class MetricsRecorder:
    """A Reporter that records losses and ignores everything else."""

    def __init__(self) -> None:
        self.recorded: dict[str, float] = {}

    def metrics(self, _step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:
        self.recorded |= {f"{name} {_step}": value for name, value in metrics.items() if "loss" in name}

    def should_stop(self) -> bool:
        return False

    def is_pausing(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def pairs() -> list[TokenPair]:
    """Return pairs of different lengths, so that ranks make different numbers of passes."""
    draw = torch.Generator().manual_seed(3)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 60, (count,), generator=draw).tolist())

    return [TokenPair(tokens(5 + 3 * n), tokens(4 + n), tokens(20 - n), row=n) for n in range(11)]


def train(rank: int, folder: Path, base_model: Path, count: int) -> None:
    torch.set_num_threads(1)
    ranks = join_ranks(rank, count, folder / "rendezvous", torch.device("cpu")) if count > 1 else SINGLE_PROCESS
    found: dict[str, torch.Tensor] = {}
    for mode, changes in _MODES.items():
        given = training_config(
            base_model, base_model, "x", training_mode=mode, lora_dropout=0.0, eval_steps=2, save_steps=2, max_steps=4,
            batch_size=3, gradient_accumulation_steps=1, logging_steps=1, **changes,
        )  # fmt: skip
        config = TrainingConfig.model_validate(given)
        torch.manual_seed(0)
        spec = ModelSpec(config.base_model, "auto", None, "auto", folder, stays_in_ram=count > 1)
        model = make_trainable(load_model(spec), config).model
        if count > 1:
            shard_frozen_weights(model, ranks.mesh())
        assert is_sharded(model) == (count > 1)
        recorder = MetricsRecorder()
        trainer = PreferenceTrainer(
            model, config, training=pairs()[:8], evaluation=held_out_set(pairs()[8:]), pad_id=0, dtype=torch.float32,
            folder=folder / f"{mode}-{count}", reporter=recorder, resuming=False, ranks=ranks,
        )  # fmt: skip
        trainer.run(None)
        found |= {f"{mode} {name}": torch.tensor(value) for name, value in recorder.recorded.items()}
        found |= {f"{mode} {name}": weight for name, weight in model.named_parameters() if weight.requires_grad}
        if count > 1:
            local = model.get_base_model().get_decoder().layers[0].mlp.up_proj.base_layer.weight.to_local()
            found[f"{mode} shard"] = torch.tensor(local.shape[0])
            assert (folder / f"{mode}-{count}" / "checkpoint-2" / "adapter_model.safetensors").is_file()
    if count > 1:
        found |= {f"capacity {capacity}": torch.tensor(budget_if_rank_1_has(capacity, ranks)) for capacity in (30, 70)}
    if ranks.is_first:
        save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, folder / f"{count}")
    ranks.leave()


def budget_if_rank_1_has(capacity: int, ranks: Ranks) -> int:
    """Return the budget that all ranks end with if only rank 1 runs out of memory."""

    def run(examples: Sequence[PackedExample]) -> None:
        if ranks.rank == 1 and PackedBatching().num_positions(examples) > capacity:
            raise torch.OutOfMemoryError

    examples = [PackedExample([1], ([2] * 9, [3] * 2))] * 20
    return find_fitting_planner(PassPlanner(PackedBatching(), 100, ranks), examples, run, lambda *_: None).budget


def test_losses_and_adapters_are_those_of_the_whole_model(tiny_model: Path, tmp_path: Path) -> None:
    train(0, tmp_path, tiny_model, 1)
    # This process is rank 0, which saves the imports of another process.
    second = torch.multiprocessing.get_context("spawn").Process(target=train, args=(1, tmp_path, tiny_model, 2))
    second.start()
    train(0, tmp_path, tiny_model, 2)
    second.join(60)
    assert second.exitcode == 0
    whole, sharded = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    for mode in _MODES:
        assert int(sharded.pop(f"{mode} shard")) * 2 == 64
    assert (int(sharded.pop("capacity 30")), int(sharded.pop("capacity 70"))) == (31, 75)
    assert sharded.keys() == whole.keys()
    assert any("eval_loss" in name for name in whole)
    for name, tensor in whole.items():
        assert float((sharded[name] - tensor).norm()) <= 1e-5 * max(float(tensor.norm()), 1e-3), name


@pytest.mark.parametrize(
    ("changes", "processes", "free", "shards"),
    [
        ({}, 2, 19e9, True),
        ({}, 2, 21e9, False),
        ({}, 1, 5e9, False),
        ({"use_4bit": True}, 2, 5e9, False),
        ({"use_lora": False}, 2, 5e9, False),
    ],
)
def test_a_frozen_model_is_sharded_if_it_takes_over_half_of_the_memory(
    changes: dict[str, Any], processes: int, free: float, shards: bool
) -> None:
    config = TrainingConfig.model_validate(training_config(Path("m"), Path("d"), "x", **changes))
    assert (config.is_shardable and shards_weights(processes, 10e9, free)) is shards
