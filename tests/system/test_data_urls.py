"""Data sets at addresses, from a preview to the finished model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data_host import DataHost, data_host
from tests.harness import Server, acting_worker, pairs_file, training_config, until
from tests.system.test_hub import assert_nowhere
from tests.system.test_recovery import Config

pytestmark = pytest.mark.slow

SECRETS = {"AWS_ACCESS_KEY_ID": "access-key-of-the-server", "AWS_SECRET_ACCESS_KEY": "secret-key-of-the-server"}
ROUTES = ("preview", "preview-formatted", "columns")


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DataHost, Server]]:
    """A host of data files, and a server that may read from it over HTTP and from its bucket `pairs`."""
    root = tmp_path_factory.mktemp("hosted")
    with data_host() as host:
        allowed = f"{host.origin}/open, s3://pairs"
        settings = {"ALLOWED_DATA_URLS": allowed, "AWS_ENDPOINT_URL": host.origin, "AWS_DEFAULT_REGION": "us-east-1"}
        server = Server(root, {**settings, **SECRETS}).start()
        yield host, server
        host.released.set()
        server.stop()
        server.end_workers()


@pytest.fixture
def host(hosted: tuple[DataHost, Server], tmp_path: Path) -> DataHost:
    host = hosted[0]
    for name, rows in (("pairs.jsonl", 40), ("news.jsonl", 6)):
        content = pairs_file(tmp_path / name, rows).read_bytes()
        host.files |= {f"open/{name}": content, f"pairs/{name}": content, f"closed/{name}": content}
    return host


def at(url: str, **fields: Any) -> dict[str, Any]:
    return {"source_type": "url", "url": url, **fields}


def test_rows_at_an_address_are_shown_like_those_of_a_file(host: DataHost, hosted: tuple[DataHost, Server]) -> None:
    _, server = hosted
    (server.root / "pairs.jsonl").write_bytes(host.files["open/pairs.jsonl"])
    local = {"source_type": "local_file", "file_path": str(server.root / "pairs.jsonl")}
    with server.http() as http:
        for address in (f"{host.origin}/open/pairs.jsonl", "s3://pairs/pairs.jsonl"):
            for route in ROUTES:
                shown, expected = (
                    http.post(f"/dataset/{route}", json={"source": source}).json() for source in (at(address), local)
                )
                # A file on this machine is counted.
                assert shown.pop("total_rows") is None
                expected.pop("total_rows")
                assert shown == expected, (route, address)
        later = http.post("/dataset/preview?row=39", json={"source": at(f"{host.origin}/open/pairs.jsonl")}).json()
        assert [row["prompt"] for row in later["samples"]] == ["What is 38 plus 38?", "What is 39 plus 39?"]


def test_an_address_outside_the_setting_is_refused_by_every_route(
    host: DataHost, hosted: tuple[DataHost, Server], config: Config
) -> None:
    _, server = hosted
    asked = len(host.asked)
    with server.http() as http:
        for address in (f"{host.origin}/closed/pairs.jsonl", "s3://other/pairs.jsonl", "gs://pairs/pairs.jsonl"):
            dataset = {"source": at(address)}
            responses = [http.post(f"/dataset/{route}", json=dataset) for route in ROUTES]
            responses += [
                http.post(path, json=config(server, "no", dataset=dataset)) for path in ("/validate", "/train")
            ]
            for response in responses:
                assert response.status_code == 403, response.text
                assert "ALLOWED_DATA_URLS" in response.json()["detail"]
        secret = f"{host.origin}/open/pairs.jsonl?X-Amz-Signature=s3cret"
        for address in (secret, secret.replace("127", "user:s3cret@127")):
            dataset = {"source": at(address)}
            for path, body in (("/dataset/preview", dataset), ("/train", config(server, "no", dataset=dataset))):
                refused = http.post(path, json=body)
                assert refused.status_code in (400, 422)
                assert "source.url: " in refused.text
                assert "s3cret" not in refused.text
            saved = http.post("/configs/save", json={"name": "no", "config": config(server, "no", dataset=dataset)})
            assert saved.status_code in (400, 422)
            assert "s3cret" not in saved.text
        host.redirects["open/moved.jsonl"] = "/closed/pairs.jsonl"
        moved = http.post("/dataset/preview", json={"source": at(f"{host.origin}/open/moved.jsonl")})
        assert moved.status_code == 400
        assert f"redirects to {host.origin}, to an address that ALLOWED_DATA_URLS" in moved.json()["detail"]
    assert not [one for one in host.asked[asked:] if "closed" in one]
    assert_nowhere(server.root, b"s3cret")


def test_a_run_on_addresses_has_the_losses_of_one_on_files_and_its_resume_recognizes_replaced_rows(
    host: DataHost, hosted: tuple[DataHost, Server], config: Config
) -> None:
    _, server = hosted
    names = ("pairs.jsonl", "news.jsonl")
    for name in names:
        (server.root / name).write_bytes(host.files[f"open/{name}"])
    local = [{"source_type": "local_file", "file_path": str(server.root / name)} for name in names]
    remote = [at(f"{host.origin}/open/pairs.jsonl"), at("s3://pairs/news.jsonl")]
    ended = []
    for number, (source, news) in enumerate((local, remote)):
        dataset = {"source": source, "eval_sources": {"news": news}}
        content = config(server, f"addressed-{number}", dataset=dataset, max_steps=6, save_steps=3, eval_steps=3)
        with server.http() as http:
            report = http.post("/validate", json=content).json()
            assert report["valid"], report
            assert report["results"]["rows_examined"] == 40
        if source is remote[0]:
            server.crash_file.write_text("save.reported:1")
        ended.append(server.until_ended(server.train(content)))
    job = ended[1].job_id
    assert [one.status for one in ended] == ["completed", "failed"]

    kept = host.files["open/pairs.jsonl"]
    host.files["open/pairs.jsonl"] = kept.replace(b"runes", b"moons")
    with server.client() as client:
        client.resume(job)
        refused = server.until_ended(job)
        assert refused.status == "failed"
        assert "The data set is not the one that this run was trained on until step 3" in str(refused.error)
        host.files["open/pairs.jsonl"] = kept
        client.resume(job)
    ended[1] = server.until_ended(job)
    assert [(one.status, one.error) for one in ended] == [("completed", None)] * 2
    assert server.losses(ended[0].job_id) == server.losses(job)
    assert (ended[0].final_metrics or {})["final_eval_loss"] == (ended[1].final_metrics or {})["final_eval_loss"]
    for folder in (server.root / "data", server.root / "models"):
        assert_nowhere(folder, *(secret.encode() for secret in SECRETS.values()))


def test_the_rows_of_parquet_are_counted_before_a_run(
    host: DataHost, hosted: tuple[DataHost, Server], config: Config
) -> None:
    _, server = hosted
    rows = [{"prompt": f"What is {n}?", "chosen": "It is.", "rejected": "No."} for n in range(2500)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    host.files["open/many.parquet"] = bytes(sink.getvalue())
    host.files["open/many.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    steps, totals = {}, {}
    with server.http() as http:
        for name in ("many.parquet", "many.jsonl"):
            dataset = {"source": at(f"{host.origin}/open/{name}"), "test_size": 0}
            report = http.post("/validate", json=config(server, "counted", dataset=dataset)).json()
            assert report["valid"], report
            steps[name] = report["results"]["time"] and report["results"]["time"]["steps"]
            totals[name] = http.post("/dataset/columns", json=dataset).json()["total_rows"]
    # Four pairs in a step.
    assert steps == {"many.parquet": 625, "many.jsonl": None}
    assert totals == {"many.parquet": 2500, "many.jsonl": None}


def test_a_run_on_a_file_that_cannot_be_read_fails_with_the_cause(
    host: DataHost, hosted: tuple[DataHost, Server], config: Config
) -> None:
    _, server = hosted
    signed = "/open/news.jsonl?X-Amz-Signature=s3cret"
    host.redirects["open/signed.jsonl"] = signed
    with acting_worker(server):
        jobs = [
            server.train(config(server, name, dataset={"source": at(f"{host.origin}/open/{name}.jsonl")}))
            for name in ("pairs", "signed")
        ]
        host.cuts, host.statuses["open/news.jsonl"] = 99, 403
    broken, denied = (server.until_ended(job) for job in jobs)
    host.cuts = 0
    del host.statuses["open/news.jsonl"]
    assert (broken.status, denied.status) == ("failed", "failed")
    assert "The connection to the server of" in str(broken.error)
    assert str(denied.error).startswith(f"Access to '{host.origin}/open/signed.jsonl' is denied")
    assert f"GET {signed}" in host.asked
    assert_nowhere(server.root, b"s3cret")


def test_a_host_that_does_not_respond_delays_no_local_preview(host: DataHost, hosted: tuple[DataHost, Server]) -> None:
    _, server = hosted
    local = {"source_type": "local_file", "file_path": str(pairs_file(server.root / "here.jsonl"))}
    host.hangs = True

    def preview(source: dict[str, Any]) -> int:
        with server.http() as http:
            return http.post("/dataset/preview", json={"source": source}).status_code

    with ThreadPoolExecutor(8) as threads:
        hanging = [threads.submit(preview, at(f"{host.origin}/open/pairs.jsonl")) for _ in range(6)]
        # The other two wait for a process.
        until(lambda: host.hanging == 4, 60, "four requests that get no response")
        assert [threads.submit(preview, local).result() for _ in range(2)] == [200, 200]
        assert not [one for one in hanging if one.done()]
        host.hangs = False
        host.released.set()
        assert {one.result() for one in hanging} <= {200, 400}


def test_a_setting_that_changes_before_the_start_counts(
    tmp_path: Path, tiny_model: Path, new_server: Callable[..., Server]
) -> None:
    with data_host({"open/pairs.jsonl": pairs_file(tmp_path / "pairs.jsonl").read_bytes()}) as host:
        server = new_server(ALLOWED_DATA_URLS=host.origin)
        config = training_config(tiny_model, Path("unused"), "late")
        url = f"{host.origin}/open/pairs.jsonl"
        with acting_worker(server):
            jobs = [
                server.train({**config, "output_name": name, "dataset": {"source": at(url), **more}})
                for name, more in (("first", {}), ("second", {"eval_source": at(url)}))
            ]
            server.stop()
            server.settings["ALLOWED_DATA_URLS"] = "https://elsewhere.example"
            server.start()
        for job in jobs:
            status = server.until_ended(job)
            assert status.status == "failed"
            assert "ALLOWED_DATA_URLS" in str(status.error)
        assert json.loads((server.folder(jobs[0]).path / "order.json").read_text())["allowed_data_urls"] == [
            "https://elsewhere.example"
        ]
