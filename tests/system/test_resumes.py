"""A resume reports the step it continues from and keeps to it, whether checkpoints or data changed or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merlina import checkpoints
from merlina.errors import ConflictError, InvalidRequestError
from merlina.run_folder.event_log import read_events
from tests.harness import Server, acting_worker, pairs_file, until
from tests.system.test_pauses import assert_same_weights
from tests.system.test_recovery import Config

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"max_steps": 12, "num_epochs": 100, "save_steps": 3, "eval_steps": 0}


def until_crash_after_saving(server: Server, job: str) -> int:
    """Return the step of the last checkpoint that a job left when it crashed on request."""
    status = server.until_ended(job)
    assert status.status == "failed", status
    assert not server.crash_file.exists()
    assert f"from its checkpoint at step {status.last_checkpoint}," in status.error
    return int(status.last_checkpoint or 0)


def spoil(file: Path) -> None:
    """Change the file's last bit."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def last_resumed(server: Server, job: str) -> tuple[int, int | None, str | None]:
    events, _ = read_events(server.folder(job).events_file)
    event = [event for event in events if event.type == "resumed"][-1]
    return event.step, event.announced_step, event.reason


def test_a_damaged_checkpoint_is_never_used_and_the_step_in_use_is_reported(server: Server, config: Config) -> None:
    calm = server.train(config(server, "damage-calm", **SHORT))
    assert server.until_ended(calm).status == "completed"
    server.crash_file.write_text("save.reported:3")
    job = server.train(config(server, "damage", **SHORT))
    folder = server.folder(job).checkpoints_dir
    assert until_crash_after_saving(server, job) == 9

    with server.client() as client:
        # The server detects a missing file and a changed one: the response names the step from which the run continues.
        (folder / "checkpoint-9" / "optimizer.pt").unlink()
        spoil(folder / "checkpoint-6" / "adapter_model.safetensors")
        server.crash_file.write_text("save.reported:2")
        answer = client.resume(job)
        assert "Continuing from the checkpoint at step 3." in answer.message
        missing, changed = answer.warnings
        assert missing == "checkpoint-9: optimizer.pt is missing; the run continues from step 3 instead"
        assert changed.startswith("checkpoint-6: adapter_model.safetensors ")
        assert until_crash_after_saving(server, job) == 9
        assert last_resumed(server, job)[:2] == (3, None)

        # It is damaged after the response: event and log name both steps and the reason.
        with acting_worker(server):
            assert "Continuing from the checkpoint at step 9." in client.resume(job).message
            spoil(folder / "checkpoint-9" / "adapter_model.safetensors")
            server.crash_file.write_text("save.reported")
        assert until_crash_after_saving(server, job) == 9
        step, announced, reason = last_resumed(server, job)
        assert (step, announced) == (6, 9)
        assert "adapter_model.safetensors" in str(reason)
        assert any(
            "step 6 instead of step 9, which was announced: checkpoint-9" in line for line in server.log_lines(job)
        )

        # No checkpoint is left: the run does not start over without `force`.
        for path in folder.glob("checkpoint-*/rng_state.pth"):
            path.unlink()
        with pytest.raises(ConflictError, match=r"checkpoint-9: rng_state\.pth is missing.*force=true to start over"):
            client.resume(job)
        assert client.status(job).status == "failed"
        assert "Starting over at step 1" in client.resume(job, force=True).message
    assert server.until_ended(job).status == "completed"
    assert last_resumed(server, job)[0] == 0
    assert server.losses(job) == server.losses(calm)
    assert_same_weights(server, "damage", "damage-calm")


@pytest.mark.long
def test_checkpoints_of_an_earlier_version_are_resumed_from_and_get_a_manifest(server: Server, config: Config) -> None:
    server.crash_file.write_text("save.reported:3")
    job = server.train(config(server, "earlier", **SHORT))
    folder = server.folder(job).checkpoints_dir
    assert until_crash_after_saving(server, job) == 9
    for path in folder.iterdir():
        (path / "manifest.json").unlink()
        (path / "whole").touch()
    # A checkpoint that was being removed when its process died: a file is missing.
    (folder / "checkpoint-9" / "optimizer.pt").unlink()
    with server.client() as client:
        server.crash_file.write_text("resume.loaded")
        answer = client.resume(job)
        assert "Continuing from the checkpoint at step 6." in answer.message
        (warning,) = answer.warnings
        assert "written by an earlier version, without a manifest, and optimizer.pt is missing" in warning
        assert server.until_ended(job).status == "failed"
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-6"]
        assert checkpoints.survey(folder, checksums=True).step == 6
        assert not list(folder.glob("*/whole"))
        assert "step 6." in client.resume(job).message
    assert server.until_ended(job).status == "completed"
    assert list(server.losses(job)) == list(range(1, 13))
    assert sum("at step 6 was written by an earlier version" in line for line in server.log_lines(job)) == 1


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_checkpoint_of_an_earlier_version_that_lacks_a_file_gets_no_manifest(tmp_path: Path, name: str) -> None:
    path = earlier_checkpoint(tmp_path, 4)
    (path / name).unlink()
    assert checkpoints.adopt(tmp_path) == []
    assert not (path / "manifest.json").exists()
    (unusable,) = checkpoints.survey(tmp_path).unusable
    assert "earlier version, without a manifest" in unusable.reason
    assert name in unusable.reason


