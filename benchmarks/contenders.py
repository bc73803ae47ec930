"""One training run by Merlina or by a peer, each in a process of its own, over the same token ids.

    python benchmarks/contenders.py merlina|trl|liger

reads cases from standard input, one JSON object a line, and answers each with a line of JSON. `Contender` does so from
another process. `trl` is the trainer of TRL for the method, `liger` the same with Liger's kernels.

All use LoRA of rank 16 on all seven projections, bfloat16, AdamW with a constant learning rate, and the pairs in their
order. The precomputation of reference log-probabilities is not timed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# A prompt and its two answers as token ids. For kto, one of the answers is empty.
Ids = tuple[list[int], list[int], list[int]]

BETA = 0.1
_LORA = {"r": 16, "lora_alpha": 32}
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LEARNING_RATE = 1e-4
_LLAMA = {
    "vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 16_384,
    "tie_word_embeddings": True,
}  # fmt: skip
# Llamas with random weights: the shapes of Llama 3.2 1B and Llama 3 8B, and one for a CPU.
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "tie_word_embeddings": False,
    },
    "tiny": {
        **_LLAMA, "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A training run. `model` is a folder or a key of `SHAPES`, `tokenizer` a folder, `ids` a file of `Ids`.

    `batch_size` is the number of pairs in a peer's forward pass, `positions` the largest number of positions in
    Merlina's. `warmup_steps` are not timed.
    """

    model: str
    tokenizer: str
    ids: str
    objective: str = "orpo"
    pairs_per_step: int = 8
    batch_size: int = 1
    warmup_steps: int = 1
    positions: int | None = None
    max_length: int = 1024
    bits: Literal[4, 8] | None = None
    checkpointing: bool = False
    dropout: float = 0.0


@dataclass
class Outcome:
    """What a run measured. `error` tells why a run failed; the other values are then zero or empty.

    Tokens are those without padding; a prompt counts with each answer that the objective uses, independent of how
    often it is computed, so that the work is equal. `peak_gb` (10^9 bytes) is that of torch's allocator on a GPU, and
    the largest resident set on a CPU; `reserved_gb` includes the allocator's unused blocks. `positions` are those of
    Merlina's largest pass.
    """

    tokens_per_second: float = 0.0
    peak_gb: float = 0.0
    reserved_gb: float = 0.0
    positions: int = 0
    losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None


