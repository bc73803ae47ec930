"""The metrics of the model that a run saves, which need not be the newest ones (see `load_best_at_end`)."""

from __future__ import annotations

_EVALUATION = "eval_"
# Metrics of the run rather than of a step: the last values are used.
_RUN_METRICS = ("tokens_per_second", "memory_gib", "gpu_memory")


class SavedModelMetrics:
    """Collects the metrics of a run in order. `step` is the optimizer step of the saved weights, once known."""

    def __init__(self) -> None:
        self.step: int | None = None
        self._newest: dict[str, float] = {}
        self._evaluations: dict[int, dict[str, float]] = {}
        # The newest training metrics at each evaluation, since any evaluated model may become the saved one.
        self._training_at: dict[int, dict[str, float]] = {}

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step, of an evaluation after it, or of both."""
        evaluation = {name: value for name, value in metrics.items() if name.startswith(_EVALUATION)}
        training = {name: value for name, value in metrics.items() if name not in evaluation and name != "epoch"}
        self._newest = {**self._newest, **training}
        if evaluation:
            self._evaluations[step] = evaluation
            self._training_at[step] = self._newest

    def discard_after(self, step: int) -> None:
        """Discard the evaluations of later steps, which a resumed run repeats; at step 0, discard everything."""
        if step == 0:
            self._newest, self._evaluations, self._training_at = {}, {}, {}
            return
        self._evaluations = {at: metrics for at, metrics in self._evaluations.items() if at <= step}
        self._training_at = {at: metrics for at, metrics in self._training_at.items() if at <= step}

    def final_metrics(self) -> dict[str, float]:
        """Return `initial_eval_…` (before the first step), `final_eval_…` and `final_…` (of training), and `kept_step`.

        A saved model that was not evaluated, as after a stop between two evaluations, has no `final_eval_…`. Its
        training metrics are those of the newest row up to its step.
        """
        saved = max(self._evaluations, default=0) if self.step is None else self.step
        final = self._training_at.get(saved, self._newest) if saved else self._newest
        final = final | {name: self._newest[name] for name in _RUN_METRICS if name in self._newest}
        final |= self._evaluations.get(saved, {}) if saved else {}
        initial = {f"initial_{name}": value for name, value in self._evaluations.get(0, {}).items()}
        kept = {} if self.step is None else {"kept_step": float(self.step)}
        return {**initial, **{f"final_{name}": value for name, value in final.items()}, **kept}