def test_an_earlier_version_s_best_checkpoint_is_kept_and_an_interrupted_adoption_is_repeated(tmp_path: Path) -> None:
    paths = [earlier_checkpoint(tmp_path, step, best=2) for step in (2, 4, 6, 8)]
    (paths[3] / ".manifest.json.partial").touch()
    assert checkpoints.survey(tmp_path).step == 8
    assert checkpoints.adopt(tmp_path) == [8, 6, 4, 2]
    assert checkpoints.adopt(tmp_path) == []
    assert checkpoints.survey(tmp_path, checksums=True).newest == paths[3]
    checkpoints.rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]


def earlier_checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "whole"):
        (path / name).touch()
    state = {"global_step": step, "best_model_checkpoint": f"{folder}/checkpoint-{best}" if best else None}
    (path / "trainer_state.json").write_text(json.dumps(state))
    return path


def test_a_resume_with_other_data_or_without_its_folder_is_refused_unless_it_starts_over(
    server: Server, config: Config
) -> None:
    file = pairs_file(server.root / "replaced.jsonl", rows=40)
    before = file.read_bytes()
    body = config(server, "replaced", **SHORT)
    body["dataset"]["source"]["file_path"] = str(file)
    server.crash_file.write_text("save.reported:2")
    job = server.train(body)
    assert until_crash_after_saving(server, job) == 6
    with server.client() as client:
        pairs_file(file, rows=30)
        with pytest.raises(ConflictError) as refused:
            client.resume(job)
        assert "40 usable rows when the run started, 30 now" in str(refused.value)
        assert "4 pairs held out for evaluation then, 3 now" in str(refused.value)
        file.write_bytes(before.replace(b"What is 7", b"Who is 7"))
        with pytest.raises(ConflictError, match="the first difference is in usable rows 1 to 40"):
            client.resume(job)
        # The same rows in another form are the same data.
        file.write_bytes(before.replace(b'", "', b'",  "'))
        server.crash_file.write_text("save.reported")
        assert "step 6." in client.resume(job).message
        assert until_crash_after_saving(server, job) == 9
        file.write_bytes(before.replace(b"What is 7", b"Who is 7"))
        server.crash_file.write_text("save.reported")
        assert client.resume(job, force=True).message.startswith("Starting over at step 1")
        assert until_crash_after_saving(server, job) == 3

        # Without its folder, it starts over once more.
        folder = server.folder(job)
        shutil.rmtree(folder.path)
        assert "Starting over" in client.resume(job, force=True).message
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.mark_file.exists()
    assert server.until_ended(job).status == "completed"
    assert list(server.losses(job)) == list(range(1, 13))
    assert Path(server.status(job).output_dir or "").is_dir()


def test_a_run_that_an_earlier_version_started_resumes_without_rows_that_it_skipped(
    server: Server, config: Config
) -> None:
    """The earlier version recorded no version of its rules, by which answers of several turns were skipped."""
    file = pairs_file(server.root / "turns.jsonl", rows=40)
    usable = file.read_text().splitlines()

    def rewrite(skipped: dict[str, Any]) -> None:
        others = [json.dumps(skipped) if number % 10 == 3 else line for number, line in enumerate(usable)]
        file.write_text("".join(f"{line}\n" for line in others))

    def turns(first: str, last: str) -> list[dict[str, str]]:
        asked = {"role": "user", "content": "And another?"}
        return [{"role": "assistant", "content": first}, asked, {"role": "assistant", "content": last}]

    body = config(server, "earlier-calm", **SHORT)
    body["dataset"]["source"]["file_path"] = str(file)
    # No version uses these rows, so that the run has the pairs that the earlier version found.
    rewrite({"prompt": "Name a river.", "chosen": "", "rejected": "No."})
    calm = server.train(body)
    assert server.until_ended(calm).status == "completed"
    server.crash_file.write_text("save.reported:2")
    job = server.train({**body, "output_name": "earlier"})
    assert until_crash_after_saving(server, job) == 6

    rewrite({"prompt": "Name a river.", "chosen": turns("The Po.", "The Rhine."), "rejected": turns("A hill.", "No.")})
    recorded = server.folder(job).fingerprint_file
    with server.client() as client:
        with pytest.raises(ConflictError, match="36 usable rows when the run started, 40 now"):
            client.resume(job)
        found = json.loads(recorded.read_text())
        del found["conversion_rules"]
        recorded.write_text(json.dumps(found))
        server.crash_file.write_text("save.reported")
        assert "step 6." in client.resume(job).message
        assert until_crash_after_saving(server, job) == 9
        assert "step 9." in client.resume(job).message
    assert server.until_ended(job).status == "completed"
    assert (
        sum("was started by a version of Merlina that skips such rows" in line for line in server.log_lines(job)) == 2
    )
    assert_same_weights(server, "earlier-calm", "earlier")


