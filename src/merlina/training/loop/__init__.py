"""The training loop: Trainer subclass, callbacks, metrics, alarms, early stopping, reference, memory probe."""
