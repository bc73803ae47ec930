"""Facts about the machine, asked of its own interfaces: never through torch, so that asking costs no GPU memory."""
