"""Training: from token ids to trained weights.

Pure torch and transformers: nothing here knows about jobs, HTTP, the database or environment variables. Subpackages:
`models` (base model, tokenization, adapters), `engine` (packs and their log-probabilities), `objectives` (losses),
`loop` (the Trainer and what surrounds a step), `distributed` (several processes).
"""
