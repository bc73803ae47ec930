"""Entry point of `python -m merlina.worker.helper`."""

from __future__ import annotations

from merlina.worker.helper.process import main

main()
