"""Loading a model into the chat process: plan its claim, admit it, publish it, admit it again, load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from merlina.executors.chat_process import ChatModelSpec, ChatProcess, Claim


@dataclass(frozen=True)
class ModelLoader:
    """Loads models within the memory that runs leave.

    `plan` estimates what a model would claim. `admit` raises InsufficientMemoryError if that memory is not free.
    """

    chat_process: ChatProcess
    plan: Callable[[ChatModelSpec], Claim]
    admit: Callable[[Claim], None]

    def ensure_loaded(self, spec: ChatModelSpec, *, force: bool = False) -> None:
        """Load the model unless it is loaded; must be called within the process's turn.

        `force` skips admission, also for later requests for the same job until its model is unloaded.
        """
        process, status = self.chat_process, self.chat_process.status
        if process.has_loaded(spec):
            if force:
                process.force()
            return
        forced = force or (status.forced and status.job_id == spec.job_id)
        claim = self.plan(spec)
        # A model that may not be loaded does not replace the current one.
        if not forced:
            self.admit(claim)
        process.claim(spec, claim, forced=forced)
        # The supervisor writes a starting run to the database before it reads the claim. The claim is published before
        # the database is read here: of a run and a model that want the same memory, at least one sees the other.
        if not forced:
            self.admit(claim)
        process.load()
