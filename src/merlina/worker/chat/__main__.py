"""Entry point of `python -m merlina.worker.chat`."""

from __future__ import annotations

from merlina.worker.chat.process import main

main()
