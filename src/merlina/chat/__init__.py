"""Chat with a job's model and its base model: service, memory, blind comparisons, win rate."""
