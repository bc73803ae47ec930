"""Rules without I/O that the layers above share: job states and their transitions, adapter targets, units of memory."""