@pytest.mark.long
def test_a_request_to_start_over_that_is_withdrawn_or_was_never_committed_removes_nothing(
    server: Server, config: Config
) -> None:
    server.crash_file.write_text("save.reported:2")
    job = server.train({**config(server, "withdrawn", **SHORT), "hf_token": "hf_secret"})
    assert until_crash_after_saving(server, job) == 6
    folder = server.folder(job)
    with acting_worker(server), server.client() as client:
        for withdraw in (client.pause, client.stop):
            assert "Starting over" in client.resume(job, force=True).message
            assert folder.start_over_file.exists()
            withdraw(job)
            assert not folder.start_over_file.exists()
            assert server.status(job).last_checkpoint == 6
        assert folder.read_secrets() == {"hf_token": "hf_secret"}
        # As left by a server that was killed before its commit.
        folder.start_over_file.touch()
        assert "step 6." in client.resume(job).message
    assert server.until_ended(job).status == "completed"
    assert last_resumed(server, job)[0] == 6


def test_a_start_over_of_a_job_that_never_began_counts_once(server: Server, config: Config) -> None:
    """The first attempt takes no checkpoint but must withdraw the request, or the next resume would follow it."""
    with server.client() as client:
        with acting_worker(server):
            job = server.train(config(server, "forced-at-once", **SHORT))
            client.pause(job)
            assert "Starting over" in client.resume(job, force=True).message
            cancelled = server.train({**config(server, "cancelled-at-once", **SHORT), "hf_token": "hf_secret"})
            client.stop(cancelled)
            # The cancellation deleted its token, and a run must not start without it.
            with pytest.raises(InvalidRequestError, match="cancelled in the queue"):
                client.resume(cancelled, force=True)
            server.crash_file.write_text("save.reported:2")
        assert until_crash_after_saving(server, job) == 6
        assert "Continuing from the checkpoint at step 6." in client.resume(job).message
    assert server.until_ended(job).status == "completed"
    assert last_resumed(server, job)[0] == 6


@pytest.mark.long
def test_a_resume_uses_the_tokens_of_a_large_data_set_again(server: Server, config: Config) -> None:
    """More than 64 MiB of them: 930 for each row."""
    rows = server.root / "large.jsonl"
    answers = {"chosen": "It is certain. " * 45, "rejected": "Who can say? " * 45}
    with rows.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"prompt": f"What is {number}?", **answers}) + "\n")
    large = {"dataset": {"source": {"source_type": "local_file", "file_path": str(rows)}}, "max_length": 1024}
    calm = server.train(config(server, "large-calm", **SHORT | large))
    assert server.until_ended(calm).status == "completed"
    until(lambda: not server.folder(calm).tokens_dir.exists(), 10, "removal of the tokens")

    server.crash_file.write_text("save.reported:1")
    job = server.train(config(server, "large", **SHORT | large))
    until_crash_after_saving(server, job)
    server.crash_file.write_text("save.reported:1")
    with server.client() as client:
        client.resume(job)
        until_crash_after_saving(server, job)
        assert last_note_on_rows(server, job) == "20,000 pairs were encoded by an earlier attempt"
        spoil(server.folder(job).tokens_dir / "ids")
        client.resume(job)
    assert server.until_ended(job).status == "completed"
    assert last_note_on_rows(server, job) == "All rows are encoded again, since ids is damaged"
    assert_same_weights(server, "large-calm", "large")


def last_note_on_rows(server: Server, job: str) -> str:
    events, _ = read_events(server.folder(job).events_file)
    notes = [event.message for event in events if event.type == "log"]
    return next(note for note in reversed(notes) if "encoded by" in note or "encoded again" in note)
