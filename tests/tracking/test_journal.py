"""The spool keeps every entry through crashes, damage and full disks, and the sender brings each to the store."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stormlit.tracking import journal
from stormlit.tracking.journal import Entry, Sender, Spool


def points(step: int, count: int = 2) -> Entry:
    return {"points": {f"m{index}": step + index / 10 for index in range(count)}, "step": step, "time": 1000 + step}


def filled(path: Path, count: int = 5) -> list[Entry]:
    """A closed spool with ``count`` entries; returns them."""
    entries = [points(step) for step in range(count)]
    spool = Spool(path)
    for entry in entries:
        spool.append(entry)
    spool.close()
    return entries


def batches(spool: Spool, lane: str = "records") -> list[list[Entry]]:
    return [entries for entries, _ in spool.pending(lane)]


class Store:
    """Keeps what it is sent; fails while told to."""

    where = "the store"

    def __init__(self) -> None:
        self.taken: list[Entry] = []
        self.down = self.artifacts_down = False

    def send(self, entries: list[Entry]) -> None:
        if self.down or (self.artifacts_down and "artifact" in entries[0]):
            raise ConnectionError("server is gone")
        self.taken += entries


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- the file ---


def test_entries_are_pending_until_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "POINTS_PER_BATCH", 4)
    spool = Spool(tmp_path / "spool" / "run.spool")
    odd = {"points": {"nan": "nan", "x": 0.1 + 0.2}, "step": 7, "time": 1}
    artifact = {"artifact": "media/ü\n.mp4", "folder": "media"}
    end = {"end": "FINISHED", "time": 9}
    for entry in (points(0), points(1), artifact, points(2), end, odd, points(3, 5)):
        spool.append(entry)
    assert batches(spool) == [[points(0), points(1)], [points(2)], [end], [odd], [points(3, 5)]]
    assert batches(spool, "artifacts")[0] == [artifact]
    assert spool.backlog() == "13 metric points, 1 artifacts, the run's status"
    positions = [position for _, position in spool.pending("records")]
    spool.mark_sent("records", positions[0])
    again = Spool(spool.path)  # another process
    assert batches(again)[0] == [points(2)]
    again.mark_sent("records", positions[-1])
    assert batches(again) == [] and not again.all_sent()
    again.mark_sent("artifacts", [position for _, position in again.pending("artifacts")][-1])
    assert again.all_sent() and not again.backlog()


def test_a_line_torn_anywhere_costs_that_line_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.spool"
    entries = filled(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        caplog.clear()
        spool = Spool(path)
        spool.append(points(99))
        lost_newline_only = end == len(whole) - 1
        assert list(spool.entries()) == [*entries[: 5 if lost_newline_only else 4], points(99)]
        torn = last < end < len(whole) - 1
        assert [record.message for record in caplog.records] == [
            f"{path}: the line that ends at byte {end + 1} is damaged and was skipped"
        ] * torn
        spool.close()


def test_a_changed_byte_costs_its_line_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.spool"
    entries = filled(path)
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        place = generator.randrange(len(whole))
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        caplog.clear()
        spool = Spool(path)
        found = list(spool.entries())
        # A newline that is changed joins two lines; one that appears splits a line.
        at_most = 2 if whole[place : place + 1] == b"\n" else 1
        missing = [entry for entry in entries if entry not in found]
        assert all(entry in entries for entry in found) and len(missing) <= at_most
        assert not missing or str(path) in caplog.text
        spool.close()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 50, b'00000000 {"records":1,"artifacts":1}\n', None])
def test_positions_that_are_damaged_or_beyond_the_end_mean_from_the_beginning(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "run.spool"
    entries = filled(path)
    if content is None:
        Spool(path).mark_sent("records", 10**9)
    else:
        (tmp_path / "run.sent").write_bytes(content)
    assert batches(Spool(path)) == [entries]


def test_a_full_disk_tears_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "run.spool")
    spool.append(points(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.size + 10, limits[1]))
    try:
        for step in (1, 2):
            spool.append(points(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(spool.entries()) == [points(0)] and not spool.all_sent()
    assert [record.message for record in caplog.records] == [
        f"{spool.path} cannot be written, metrics are kept in memory: File too large"
    ]
    spool.sync()
    assert list(spool.entries()) == [points(step) for step in range(3)]


def test_a_killed_process_loses_nothing_it_appended(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        spool = Spool(tmp_path / "run.spool")
        for step in range(100):
            spool.append(points(step))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert list(Spool(tmp_path / "run.spool").entries()) == [points(step) for step in range(100)]


# --- the thread ---


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "run.spool")


def test_an_outage_loses_nothing_and_repeats_nothing(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    sender = Sender(spool, store, interval=0.0)
    for step in range(30):
        store.down = 10 <= step < 20
        spool.append(points(step))
        if step % 10 == 9:
            wait_until(spool.all_sent if step != 19 else lambda: caplog.records)
    assert sender.finish(10.0)
    assert store.taken == [points(step) for step in range(30)]
    assert [record.message for record in caplog.records] == [
        "the store does not take records, they are kept for later: server is gone",
        "the store answers again: the records kept since are sent",
    ]


def test_artifacts_that_fail_hold_up_no_metrics(spool: Spool) -> None:
    store = Store()
    store.artifacts_down = True
    artifact = {"artifact": "film.mp4", "folder": "media"}
    sender = Sender(spool, store, interval=0.0)
    spool.append(points(0))
    spool.append(artifact)
    spool.append(points(1))
    wait_until(lambda: len(store.taken) == 2)
    assert not spool.all_sent() and spool.backlog() == "1 artifacts"
    store.artifacts_down = False
    assert sender.finish(10.0)
    assert store.taken == [points(0), points(1), artifact]


def test_a_store_that_fails_is_asked_ever_less_often(spool: Spool) -> None:
    sender = Sender(spool, Store(), interval=10.0)
    pauses = [sender._pause(failures) for failures in (0, 1, 2, 3, 6, 7, 8, 10_000)]
    assert pauses == [10.0, 1.0, 2.0, 4.0, 32.0, 60.0, 60.0, 60.0]
    assert sender.finish(10.0)


def test_a_terminal_that_has_closed_ends_no_thread(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a warning raises, in the thread that sends and in the one that trains."""
    with open(os.devnull, "w") as closed:
        handler = logging.StreamHandler(closed)
    monkeypatch.setattr(sys, "stderr", closed)
    logger = logging.getLogger("stormlit")
    logger.addHandler(handler)
    try:
        with pytest.raises(ValueError, match="closed file"):
            logger.warning("the stream is closed indeed")
        store = Store()
        store.down = True
        sender = Sender(spool, store, interval=0.0)
        spool.append(points(0))
        wait_until(lambda: sender.failing)
        store.down = False
        assert sender.finish(10.0)
    finally:
        logger.removeHandler(handler)
    assert store.taken == [points(0)]


