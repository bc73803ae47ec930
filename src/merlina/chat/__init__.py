"""Chat with a job's model and its base model: the service, its claim on memory, blind comparisons and their win rate."""
