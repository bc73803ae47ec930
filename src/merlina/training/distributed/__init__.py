"""Training on several GPUs: sharing a step among ranks, and sharding a frozen model's layers."""