class Contender:
    """A process that runs cases as `who`, one at a time."""

    def __init__(self, who: str, python: str = sys.executable) -> None:
        self.who = who
        environment = {"TRL_EXPERIMENTAL_SILENCE": "1", **os.environ}
        if who == "merlina":
            # As in a worker (`merlina.worker.__main__`).
            environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        # What a library prints must not mix with the answers.
        self._process = subprocess.Popen(
            [python, __file__, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, case: Case) -> Outcome:
        """Run a case. Raises SystemExit if the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.who} died with exit code {self._process.wait()}")
        return Outcome(**json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run_alone(who: str, case: Case) -> Outcome:
    """Run one case in a new process. Raises SystemExit if it failed."""
    contender = Contender(who)
    found = contender.run(case)
    contender.close()
    if found.error:
        raise SystemExit(f"{who}: {found.error}")
    return found


def serve(who: str) -> None:
    """Answer cases from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_libraries(who)
    for line in sys.stdin:
        answers.write(json.dumps(asdict(_run(who, Case(**json.loads(line))))) + "\n")
        answers.flush()


def _import_libraries(who: str) -> None:
    # Imports take up to half a minute on some machines, in which another contender may use the GPU.
    for name in ("peft", "merlina.training.loop.trainer") if who == "merlina" else ("peft", "trl.experimental.orpo"):
        importlib.import_module(name)


def _run(who: str, case: Case) -> Outcome:
    import torch

    pairs: list[Ids] = json.loads(Path(case.ids).read_text())
    clock, found = _Clock(), Outcome()
    _forget_memory()
    try:
        with tempfile.TemporaryDirectory() as folder:
            if who == "merlina":
                _run_merlina(case, pairs, clock, Path(folder), found)
            else:
                found.losses = _run_trl(case, pairs, clock, Path(folder), uses_liger=who == "liger")
    except (Exception, SystemExit) as error:
        # A case that fails must not end the others; out of memory is a result.
        found.error = f"{type(error).__name__}: {str(error)[:300]}"
        return found
    finally:
        _forget_memory(keep_peak=True)
    counted = pairs[case.warmup_steps * case.pairs_per_step : len(clock.ticks) * case.pairs_per_step]
    seconds = clock.ticks[-1] - clock.ticks[case.warmup_steps - 1]
    found.tokens_per_second = sum(_num_tokens(case.objective, *pair) for pair in counted) / seconds
    if torch.cuda.is_available():
        found.peak_gb = torch.cuda.max_memory_allocated() / 1e9
        found.reserved_gb = torch.cuda.max_memory_reserved() / 1e9
    else:
        found.peak_gb = _peak_resident_bytes() / 1e9
    return found


def _num_tokens(objective: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> int:
    answers = (chosen,) if objective == "sft" else (chosen, rejected)
    return sum(len(prompt) + len(answer) for answer in answers if answer)


def _forget_memory(*, keep_peak: bool = False) -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if not keep_peak:
            torch.cuda.reset_peak_memory_stats()


def _peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class _Clock:
    """The times at which optimizer steps ended, in seconds."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())


def load_case_model(case: Case, folder: Path) -> Any:
    """Return the model of a case: loaded from its folder as in a run, or with random weights in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from merlina.training.models.loading import ModelSpec, load_model, training_device

    if case.model not in SHAPES:
        return load_model(ModelSpec(case.model, "bfloat16", case.bits, "auto", folder))
    torch.manual_seed(0)
    shape = SHAPES[case.model]
    config = LlamaConfig(
        **shape, head_dim=shape["hidden_size"] // shape["num_attention_heads"], pad_token_id=0, bos_token_id=1,
        eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, dtype="bfloat16",
    )  # fmt: skip
    with torch.device(training_device()):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    return model


def merlina_config(case: Case, **changes: Any) -> Any:
    """Return the configuration with which Merlina trains a case."""
    from merlina.schemas.training import TrainingConfig

    return TrainingConfig.model_validate(
        {
            "base_model": case.model, "output_name": "x",
            "dataset": {"source": {"source_type": "local_file", "file_path": "x"}},
            "training_mode": case.objective, "beta": BETA, "use_4bit": case.bits == 4, "dtype": "bfloat16",
            "lora_r": _LORA["r"], "lora_alpha": _LORA["lora_alpha"], "lora_dropout": case.dropout,
            "target_modules": _TARGETS, "gradient_checkpointing": case.checkpointing,
            "learning_rate": _LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
            "optimizer_type": "adamw_torch", "max_grad_norm": 1.0, "num_epochs": 1, "shuffle_dataset": False,
            "batch_size": case.pairs_per_step, "gradient_accumulation_steps": 1, "max_length": case.max_length,
            "max_prompt_length": case.max_length - 1, "eval_steps": 0, "save_steps": 0, **changes,
        }
    )  # fmt: skip


class _Listener:
    """A reporter that keeps losses, warnings and the size of the largest pass, and the time of each step."""

    def __init__(self, clock: _Clock, found: Outcome) -> None:
        self._clock = clock
        self._found = found

    def progress(self, step: int, total_steps: int) -> None:  # noqa: ARG002
        if step:
            self._clock.tick()

    def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:  # noqa: ARG002
        self._found.losses.append(metrics["loss"])

    def checkpoint(self, step: int, path: Path) -> None: ...

    def model_selected(self, step: int) -> None: ...

    def note(self, level: str, message: str) -> None:
        if level == "warning":
            self._found.notes.append(message)
        elif size := re.match(r"The largest forward pass has ([\d,]+) positions", message):
            self._found.positions = int(size[1].replace(",", ""))

    def should_stop(self) -> bool:
        return False

    def is_pausing(self) -> bool:
        return False


def _run_merlina(case: Case, pairs: list[Ids], clock: _Clock, folder: Path, found: Outcome) -> None:
    import torch

    from merlina.training.loop import trainer as loop
    from merlina.training.models.adapters import make_trainable
    from merlina.training.models.tokens import TokenPair

    config = merlina_config(case)
    torch.manual_seed(0)
    model = make_trainable(load_case_model(case, folder), config).model
    with _pack_positions(loop, case.positions):
        trainer = loop.PreferenceTrainer(
            model, config, training=[TokenPair(*pair, row) for row, pair in enumerate(pairs)], evaluation=[], pad_id=0,
            dtype=torch.bfloat16, folder=folder, reporter=_Listener(clock, found), resuming=False,
        )  # fmt: skip
    trainer.run(None)


@contextlib.contextmanager
def _pack_positions(loop: Any, positions: int | None) -> Any:
    original = loop.pack_positions
    if positions is not None:
        loop.pack_positions = lambda *_, **__: positions
    try:
        yield
    finally:
        loop.pack_positions = original


def _run_trl(case: Case, pairs: list[Ids], clock: _Clock, folder: Path, *, uses_liger: bool) -> list[float]:
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
        learning_rate=_LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.0, optim="adamw_torch",
        max_grad_norm=1.0, bf16=True, use_cpu=not torch.cuda.is_available(), max_length=case.max_length,
        report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, use_liger_kernel=uses_liger,
        activation_checkpointing=case.checkpointing, **extra,
    )  # fmt: skip

    class InOrder(peer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = _peer_model(case, folder)
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", lora_dropout=case.dropout, target_modules=_TARGETS, **_LORA)
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


if __name__ == "__main__":
    import common  # noqa: F401  (makes the tests importable)

    serve(sys.argv[1])
