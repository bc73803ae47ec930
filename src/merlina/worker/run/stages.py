"""The stages of a run up to the trained model: load the model, load the data, train."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import set_seed

from merlina import checkpoints
from merlina.domain.adapter_targets import describe, warn_about_experts
from merlina.domain.conversion_rules import CURRENT_RULES, FIRST_RULES
from merlina.domain.run_sizes import shards_weights
from merlina.domain.units import MIB, gib
from merlina.errors import DataError, TrainingError
from merlina.faults import FaultPoint, reach
from merlina.private_files import write_private
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.inspection import Fingerprint
from merlina.step_plan import StepPlan
from merlina.training.device import compute_dtype, dtype_name, free_memory, training_device
from merlina.training.distributed.ranks import SINGLE_PROCESS, Ranks
from merlina.training.distributed.sharding import shard_frozen_weights
from merlina.training.loop.trainer import PreferenceTrainer
from merlina.training.models.adapters import make_trainable
from merlina.training.models.loading import (
    ModelSpec,
    load_model,
    vocabulary_size,
    weight_bytes,
)
from merlina.training.models.tokenizer_loading import load_tokenizer
from merlina.training.models.unwrapping import unwrap
from merlina.training.reporter import Reporter, StoppedEarly
from merlina.worker.encoding import PairEncoder
from merlina.worker.run.data_loading import DataLoading, TrainingData
from merlina.worker.run.reporting import EventReporter
from merlina.worker.run.resuming import choose_checkpoint
from merlina.worker.run.run_sources import RunSources
from merlina.worker.run.token_cache import TokenCache
from merlina.worker.run.wandb_logging import with_wandb

_PRECISIONS = {4: "4-bit NF4", 8: "8-bit integers"}


@dataclass(frozen=True)
class LoadedModel:
    """The model, ready to be trained, with its tokenizer."""

    model: nn.Module
    tokenizer: Any
    dtype: torch.dtype

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids that the model has."""
        return vocabulary_size(unwrap(self.model))

    @property
    def pad_id(self) -> int:
        """The token id that fills padded rows. It is always masked, but the embedding must have a row for it."""
        pad: int = self.tokenizer.pad_token_id
        return pad if pad < self.vocabulary_size else 0


