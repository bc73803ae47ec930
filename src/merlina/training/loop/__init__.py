"""The training loop: Trainer subclass, passes, callbacks, metrics, alarms, early stopping, reference, memory probe."""
