"""Files that commands write: whole, or what was there before."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tcm_sync import InferResult
from tcm_sync.cli.failures import CommandError
from tcm_sync.cli.files import write_whole
from tcm_sync.cli.infer import _save
from tcm_sync.cli.report import Report

LARGE = bytes(300_000)


@pytest.fixture
def full_disk():
    """Let no file grow beyond 100,000 bytes: the write fails in the middle, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.usefixtures("full_disk")
def test_a_file_that_does_not_fit_leaves_nothing_and_one_that_was_there_unchanged(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"as before")
    for path in (new, old):
        with pytest.raises(CommandError, match=f"'{path}' was not written: "):
            write_whole(path, lambda file: file.write(LARGE))
    assert names(tmp_path) == ["old"]
    assert old.read_bytes() == b"as before"


@pytest.mark.usefixtures("full_disk")
def test_outputs_that_do_not_fit_leave_no_file_that_could_be_taken_for_whole(tmp_path):
    result = InferResult("m", {"small": np.arange(3), "large": np.zeros(10**6)}, b"{}", 1, 0.1)
    with pytest.raises(CommandError, match=r"large\.npy' was not written"):
        _save(result, tmp_path)
    assert names(tmp_path) == ["small.npy"]
    assert np.load(tmp_path / "small.npy").tolist() == [0, 1, 2]


@pytest.mark.usefixtures("full_disk")
def test_a_report_that_does_not_fit_leaves_the_one_before(tmp_path):
    path = tmp_path / "out.html"
    path.write_text("an earlier report")
    report = Report(path, SimpleNamespace())
    report._draw = lambda *_, **__: "x" * 300_000
    report.latencies = report._timeline = None
    report._queue = SimpleNamespace(samples=[], reason="", failed=0)
    figures = {
        "seconds": 1.0,
        "latency_ms": {},
        "model_name": "m",
        "per_second": 1.0,
        "answered": 1,
        "errors": {},
        "repeats": {},
        "unsent": 0,
        "bytes_sent": 1,
        "bytes_received": 1,
        "bytes_shared": 0,
    }
    with pytest.raises(CommandError, match=r"out\.html' was not written: "):
        report.write(figures, {}, "")
    assert names(tmp_path) == ["out.html"]
    assert path.read_text() == "an earlier report"


def test_a_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"before")
    path.chmod(0o604)
    link.symlink_to(path)
    write_whole(link, lambda file: file.write(LARGE))
    assert link.is_symlink()
    assert path.read_bytes() == LARGE
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert names(tmp_path) == ["file", "link"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_device_is_written_in_place():
    with pytest.raises(CommandError, match="'/dev/full' was not written: "):
        write_whole(Path("/dev/full"), lambda file: file.write(LARGE))
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.usefixtures("full_disk")
def test_in_a_folder_that_cannot_be_written_to_a_file_is_written_in_place(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    inode = path.stat().st_ino
    monkeypatch.setattr(os, "access", lambda *_: False)
    write_whole(path, lambda file: file.write(b"after"))
    assert (path.read_bytes(), path.stat().st_ino) == (b"after", inode)
    with pytest.raises(CommandError, match="was not written"):
        write_whole(path, lambda file: file.write(LARGE))
    assert path.read_bytes() == b"", "half a file could be taken for a whole one"
