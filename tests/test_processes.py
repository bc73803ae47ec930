from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import psutil

from merlina.processes import ProcessId, identify


def test_an_identity_matches_its_process_until_it_ends_and_no_other() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identify(child.pid)
    assert identity is not None
    assert identity.is_alive()
    assert ProcessId.parse(str(identity)) == identity
    assert not replace(identity, start_ticks=identity.start_ticks + 1).is_alive()
    assert not replace(identity, boot_id="of-another-boot").is_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    # Its parent has not asked for its exit code yet: a zombie runs nothing.
    assert not identity.is_alive()
    child.wait()
    assert identify(child.pid) is None
    assert child.stdin is not None
    child.stdin.close()


def test_an_invalid_identity_is_none() -> None:
    for text in ("", "12", "12 1700000000.25", "twelve boot 3", "1 boot 2 3"):
        assert ProcessId.parse(text) is None


def test_identities_written_by_earlier_versions_match_living_processes() -> None:
    started = psutil.Process().create_time()
    assert ProcessId.parse(f"{os.getpid()} {started}") == identify(os.getpid())
    assert ProcessId.parse(f"{os.getpid()} {started - 60}") is None
