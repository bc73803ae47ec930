"""The training loop: Trainer subclass, arguments, callbacks, metrics, alarms, early stopping, reference, memory probe."""
