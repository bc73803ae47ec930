"""Selection of the passes of a run: packs or padded batches, and how large they may be."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from merlina.domain.run_sizes import pack_positions
from merlina.training.distributed.ranks import Ranks
from merlina.training.distributed.sharding import is_sharded
from merlina.training.engine.attention.rope_config import rope_length_limits
from merlina.training.engine.fast_path import choose_logprob_model, trial_examples
from merlina.training.engine.passes import PassPlanner
from merlina.training.loop.memory_probe import MemoryProbe
from merlina.training.loop.pass_runner import Packer, PassRunner, packed_example
from merlina.training.models.tokens import TokenPair
from merlina.training.models.unwrapping import unwrap
from merlina.training.reporter import Reporter


def select_passes(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    pad_id: int,
    packer: Packer,
    ranks: Ranks,
    memory_limit: int | None,
    reporter: Reporter,
) -> tuple[PassRunner, str | None]:
    """Choose packs or padded batches, and probe the largest pass. Returns the reason if packs are not used, else None.

    `pairs` are the largest ones of the run, and `memory_limit` is in bytes for each GPU. Raises TrainingError if a pass
    with a single pair does not fit.
    """
    causal_lm = unwrap(model)
    examples = [packed_example(pair, packer.config) for pair in pairs]
    short, long = trial_examples(causal_lm.config, examples)
    logprob_model, reason = choose_logprob_model(
        model,
        packer.pack(short),
        pad_id,
        packer.config.attn_implementation,
        packer.precision(),
        packer.pack(long) if long else None,
    )
    planner = PassPlanner(
        logprob_model.batching,
        pack_positions(packer.device.type, is_dense=logprob_model.is_dense),
        ranks,
        ranks_in_lockstep=is_sharded(model),
        length_limits=rope_length_limits(causal_lm.config),
    )
    probe = MemoryProbe(model, PassRunner(packer, logprob_model, planner), memory_limit, reporter.note)
    return PassRunner(packer, logprob_model, probe.fit(examples)), reason
