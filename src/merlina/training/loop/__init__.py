"""The training loop: Trainer subclass, its arguments and callbacks, metrics, alarms, early stopping, reference pass, memory probe."""
