"""Job records for tests that need no database."""

from __future__ import annotations

from typing import Any

from merlina.storage.jobs import JobRecord

_BLANK: dict[str, Any] = {
    "number": 1, "job_id": "job_1", "state": "queued", "priority": 3, "config": {}, "base_model": "m",
    "output_name": "o", "target_dir": "/m/o", "dataset_file": None, "attempt": 1, "attempt_seen": 0, "gpus": None,
    "progress": 0.0, "step": None, "total_steps": None, "loss": None, "eval_loss": None, "learning_rate": None,
    "gpu_memory": None, "last_checkpoint": None, "error": None, "output_dir": None, "final_metrics": None,
    "wandb_url": None, "created_at": 0.0, "updated_at": 0.0, "started_at": None, "ended_at": None,
    "stop_requested_at": None, "pause_requested_at": None,
    "preempted_by": None, "preemptible": False, "memory_needed_mb": None, "worker": None,
    "deleting": False, "last_seq": 0, "log_offset": 0, "command_count": 0, "skipped_lines": 0,
}  # fmt: skip


def job(**changes: Any) -> JobRecord:
    own_folder = {"target_dir": f"/m/{changes.get('job_id', 'job_1')}"}
    return JobRecord(**{**_BLANK, **own_folder, **changes})
