"""Training: from token ids to trained weights.

Pure torch and transformers: nothing here knows about jobs, HTTP, the database or settings. Two modules use the
environment: `distributed/ranks.py` sets the network interface of gloo and NCCL, and `engine/kernel_choice.py` reads
TRITON_INTERPRET.

`objectives` has the losses. The subpackages are `models` (base model, tokenization, adapters), `engine` (packs and
their log-probabilities), `loop` (the Trainer and what surrounds a step) and `distributed` (several processes).
"""
