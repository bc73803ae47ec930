"""Training throughput and peak memory against TRL: same model, pairs, LoRA, precision, optimizer, pairs per step.

    python benchmarks/train.py [--against trl] [--objective orpo|dpo|sft|kto] [--data FILE] [--model FOLDER]
                               [--pairs 64] [--rounds 2] [--peer-batch-size 1]

Each round runs both in separate processes, one after the other, over the same pairs in the same order, and alternates
which runs first. The first step of a run is a warm-up and is not counted. The output has one row for each run: tokens
per second (each prompt counts with each of its answers, independent of what is computed, so that the work is equal),
the largest resident set, and the loss of each step. The last two lines are the ratios of the medians.

TRL computes each pair's prompt twice and pads, so its best batch size is the one with the least padding;
--peer-batch-size sets another. The defaults are the demo's pairs and the demo's SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import common  # noqa: F401  (makes the tests importable)
from cases import Case, Outcome
from contenders import run_alone

_MAX_LENGTH, _MAX_PROMPT_LENGTH = 1024, 512


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        model = str(arguments.model or demo_model_folder(Path(folder)))
        ids = str(_tokenized(arguments, model, Path(folder)))
        case = Case(
            model, model, ids, arguments.objective, batch_size=arguments.peer_batch_size, max_length=_MAX_LENGTH
        )
        runs: dict[str, list[Outcome]] = {"merlina": [], arguments.against: []}
        print(f"{'run':>9} {'tokens/s':>9} {'peak GB':>8}  losses", flush=True)
        for number in range(arguments.rounds):
            for who in sorted(runs, reverse=number % 2 == 1):
                found = run_alone(who, case)
                runs[who].append(found)
                losses = " ".join(f"{loss:.4f}" for loss in found.losses)
                print(f"{who:>9} {found.tokens_per_second:9.0f} {found.peak_gb:8.2f}  {losses}", flush=True)
    for name, attribute in (("throughput", "tokens_per_second"), ("memory", "peak_gb")):
        ours, theirs = (statistics.median(getattr(run, attribute) for run in each) for each in runs.values())
        print(f"{name} ×{ours / theirs:.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["trl"], default="trl")
    parser.add_argument("--objective", choices=["orpo", "dpo", "sft", "kto"], default="orpo")
    parser.add_argument("--data", type=Path, help="pairs in any row form")
    parser.add_argument("--model", type=Path, help="a model folder of transformers")
    parser.add_argument("--pairs", type=int, default=64, help="number of pairs, sampled evenly")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-batch-size", type=int, default=1, help="pairs in one forward pass of the peer")
    return parser.parse_args()


def demo_model_folder(folder: Path) -> Path:
    """Write the demo's model to a folder, with weights in bfloat16."""
    import torch
    from memory_estimate import demo_model

    from merlina.training.models.loading import ModelSpec, load_model
    from merlina.training.models.tokenizer_loading import load_tokenizer

    gguf = demo_model()
    model = load_model(ModelSpec(str(gguf), "bfloat16", None, "auto", folder)).to(torch.bfloat16)
    target = folder / "model"
    model.save_pretrained(target)
    load_tokenizer(str(gguf), None).save_pretrained(target)
    return target


def _tokenized(arguments: argparse.Namespace, model: str, folder: Path) -> Path:
    """Write token ids of the pairs, encoded as in a run, to a file that both sides read.

    For kto, every second pair keeps only its rejected answer, the others only the chosen one.
    """
    from importlib.resources import files

    from merlina.data.conversation import Pair
    from merlina.data.dataset import read_pairs
    from merlina.schemas.datasets.config import DatasetConfig
    from merlina.training.models.tokenizer_loading import load_tokenizer
    from merlina.worker.encoding import PairEncoder

    file = arguments.data or Path(str(files("merlina") / "samples" / "wizard_pairs.jsonl"))
    dataset = DatasetConfig.model_validate({"source": {"source_type": "local_file", "file_path": str(file)}})
    pairs = [row for row in read_pairs(dataset, file, None) if isinstance(row, Pair)]
    encoder = PairEncoder(load_tokenizer(model, None), "model", dataset.format, _MAX_LENGTH, _MAX_PROMPT_LENGTH)
    taken = [pairs[index * len(pairs) // arguments.pairs] for index in range(min(arguments.pairs, len(pairs)))]
    ids = [encoder.encode(pair).tokens for pair in taken]
    sections = [[pair.prompt, pair.chosen, pair.rejected] for pair in ids]
    if arguments.objective == "kto":
        for number, pair in enumerate(sections):
            pair[1 + number % 2] = []
    path = folder / "ids.json"
    path.write_text(json.dumps(sections))
    return path


if __name__ == "__main__":
    main()