class Stages:
    """The stages of one attempt of a run."""

    def __init__(
        self, folder: RunFolder, order: RunOrder, reporter: EventReporter, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        self.folder = folder
        self.order = order
        self.reporter = reporter
        self.ranks = ranks
        self.was_stopped = False
        self.checkpoint: Path | None = None
        self.last_step = 0
        self._token = os.environ.get("HF_TOKEN")

    def choose_start(self) -> None:
        """Choose the checkpoint after which this attempt continues; the first rank chooses for all."""
        chosen = choose_checkpoint(self.folder, self.order, self.reporter) if self.ranks.is_first else None
        self.checkpoint = self.ranks.broadcast_from_first(chosen)
        if self.order.resume:
            step = checkpoints.step_of(self.checkpoint) if self.checkpoint else 0
            self.reporter.recall(self.folder.events_file, step)

    def load_model(self) -> LoadedModel:
        config = self.order.config
        set_seed(config.seed)
        spec = ModelSpec(
            base_model=config.base_model,
            dtype=config.dtype,
            weight_bits=config.weight_bits,
            attn_implementation=config.attn_implementation,
            converted_dir=self.folder.converted_dir,
            token=self._token,
            trust_remote_code=self.order.trust_remote_code,
            is_converted=not self.ranks.is_first,
        )
        mesh = self._sharding_mesh(spec)
        with self.ranks.one_at_a_time():
            tokenizer = load_tokenizer(config.base_model, self._token, self.order.trust_remote_code)
            model = load_model(replace(spec, stays_in_ram=mesh is not None))
            trainable = make_trainable(model, config)
            if mesh is not None:
                shard_frozen_weights(trainable.model, mesh)
        if config.attn_implementation not in ("auto", model.config._attn_implementation):
            self.reporter.note(
                "warning",
                f"attn_implementation: {config.attn_implementation} is not available here; "
                f"the run uses {model.config._attn_implementation}",
            )
        for note in trainable.notes:
            self.reporter.note("warning", note)
        if trainable.kinds:
            self.reporter.note("info", describe(trainable.kinds))
        if warning := warn_about_experts(trainable.kinds):
            self.reporter.note("warning", f"target_modules: {warning}")
        dtype = compute_dtype(config.dtype, training_device())
        self._report_trained_weights(trainable.model, dtype)
        self._raise_if_stopped()
        reach(FaultPoint.START_MODEL_LOADED)
        return LoadedModel(trainable.model, tokenizer, dtype)

    def load_data(self, loaded: LoadedModel) -> TrainingData:
        config = self.order.config
        encoder = PairEncoder.for_run(loaded.tokenizer, config)
        trained = self._trained_data()
        # A resume converts rows as the version that started the run did.
        rules = CURRENT_RULES if self.checkpoint is None else trained.conversion_rules if trained else FIRST_RULES
        sources = RunSources(self.order, self._token, self.reporter, rules)
        cache = TokenCache(self.folder.tokens_dir, config, loaded.tokenizer, loaded.vocabulary_size)
        loading = DataLoading(
            config, encoder, loaded.vocabulary_size, self.reporter, cache, writes_cache=self.ranks.is_first
        )
        data, found = self._load_after_first(loading, sources, waits=sources.are_files and cache.is_possible)
        self._check_data_is_that_of_first_rank(found)
        self._check_data_is_unchanged(trained, found)
        repeated = "" if data.distinct == len(data.training) else f" ({data.distinct} different ones)"
        use = "held out for evaluation" if data.holds_out else "to evaluate on"
        self.reporter.note("info", f"{len(data.training)} pairs{repeated} to train on, {data.num_evaluated} {use}")
        for finding in StepPlan(config, len(data.training)).findings():
            self.reporter.note("warning", str(finding))
        self._raise_if_stopped()
        reach(FaultPoint.START_DATA_LOADED)
        return data

    def train(self, loaded: LoadedModel, data: TrainingData) -> nn.Module:
        """Train until the end or a stop, and return the model."""
        checkpoint = self.checkpoint
        set_seed(self.order.config.seed)
        with self._reporter_of_training() as reporter:
            trainer = PreferenceTrainer(
                loaded.model,
                self.order.config,
                training=data.training,
                evaluation=data.evaluation,
                pad_id=loaded.pad_id,
                dtype=loaded.dtype,
                folder=self.folder.checkpoints_dir,
                reporter=reporter,
                resuming=checkpoint is not None,
                ranks=self.ranks,
                memory_limit=self.order.memory_limit_mb and self.order.memory_limit_mb * MIB,
            )
            evaluation = self.ranks.broadcast_from_first(self.reporter.recalled_evaluation)
            self.was_stopped = trainer.run(checkpoint, evaluation=evaluation)
            self.last_step = trainer.state.global_step
        self.ranks.leave()
        return loaded.model

    def _reporter_of_training(self) -> AbstractContextManager[Reporter]:
        """Return the reporter, which also logs to W&B if that is configured; the first rank logs for all."""
        if not self.ranks.is_first:
            return nullcontext(self.reporter)
        return with_wandb(self.order.config, self.order.job_id, self.reporter)

    def _trained_data(self) -> Fingerprint | None:
        """Return the fingerprint of the data that the checkpoint was trained on, if there is one."""
        file = self.folder.fingerprint_file
        if self.checkpoint is None or not file.is_file():
            return None
        return Fingerprint.model_validate_json(file.read_bytes())

    def _check_data_is_unchanged(self, trained: Fingerprint | None, now: Fingerprint) -> None:
        """Raise DataError if the checkpoint was trained on other rows or with another split."""
        if self.checkpoint is None:
            if self.ranks.is_first:
                write_private(self.folder.fingerprint_file, now.model_dump_json().encode())
            return
        difference = trained.difference(now) if trained else None
        if difference is not None:
            raise DataError(
                f"The data set is not the one that this run was trained on until step "
                f"{checkpoints.step_of(self.checkpoint)}: {difference}. Restore it and resume, or "
                f"POST /jobs/{self.order.job_id}/resume?force=true to start over at step 1"
            )

    def _check_data_is_that_of_first_rank(self, found: Fingerprint) -> None:
        """Raise DataError if the data set changed after the first rank loaded it.

        The ranks divide the pairs of each step by their indices, so all must have the same pairs.
        """
        difference = self.ranks.broadcast_from_first(found).difference(found)
        if difference is not None:
            raise DataError(
                f"The data set changed while the processes of this run loaded it: {difference}. Make sure that nothing "
                f"writes to it and POST /jobs/{self.order.job_id}/resume"
            )

    def _sharding_mesh(self, spec: ModelSpec) -> DeviceMesh | None:
        """Return the mesh to shard the weights over; None if every rank has memory for the whole model."""
        if self.ranks.count == 1:
            return None
        free = free_memory() / (1 if training_device().type == "cuda" else self.ranks.count)
        weights = weight_bytes(spec)
        shards = self.order.config.is_shardable and shards_weights(self.ranks.count, weights, free)
        if not self.ranks.max(shards):
            return None
        self.reporter.note(
            "info",
            f"The model's {gib(weights)} of weights are sharded over the {self.ranks.count} processes, since each has "
            f"{gib(free)} free; this is slower than a whole model in each",
        )
        return self.ranks.mesh()

    def _load_after_first(
        self, loading: DataLoading, sources: RunSources, *, waits: bool
    ) -> tuple[TrainingData, Fingerprint]:
        """Return the data; with `waits`, the other ranks load it after the first, whose token ids they then map."""
        if waits and not self.ranks.is_first:
            self.ranks.barrier()
        loaded = loading.load(sources)
        if waits and self.ranks.is_first:
            self.ranks.barrier()
        return loaded

    def _raise_if_stopped(self) -> None:
        if self.reporter.should_stop():
            raise StoppedEarly

    def _report_trained_weights(self, model: nn.Module, dtype: torch.dtype) -> None:
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        if trained == 0:
            raise TrainingError("No weight of the model would be trained; check target_modules and use_lora")
        bits = self.order.config.weight_bits
        precision = _PRECISIONS[bits] if bits else dtype_name(dtype)
        device = "GPU" if training_device().type == "cuda" else "CPU"
        devices = device if self.ranks.count == 1 else f"{device}, in {self.ranks.count} processes that share each step"
        self.reporter.note(
            "info", f"{trained:,} weights are trained on the {devices}; the weights of the model are {precision}"
        )
