"""A case trained by TRL's trainer for its objective, with or without Liger's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cases import BETA, LEARNING_RATE, LORA, TARGETS, Case, Clock, Ids, load_case_model


def run_trl(case: Case, pairs: list[Ids], clock: Clock, folder: Path, *, uses_liger: bool) -> list[float]:
    """Train a case. Returns the loss of each step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    peer, settings_type, rows, placeholder, extra = _trl_objective(case, pairs)
    # Liger's losses replace those of TRL where it has one.
    settings = settings_type(
        output_dir=str(folder), per_device_train_batch_size=case.batch_size,
        gradient_accumulation_steps=case.pairs_per_step // case.batch_size, num_train_epochs=1,
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.0, optim="adamw_torch",
        max_grad_norm=1.0, bf16=True, use_cpu=not torch.cuda.is_available(), max_length=case.max_length,
        report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, use_liger_kernel=uses_liger,
        activation_checkpointing=case.checkpointing, **extra,
    )  # fmt: skip

    class InOrder(peer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = _peer_model(case, folder)
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", lora_dropout=case.dropout, target_modules=TARGETS, **LORA)
    trainer = InOrder(
        model, args=settings, peft_config=lora, callbacks=[Ticks()], train_dataset=Dataset.from_list(placeholder),
        processing_class=AutoTokenizer.from_pretrained(case.tokenizer),
    )  # fmt: skip
    trainer.train_dataset = Dataset.from_list(rows)
    if extra.get("precompute_ref_log_probs"):
        trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", case.batch_size)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def _peer_model(case: Case, folder: Path) -> Any:
    """Return the model of a case as users of TRL load it; in 4 bits by transformers and bitsandbytes themselves."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if case.bits is None:
        return load_case_model(case, folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        case.model, dtype=torch.bfloat16, quantization_config=quantization, device_map={"": device}
    )
    model.config.use_cache = False
    return model


def _trl_objective(case: Case, pairs: list[Ids]) -> tuple[Any, Any, list[Any], list[Any], dict[str, Any]]:
    """Return TRL's trainer and settings for an objective, the rows, rows for its constructor, and further settings.

    The constructor tokenizes, so it receives texts; the rows of token ids replace them afterwards.
    """
    paired = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    if case.objective == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, [_orpo_row(*pair) for pair in pairs], paired, {"beta": BETA}
    if case.objective == "sft":
        from trl import SFTConfig, SFTTrainer

        rows = [{"input_ids": p + c, "labels": [-100] * len(p) + c} for p, c, _ in pairs]
        return SFTTrainer, SFTConfig, rows, [{"prompt": "a", "completion": "b"}], {}
    reference = {"beta": BETA, "precompute_ref_log_probs": True}
    if case.objective == "kto":
        from trl import KTOConfig, KTOTrainer

        placeholder = [{"prompt": "a", "completion": text, "label": True} for text in ("b", "c") * case.batch_size]
        return KTOTrainer, KTOConfig, _kto_rows(pairs, case.batch_size), placeholder, {
            **reference, "train_sampling_strategy": "sequential"
        }  # fmt: skip
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    return DPOTrainer, DPOConfig, rows, paired, reference


def _orpo_row(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, list[int]]:
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        row[f"{name}_input_ids"] = prompt + answer
        row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{name}_labels"] = [-100] * len(prompt) + answer
    return row


def _kto_rows(pairs: list[Ids], batch_size: int) -> list[dict[str, Any]]:
    """Return rows of one answer each. The divergence uses the previous answer of the batch, as TRL does."""
    answers = [chosen or rejected for _, chosen, rejected in pairs]
    previous = [
        answers[index - 1 if index % batch_size else min(index + batch_size, len(pairs)) - 1]
        for index in range(len(pairs))
    ]
    return [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other, "label": bool(chosen)}
        for (prompt, chosen, _), answer, other in zip(pairs, answers, previous, strict=True)
    ]
