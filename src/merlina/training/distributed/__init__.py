"""Training in several processes: division of a step among ranks, and sharding of a frozen model's layers."""
