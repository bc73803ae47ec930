"""Facts about the machine, read from the system and the driver: torch would occupy GPU memory."""
