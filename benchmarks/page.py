"""Size and load time of the page, with an empty list and with a run of 100,000 metric rows.

    python benchmarks/page.py [--rows 100000] [--rounds 5]

Chromium on this machine, with a new profile each time, so that its cache is empty. `there` is the time from the
navigation to the first view that can be used: the list's heading, or all charts of the run drawn. `frames` are the
longest gaps between two frames while a chart is zoomed into ten times and out again.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import statistics
import tempfile
from pathlib import Path

from common import Server
from history import METRICS, fill
from playwright.sync_api import Browser, Page, sync_playwright

from merlina.api.page import STATIC
from merlina.run_folder.event_log import EventLog
from merlina.schemas.events import Ended, Logged, Metrics, Progress, Started

_GAPS = """async (act) => {
  const gaps = []; let last = performance.now(), going = true;
  const tick = (now) => { gaps.push(now - last); last = now; if (going) requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
  const plot = document.querySelector('.u-over');
  const box = plot.getBoundingClientRect();
  const mouse = (type, share, where = plot) => where.dispatchEvent(
    new MouseEvent(type, { bubbles: true, button: 0, clientX: box.left + share * box.width, clientY: box.top + 50 }),
  );
  for (let round = 0; round < 10; round += 1) {
    mouse('mousemove', 0.2);
    mouse('mousedown', 0.2);
    mouse('mousemove', 0.8);
    mouse('mouseup', 0.8, document);
    await new Promise((done) => setTimeout(done, 150));
  }
  plot.dispatchEvent(new MouseEvent('dblclick', { bubbles: true }));
  await new Promise((done) => setTimeout(done, 300));
  going = false;
  return Math.max(...gaps.slice(2));
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    scripts = [len(gzip.compress(path.read_bytes())) for path in (STATIC / "assets").glob("*.js")]
    print(f"script, compressed: {sum(scripts) / 1000:.1f} kB")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        empty = Server(Path(folder) / "empty")
        empty.root.mkdir()
        full = Server(Path(folder) / "full")
        full.root.mkdir()
        fill(full.root, 2, options.rows + 100, options.rows)
        for server in (empty, full):
            server.start()
        try:
            _report("empty list", [_there(browser, empty.url, "h1") for _ in range(options.rounds)])
            job = full.history()[-1]
            _write_log(full.root / "data/runs" / job, options.rows)
            run = f"{full.url}/runs/{job}"
            _report(f"run of {options.rows:,} rows", [_there(browser, run, ".u-over") for _ in range(options.rounds)])
            _report("frames", [_frames(browser, run) for _ in range(options.rounds)])
        finally:
            empty.stop()
            full.stop()
            browser.close()


def _write_log(folder: Path, rows: int) -> None:
    """Write the event log of a run with as many rows, from which the page's log and timeline are read."""
    folder.mkdir(parents=True)
    log = EventLog(folder / "events.jsonl")
    log.append(Started(attempt=1, pid=1))
    for step in range(1, rows + 1):
        log.append(Progress(step=step, total_steps=rows))
        log.append(Metrics(step=step, metrics=METRICS))
        if step % 1000 == 0:
            log.append(Logged(level="info", message=f"{step} steps are done"))
    log.append(Ended(state="completed"))
    log.close()


def _there(browser: Browser, url: str, selector: str) -> float:
    page = _open(browser, url, selector)
    seconds: float = page.evaluate("performance.now()") / 1000
    page.context.close()
    return seconds


def _frames(browser: Browser, url: str) -> float:
    page = _open(browser, url, ".u-over")
    gap: float = page.evaluate(_GAPS) / 1000
    page.context.close()
    return gap


def _open(browser: Browser, url: str, selector: str) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(url)
    page.locator(selector).first.wait_for()
    return page


def _report(what: str, seconds: list[float]) -> None:
    print(f"{what}: {statistics.median(seconds):.3f} s median, {max(seconds):.3f} s at most of {len(seconds)}")


if __name__ == "__main__":
    main()
