"""Everything about the engine on one GPU: speed and memory against TRL, parts of a pass, exactness, and whole runs.

    python benchmarks/gpu.py [--only engine|parts|exactness|product] [--first-row 1] [--seconds 200]

Needs no network: models have random weights of real shapes. Peers are the trainers of TRL, and the same with Liger's
kernels (package `liger-kernel`). Unsloth is not among them: it requires older versions of transformers and datasets
than Merlina, so that both cannot be installed together.

`--seconds` limits the time of `engine`; rows that begin later are skipped, and `--first-row` begins with one of them.
Without a GPU, a tiny model shows that the command works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import common
import torch
from cases import SHAPES, Case, Ids, Outcome, load_case_model
from contenders import Contender
from merlina_run import merlina_config

_PAIRS_PER_STEP, _STEPS, _WARMUP_STEPS = 8, 8, 2
# Pairs differ in length: the shortest have this share of the longest.
_SHORTEST = 0.5
_PARTS = ("engine", "parts", "exactness", "product")


@dataclass(frozen=True)
class Row:
    """A line of the table: Merlina's case, and the peers' batch sizes to try, of which the best counts."""

    objective: str = "orpo"
    model: str = "1b"
    share: float = 0.5
    length: int = 1024
    options: dict[str, object] = field(default_factory=dict)
    liger: tuple[int, ...] = (8,)
    trl: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        options = " ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.model} {self.objective}, {self.length} tokens, {self.share:.0%} prompt {options}".strip()


# The most important first, since time may run out.
ROWS = [
    Row("orpo", liger=(8, 4), trl=(8,)),
    Row("dpo", liger=(8, 4), trl=(8,)),
    Row("orpo", share=0.2),
    Row("orpo", share=0.8),
    Row("dpo", share=0.2),
    Row("dpo", share=0.8),
    Row("orpo", "8b", liger=(2, 4)),
    Row("dpo", "8b", liger=(4,)),
    Row("sft", trl=(8,)),
    Row("kto", trl=(8,)),
    Row("orpo", options={"checkpointing": True}),
    Row("orpo", options={"bits": 4}),
    Row("orpo", length=4096, liger=(2,)),
    Row("orpo", options={"dropout": 0.05}, liger=()),
    Row("orpo", options={"positions": 8192}, liger=()),
    Row("orpo", length=4096, options={"positions": 32_768}, liger=()),
    Row("orpo", "8b", options={"checkpointing": True}, liger=()),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_PARTS, help="default: all four")
    parser.add_argument("--first-row", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=200)
    arguments = parser.parse_args()
    print(_machine(), flush=True)
    for part in [arguments.only] if arguments.only else _PARTS:
        print(f"\n## {part}", flush=True)
        if part == "engine":
            with tempfile.TemporaryDirectory() as folder:
                _engine(Path(folder), arguments.first_row, time.monotonic() + arguments.seconds)
        else:
            # In a process of its own, which returns its memory of the GPU.
            subprocess.run([sys.executable, Path(__file__).with_name(f"gpu_{part}.py")], check=False)


def _machine() -> str:
    import transformers

    name = "no GPU"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        name = f"{card.name}, {card.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"
    begun = time.perf_counter()
    for _ in range(10_000_000):
        pass
    loop = time.perf_counter() - begun
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}; {versions}; ten million iterations of an empty Python loop take {loop:.2f} s"


def _engine(folder: Path, first_row: int, deadline: float) -> None:
    tokenizer = folder / "tokenizer"
    common.build_tiny_model(tokenizer)
    contenders = {who: Contender(who) for who in ("merlina", "liger", "trl")}
    print("tokens/s, peak GB (reserved GB), first loss; ratios: throughput and memory to the peer with most tokens/s")
    rows = ROWS if torch.cuda.is_available() else _small_rows()
    for number, row in enumerate(rows[first_row - 1 :], first_row):
        if time.monotonic() > deadline:
            print(f"{number}. {row.label}: skipped, no time left")
            continue
        case = _case(row, folder, tokenizer)
        ours = contenders["merlina"].run(case)
        peers = [(who, size) for who in ("liger", "trl") for size in getattr(row, who)]
        found = {f"{who} b{size}": contenders[who].run(replace(case, batch_size=size)) for who, size in peers}
        print(f"{number}. {row.label}")
        _print_row(ours, found)
        print(f"    estimate: {_estimate(row, case, ours)}", flush=True)
    for contender in contenders.values():
        contender.close()


def _small_rows() -> list[Row]:
    # Not in 4 bits, whose kernels for the CPU are slow; Liger's kernels need a GPU.
    rows = [row for row in ROWS if row.model == "1b" and "bits" not in row.options]
    return [replace(row, model="tiny", length=64, liger=()) for row in rows]


def _case(row: Row, folder: Path, tokenizer: Path) -> Case:
    pairs_per_step = 2 * _PAIRS_PER_STEP if row.objective == "kto" else _PAIRS_PER_STEP
    ids = folder / f"{row.objective == 'kto'}-{row.length}-{row.share}.json"
    if not ids.exists():
        ids.write_text(json.dumps(list(_pairs(row, pairs_per_step * _STEPS))))
    model = row.model if "bits" not in row.options else str(_saved_model(row.model, folder))
    return Case(
        model, str(tokenizer), str(ids), row.objective, pairs_per_step, warmup_steps=_WARMUP_STEPS,
        max_length=2 * row.length, **row.options,  # type: ignore[arg-type]
    )  # fmt: skip


def _saved_model(name: str, folder: Path) -> Path:
    """Write a model with random weights, since bitsandbytes quantizes while it loads."""
    target = folder / name
    if not target.exists():
        load_case_model(Case(name, "", ""), folder).save_pretrained(target)
        torch.cuda.empty_cache()
    return target


def _pairs(row: Row, count: int) -> Iterator[Ids]:
    """Yield pairs whose lengths, and those of their answers, differ as in real data."""
    draw = random.Random(0)  # noqa: S311
    for number in range(count):
        length = round(row.length * (1 - (1 - _SHORTEST) * draw.random()))
        prompt = max(4, round(length * row.share))
        answers = [length - prompt, max(4, round((length - prompt) * (0.5 + 0.5 * draw.random())))]
        if draw.random() < 0.5:
            answers.reverse()
        sections = [[draw.randrange(3, 300) for _ in range(size)] for size in (prompt, *answers)]
        if row.objective == "kto":
            sections[1 + number % 2] = []
        yield sections[0], sections[1], sections[2]


def _print_row(ours: Outcome, peers: dict[str, Outcome]) -> None:
    print(f"    {'merlina':10} {_described(ours)}")
    for name, outcome in peers.items():
        print(f"    {name:10} {_described(outcome)}")
    for note in ours.notes:
        print(f"    warning: {note}")
    fastest = max(peers.values(), key=lambda outcome: outcome.tokens_per_second, default=Outcome())
    if fastest.tokens_per_second and ours.tokens_per_second:
        speed, memory = ours.tokens_per_second / fastest.tokens_per_second, ours.peak_gb / fastest.peak_gb
        print(f"    ratios     ×{speed:.2f} ×{memory:.2f}")


def _described(outcome: Outcome) -> str:
    if outcome.error:
        return outcome.error
    return (
        f"{outcome.tokens_per_second:10,.0f} {outcome.peak_gb:7.2f} ({outcome.reserved_gb:.2f})"
        f"  {outcome.losses[0]:.4f} … {outcome.losses[-1]:.4f}"
    )


def _estimate(row: Row, case: Case, ours: Outcome) -> str:
    """Return the estimated peak for passes of the size that the run made, and its ratio to the measured one."""
    from transformers import LlamaConfig

    from merlina.preflight.memory_estimate import estimate
    from merlina.schemas.inspection import DataFacts
    from merlina.schemas.operations import InspectModel
    from merlina.worker.helper.inspection import inspect_model

    if not ours.positions or not torch.cuda.is_available():
        return "none"
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[row.model]
        LlamaConfig(**shape, head_dim=shape["hidden_size"] // shape["num_attention_heads"]).save_pretrained(folder)
        facts = inspect_model(InspectModel(model_name=folder, token=None, trust_remote_code=False))
    longest = max(_lengths(json.loads(Path(case.ids).read_text())))
    data = DataFacts(
        rows=1, all_rows=True, usable=1, longest=row.length, highest_id=300, most_tokens=longest, mean_tokens=None,
        findings=[],
    )  # fmt: skip
    bytes_ = estimate(merlina_config(case), facts, data, "cuda", budget=ours.positions).total
    return f"{bytes_ / 1e9:.2f} GB for {ours.positions:,} positions, ×{bytes_ / 1e9 / ours.peak_gb:.2f} of the peak"


def _lengths(pairs: Sequence[Ids]) -> Iterator[int]:
    for prompt, chosen, rejected in pairs:
        yield len(prompt) + len(chosen) + len(rejected)


if __name__ == "__main__":
    main()
