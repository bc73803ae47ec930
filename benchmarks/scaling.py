"""Throughput and memory by length of pairs, share of the prompt and size of the vocabulary, against TRL.

    python benchmarks/scaling.py [--of length|prompt|vocabulary|longest]

Both train a small Llama with random weights on pairs of random tokens, one after the other in separate processes as in
`train.py`: 16 pairs, 8 per optimizer step, the first step not counted. `longest` has pairs of 8,192 tokens and a
vocabulary of 128,256 tokens, without TRL, whose logits for one such pair alone would take 17 GB.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cases import Case as Run
from contenders import run_alone
from train import demo_model_folder
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

_HIDDEN, _LAYERS = 256, 4


@dataclass(frozen=True)
class Case:
    """Return pairs in which prompt and one answer have `length` tokens; the prompt has a `share` of them."""

    length: int = 512
    share: float = 0.5
    vocabulary: int = 49_152
    pairs: int = 16
    against_trl: bool = True


CASES = {
    "length": [Case(length=length) for length in (128, 256, 512, 1024, 2048)],
    "prompt": [Case(share=share) for share in (0.2, 0.5, 0.8)],
    "vocabulary": [Case(vocabulary=size) for size in (8_192, 49_152, 128_256)],
    "longest": [Case(length=8192, vocabulary=128_256, pairs=16, against_trl=False)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=list(CASES), help="one series; default: all")
    chosen = parser.parse_args().of
    print(f"{'':10} {'length':>6} {'prompt':>6} {'words':>7} {'tokens/s':>9} {'GB':>6} {'TRL':>6} {'GB':>6}  ratios")
    with tempfile.TemporaryDirectory() as folder:
        for name in [chosen] if chosen else list(CASES):
            for case in CASES[name]:
                _compare(name, case, Path(folder))


def _compare(name: str, case: Case, folder: Path) -> None:
    model, ids = _model(case, folder), folder / "ids.json"
    ids.write_text(json.dumps(list(_pairs(case))))
    run = Run(str(model), str(model), str(ids), max_length=2 * case.length)
    ours = run_alone("merlina", run)
    line = f"{name:10} {case.length:6} {case.share:6.0%} {case.vocabulary:7}"
    line += f" {ours.tokens_per_second:9.0f} {ours.peak_gb:6.2f}"
    if case.against_trl:
        theirs = run_alone("trl", run)
        speed, memory = ours.tokens_per_second / theirs.tokens_per_second, ours.peak_gb / theirs.peak_gb
        line += f" {theirs.tokens_per_second:6.0f} {theirs.peak_gb:6.2f}  ×{speed:.2f} ×{memory:.2f}"
    print(line, flush=True)


def _model(case: Case, folder: Path) -> Path:
    target = folder / f"model-{case.vocabulary}"
    if not target.exists():
        config = LlamaConfig(
            vocab_size=case.vocabulary, hidden_size=_HIDDEN, intermediate_size=3 * _HIDDEN, num_hidden_layers=_LAYERS,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16_384, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).bfloat16().save_pretrained(target)
        AutoTokenizer.from_pretrained(demo_model_folder(folder)).save_pretrained(target)
    return target


def _pairs(case: Case) -> Iterator[list[list[int]]]:
    draw = random.Random(0)  # noqa: S311
    prompt = round(case.length * case.share)
    for _ in range(case.pairs):
        lengths = (prompt, case.length - prompt, case.length - prompt)
        yield [[draw.randrange(3, min(case.vocabulary, 8_192)) for _ in range(length)] for length in lengths]


if __name__ == "__main__":
    main()
