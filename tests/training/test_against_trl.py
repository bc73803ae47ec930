"""Losses, gradients of all adapter weights and ten training steps equal those of TRL, for each objective."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from merlina.schemas.datasets.config import TrainingMode
from merlina.schemas.training.config import TrainingConfig
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.packing import PackedExample, build_pack
from merlina.training.loop.pass_runner import tail_weight
from merlina.training.loop.trainer import PreferenceTrainer
from merlina.training.models.tokens import TokenPair
from merlina.training.objectives import OBJECTIVES, ObjectiveInputs
from tests.training.models import PAIRS, adapted, assert_same_gradients, gradients, random_model
from tests.training.test_objectives import config

pytestmark = pytest.mark.slow

Found = tuple[float, dict[str, torch.Tensor]]
# TRL's KTO takes the divergence from the batch itself: each prompt with the answer before it.
UNRELATED = [PackedExample(pair.prompt, (PAIRS[index - 1].chosen,)) for index, pair in enumerate(PAIRS)]


# The last pair has the same answer twice, which gives most objectives no gradient.
@pytest.mark.parametrize("pair", PAIRS[:-1])
@pytest.mark.parametrize("mode", ["orpo", "cpo", "simpo", "dpo", "ipo", "sft"])
def test_loss_and_adapter_gradients_of_a_pair(mode: TrainingMode, pair: TokenPair, tmp_path: Path) -> None:
    model = adapted(random_model())
    theirs = _trls(mode, copy.deepcopy(model), [pair], tmp_path)
    _assert_same(_ours(mode, model, [pair]), theirs)


# Settings of dpo with the arguments that give TRL the same loss.
DPO_VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss_type": "robust", "label_smoothing": 0.1}, {"loss_type": "robust", "label_smoothing": 0.1}),
    ({"loss_type": "exo_pair", "label_smoothing": 0.001}, {"loss_type": "exo_pair", "label_smoothing": 0.001}),
    *(
        ({"loss_type": name}, {"loss_type": name})
        for name in ("hinge", "discopop", "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard")
    ),
    ({"length_normalize": True}, {"loss_type": "sigmoid_norm"}),
    ({"ld_alpha": 0.3}, {"ld_alpha": 0.3}),
    ({"loss_type": "apo_zero", "ld_alpha": 0.0}, {"loss_type": "apo_zero", "ld_alpha": 0.0}),
    (
        {"loss_type": ["sigmoid", "bco_pair", "hinge"], "loss_weights": [0.8, 0.2, 2.0]},
        {"loss_type": ["sigmoid", "bco_pair", "hinge"], "loss_weights": [0.8, 0.2, 2.0]},
    ),
]
# TRL averages its NLL over the tokens of a batch, which is the same for a single pair.
NLL_VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"nll_weight": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    (
        {"nll_weight": 0.7, "ld_alpha": 0.3},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "ld_alpha": 0.3},
    ),
]


@pytest.mark.parametrize(("settings", "trls"), DPO_VARIANTS, ids=lambda value: str(value)[:50])
def test_loss_and_adapter_gradients_of_a_batch_with_another_dpo_loss(
    settings: dict[str, Any], trls: dict[str, Any], tmp_path: Path
) -> None:
    model = adapted(random_model())
    theirs = _trls("dpo", copy.deepcopy(model), PAIRS[:-1], tmp_path, **trls)
    _assert_same(_ours("dpo", model, PAIRS[:-1], **settings), theirs)


@pytest.mark.parametrize("pair", PAIRS[:-1])
@pytest.mark.parametrize(("settings", "trls"), NLL_VARIANTS, ids=lambda value: str(value)[:50])
def test_loss_and_adapter_gradients_of_a_pair_with_an_nll_term(
    settings: dict[str, Any], trls: dict[str, Any], pair: TokenPair, tmp_path: Path
) -> None:
    model = adapted(random_model())
    theirs = _trls("dpo", copy.deepcopy(model), [pair], tmp_path, **trls)
    _assert_same(_ours("dpo", model, [pair], **settings), theirs)


@pytest.mark.parametrize("pair", PAIRS[:-1])
@pytest.mark.parametrize(
    ("mode", "settings", "trls"),
    [
        ("cpo", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("simpo", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("simpo", {"nll_weight": 0.7}, {"cpo_alpha": 0.7}),
    ],
)
def test_loss_and_adapter_gradients_of_a_pair_without_a_reference(
    mode: TrainingMode, settings: dict[str, Any], trls: dict[str, Any], pair: TokenPair, tmp_path: Path
) -> None:
    model = adapted(random_model())
    theirs = _trls(mode, copy.deepcopy(model), [pair], tmp_path, **trls)
    _assert_same(_ours(mode, model, [pair], **settings), theirs)


def test_loss_and_adapter_gradients_of_a_batch_with_a_divergence(tmp_path: Path) -> None:
    model = adapted(random_model())
    theirs = _trls("kto", copy.deepcopy(model), PAIRS, tmp_path)
    _assert_same(_ours("kto", model, PAIRS), theirs)


def test_loss_and_adapter_gradients_of_unpaired_answers_with_weights(tmp_path: Path) -> None:
    model = adapted(random_model())
    settings = config("kto", desirable_weight=1.5, undesirable_weight=0.25)
    answers = [pair.chosen for pair in PAIRS[:3]] + [pair.rejected for pair in PAIRS[3:]]
    labels = [True] * 3 + [False] * 2
    examples = [PackedExample(pair.prompt, (answer,)) for pair, answer in zip(PAIRS, answers, strict=True)]
    ours = _losses_of_examples("kto", settings, copy.deepcopy(model), examples, torch.tensor(labels))
    trainer = _trls_kto_trainer(model, tmp_path, desirable_weight=1.5, undesirable_weight=0.25)
    model.zero_grad()
    loss = trainer.compute_loss(trainer.model, _trls_kto_batch(examples, UNRELATED, labels))
    loss.backward()
    _assert_same(ours, (loss.item(), gradients(model)))


def test_ten_steps_of_training_have_the_same_losses(tmp_path: Path) -> None:
    ours = _our_course(tmp_path / "ours")
    theirs = _trls_course(tmp_path / "theirs")
    assert len(ours) == len(theirs) == 10
    assert ours[0] > ours[-1]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)


def _assert_same(ours: Found, theirs: Found) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert_same_gradients(ours[1], theirs[1], 1e-4)


def _ours(mode: TrainingMode, model: Any, pairs: list[TokenPair], **settings: Any) -> Found:
    answers = [(pair.chosen,) if mode == "sft" else (pair.chosen, pair.rejected) for pair in pairs]
    examples = [PackedExample(pair.prompt, answer) for pair, answer in zip(pairs, answers, strict=True)]
    return _losses_of_examples(mode, config(mode, **settings), model, examples)


def _losses_of_examples(
    mode: TrainingMode,
    settings: TrainingConfig,
    model: Any,
    examples: list[PackedExample],
    labels: torch.Tensor | None = None,
) -> Found:
    objective = OBJECTIVES[mode]
    pack = build_pack(examples, with_prompt_targets=objective.needs_prompt_targets, tail_weight=tail_weight(settings))
    run, reason = choose_logprob_model(model, pack, 0, "auto", nullcontext())
    assert reason is None
    unrelated = build_pack(UNRELATED, with_prompt_targets=False)
    with torch.no_grad():
        far = run(unrelated).total_logprob(1)
        with model.disable_adapter():
            reference, near = run(pack), run(unrelated).total_logprob(1)
    model.zero_grad()
    inputs = ObjectiveInputs(run(pack), reference, (far - near).mean(), labels)
    loss = objective.loss(inputs, settings).loss.mean()
    loss.backward()
    return loss.item(), gradients(model)


def _trls(mode: TrainingMode, model: Any, pairs: list[TokenPair], folder: Path, **changes: Any) -> Found:
    """Return loss and gradients of TRL's own code for the same ids, in batches as its collators build them.

    `changes` are arguments of TRL.
    """
    model.zero_grad()
    loss = {
        "orpo": _trls_orpo, "cpo": _trls_cpo, "simpo": _trls_cpo, "dpo": _trls_dpo, "ipo": _trls_dpo,
        "kto": _trls_kto, "sft": _trls_sft,
    }[mode](mode, model, pairs, folder, **changes)  # fmt: skip
    loss.backward()
    return loss.item(), gradients(model)


def _trls_orpo(_mode: str, model: Any, pairs: list[TokenPair], _folder: Path) -> torch.Tensor:
    from trl.experimental.orpo import ORPOTrainer

    trainer = _bare(ORPOTrainer)
    return trainer.get_batch_loss_metrics(model, _paired_batch(pairs[0]))[0]


def _trls_cpo(mode: str, model: Any, pairs: list[TokenPair], _folder: Path, **changes: float) -> torch.Tensor:
    from trl.experimental.cpo import CPOTrainer

    trainer = _bare(CPOTrainer)
    trainer.loss_type, trainer.cpo_alpha = ("sigmoid", 1.0) if mode == "cpo" else ("simpo", 0.0)
    trainer.label_smoothing, trainer.alpha, trainer.simpo_gamma = 0.0, 0.0, config().simpo_gamma
    vars(trainer).update(changes)
    return trainer.get_batch_loss_metrics(model, _paired_batch(pairs[0]))[0]


def _bare(kind: Any) -> Any:
    """A trainer with what its loss needs and nothing else."""
    from accelerate import Accelerator

    trainer = kind.__new__(kind)
    trainer.beta, trainer.is_encoder_decoder, trainer.aux_loss_enabled = config().beta, False, False
    trainer.padding_value = trainer.pad_token_id = 0
    trainer.accelerator = Accelerator(cpu=True)
    return trainer


def _trls_dpo(mode: str, model: Any, pairs: list[TokenPair], folder: Path, **changes: Any) -> torch.Tensor:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    arguments = {"loss_type": "ipo" if mode == "ipo" else "sigmoid", **changes}
    settings = DPOConfig(str(folder), beta=config().beta, **arguments, **_TRL_ARGUMENTS)
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = DPOTrainer(model, args=settings, train_dataset=rows, processing_class=_tokenizer(folder))
    # TRL would use the given adapter as the reference; a run here begins with an adapter that changes nothing.
    trainer.model.delete_adapter("ref")
    # TRL's batches have all chosen answers before all rejected ones.
    rows_of_ids = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    return trainer.compute_loss(trainer.model, _masked_batch(rows_of_ids, [len(pair.prompt) for pair in pairs] * 2))


def _trls_kto(_mode: str, model: Any, pairs: list[TokenPair], folder: Path) -> torch.Tensor:
    trainer = _trls_kto_trainer(model, folder)
    examples = [PackedExample(pair.prompt, (pair.chosen,)) for pair in pairs]
    examples += [PackedExample(pair.prompt, (pair.rejected,)) for pair in pairs]
    labels = [True] * len(pairs) + [False] * len(pairs)
    return trainer.compute_loss(trainer.model, _trls_kto_batch(examples, UNRELATED * 2, labels))


def _trls_kto_trainer(model: Any, folder: Path, **weights: float) -> Any:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    settings = KTOConfig(
        str(folder),
        beta=config().beta,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        **weights,
        **_TRL_ARGUMENTS,
    )
    rows = Dataset.from_list([{"prompt": p, "completion": "b", "label": p == "a"} for p in ("a", "c")])
    trainer = KTOTrainer(model, args=settings, train_dataset=rows, processing_class=_tokenizer(folder))
    trainer.model.delete_adapter("ref")
    return trainer


def _trls_kto_batch(
    examples: list[PackedExample], unrelated: list[PackedExample], labels: list[bool]
) -> dict[str, torch.Tensor]:
    """Return a batch of examples with one answer each, and of the mismatched examples for the divergence."""

    def masked(examples: list[PackedExample]) -> dict[str, torch.Tensor]:
        rows = [example.prompt + example.answers[0] for example in examples]
        return _masked_batch(rows, [len(example.prompt) for example in examples])

    mismatched = {f"KL_{name}": values for name, values in masked(unrelated).items()}
    return {**masked(examples), **mismatched, "label": torch.tensor(labels)}


def _trls_sft(_mode: str, model: Any, pairs: list[TokenPair], _folder: Path) -> torch.Tensor:
    """TRL leaves this loss to the model."""
    (pair,) = pairs
    labels = torch.tensor([[-100] * len(pair.prompt) + pair.chosen])
    return model(input_ids=torch.tensor([pair.prompt + pair.chosen]), labels=labels).loss


_TRL_ARGUMENTS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "activation_checkpointing": False,
    "disable_dropout": True, "save_strategy": "no",
}  # fmt: skip


def _tokenizer(folder: Path) -> Any:
    from tests.tiny import build_tiny_tokenizer

    return build_tiny_tokenizer(folder / "tokenizer")


def _masked_batch(rows: list[list[int]], prompts: list[int]) -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "completion_mask": torch.tensor(
            [
                [0] * prompt + [1] * (len(row) - prompt) + [0] * (length - len(row))
                for row, prompt in zip(rows, prompts, strict=True)
            ]
        ),
    }


def _paired_batch(pair: TokenPair) -> dict[str, torch.Tensor]:
    batch = {}
    for name, row in _paired_row(pair).items():
        batch[name] = torch.tensor([row])
    return batch


def _paired_row(pair: TokenPair) -> dict[str, list[int]]:
    row = {}
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        row[f"{name}_input_ids"] = pair.prompt + answer
        row[f"{name}_attention_mask"] = [1] * len(pair.prompt + answer)
        row[f"{name}_labels"] = [-100] * len(pair.prompt) + answer
    return row


_COURSE: dict[str, Any] = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.01,
    "max_grad_norm": 0.3,
}


def _our_course(folder: Path) -> list[float]:
    from tests.training.test_trainer import Recorder

    recorder = Recorder()
    settings = config(
        batch_size=5, gradient_accumulation_steps=1, max_steps=10, optimizer_type="adamw_torch", warmup_ratio=0.0,
        shuffle_dataset=False, eval_steps=0, save_steps=0, use_4bit=False, **_COURSE,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        adapted(random_model()), settings, training=PAIRS, evaluation=(), pad_id=0, dtype=torch.float32,
        folder=folder, reporter=recorder, resuming=False,
    )  # fmt: skip
    trainer.run(None)
    return [metrics["loss"] for _, metrics in recorder.rows]


def _trls_course(folder: Path) -> list[float]:
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class InOrder(ORPOTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    settings = ORPOConfig(
        str(folder), per_device_train_batch_size=1, gradient_accumulation_steps=5, max_steps=10, logging_steps=1,
        beta=config().beta, warmup_steps=0, optim="adamw_torch", **_COURSE, **_TRL_ARGUMENTS,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    model = adapted(random_model())
    trainer = InOrder(model, args=settings, train_dataset=rows, processing_class=_tokenizer(folder))
    trainer.train_dataset = Dataset.from_list([_paired_row(pair) for pair in PAIRS])
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