def test_the_end_does_not_wait_for_the_interval_when_it_comes_during_a_call(spool: Spool) -> None:
    """What is appended while a batch is on its way must follow it at once, not an hour later."""
    store = Store()
    take, called, released = store.send, threading.Event(), threading.Event()

    def send(entries: list[Entry]) -> None:
        called.set()
        released.wait(timeout=10)
        take(entries)

    store.send = send  # type: ignore[method-assign]
    spool.append(points(0))
    sender = Sender(spool, store, interval=0.1)
    assert called.wait(timeout=10)
    sender._interval = 3600.0
    spool.append(points(1))
    threading.Timer(0.2, released.set).start()
    assert sender.finish(10.0)
    assert store.taken == [points(0), points(1)]


def test_the_end_takes_a_limited_time(spool: Spool) -> None:
    store = Store()
    sent: list[Entry] = []
    store.send = lambda entries: sent.extend(entries) or time.sleep(0.05)  # type: ignore[method-assign,func-returns-value]
    for step in range(200):
        spool.append({"end": "KILLED", "time": step})  # sent one by one
    sender = Sender(spool, store, interval=0.0)
    assert not sender.finish(0.2)
    sender.join(5.0)
    assert 0 < len(sent) < 200 and not sender.is_alive(), "nor does it go on after that"
