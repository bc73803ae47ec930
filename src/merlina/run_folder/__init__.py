"""The run folder, through which the server and the worker of a run communicate: its files, the order, the event log."""
