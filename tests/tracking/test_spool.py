"""The spool keeps every entry through crashes, damage and full disks, and the sender brings each to the store."""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stormlit.tracking import sender as sender_module
from stormlit.tracking.sender import Sender, send_all
from stormlit.tracking.spool import LANES, Backlog, Entry, Spool


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


def batches(spool: Spool, lane: str = "records", points_at_most: int = 1000) -> list[list[Entry]]:
    return [entries for entries, _ in spool.pending(lane, points_at_most)]


class Store:
    """Keeps what it is sent; fails, after or without taking it, while told to."""

    where = "the store"

    def __init__(self) -> None:
        self.taken: list[Entry] = []
        self.down = self.loses_answers = False
        self.artifacts_down = False

    def send(self, entries: list[Entry]) -> None:
        if self.down or (self.artifacts_down and "artifact" in entries[0]):
            raise ConnectionError("server is gone")
        self.taken += entries
        if self.loses_answers:
            raise TimeoutError("no answer")


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- the file ---


def test_entries_are_pending_until_they_are_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool" / "run.spool")
    odd = {"points": {"nan": "nan", "x": 0.1 + 0.2}, "step": 7, "time": 1}
    artifact = {"artifact": "media/ü\n.mp4", "folder": "media"}
    for entry in (points(0), points(1), artifact, points(2), {"end": "FINISHED", "time": 9}, odd):
        spool.append(entry)
    assert batches(spool, points_at_most=4) == [
        [points(0), points(1)],
        [points(2)],
        [{"end": "FINISHED", "time": 9}],
        [odd],
    ]
    assert batches(spool, "artifacts")[0] == [artifact]
    assert str(spool.backlog()) == "8 metric points, 1 artifacts, the run's status"
    positions = [position for _, position in spool.pending("records", 4)]
    spool.mark_sent("records", positions[0])
    again = Spool(spool.path)  # another process
    assert batches(again)[0] == [points(2)]
    again.mark_sent("records", positions[-1])
    assert batches(again) == [] and not again.all_sent()
    again.mark_sent("artifacts", [position for _, position in again.pending("artifacts", 4)][-1])
    assert again.all_sent() and not again.backlog()


def test_a_batch_never_exceeds_its_size_unless_one_call_does(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run.spool")
    generator = random.Random(0)
    for step in range(100):
        spool.append(points(step, generator.randint(1, 12)))
    found = batches(spool, points_at_most=10)
    assert [entry["step"] for batch in found for entry in batch] == list(range(100))
    assert all(len(batch) == 1 or sum(len(entry["points"]) for entry in batch) <= 10 for batch in found)
    assert max(map(len, found)) > 1


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


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 50, b'00000000 {"records":1,"artifacts":1}\n'])
def test_a_damaged_position_file_means_from_the_beginning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.spool"
    entries = filled(path)
    (tmp_path / "run.sent").write_bytes(content)
    assert batches(Spool(path)) == [entries]
    assert f"{tmp_path / 'run.sent'} is damaged" in caplog.text


def test_positions_of_another_spool_mean_from_the_beginning(tmp_path: Path) -> None:
    """Beyond the end, or in the middle of a line."""
    path = tmp_path / "run.spool"
    entries = filled(path)
    for position in (10**9, path.stat().st_size - 3, -1):
        spool = Spool(path)
        spool.mark_sent("records", position)
        spool.close()
        assert batches(Spool(path)) == [entries]


def test_a_full_disk_tears_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "run.spool")
    spool.append(points(0))
    write, room = os.write, [10]

    def write_or_fail(file: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(file, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", write_or_fail)
    for step in (1, 2):
        spool.append(points(step))
    assert list(spool.entries()) == [points(0)] and not spool.all_sent()
    assert [record.message for record in caplog.records] == [
        f"{spool.path} cannot be written, metrics are kept in memory: No space left on device"
    ]
    room[0] = 10**6
    spool.sync()
    assert list(spool.entries()) == [points(step) for step in range(3)]


def test_a_closed_spool_writes_into_no_other_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "run.spool")
    spool.close()
    with (tmp_path / "other").open("w"):  # gets the number of the closed file
        spool.append(points(0))
    assert (tmp_path / "other").read_bytes() == b"" and "cannot be written" in caplog.text


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
    assert sender.drain()
    sender.stop()
    assert store.taken == [points(step) for step in range(30)]
    assert [record.message for record in caplog.records] == [
        "the store does not take records, they are kept for later: server is gone",
        "the store answers again: the records kept since are sent",
    ]


def test_a_lost_answer_makes_the_same_entries_go_again(spool: Spool) -> None:
    store = Store()
    store.loses_answers = True
    for step in range(3):
        spool.append(points(step))
    sender = Sender(spool, store, interval=0.0)
    wait_until(lambda: store.taken)
    store.loses_answers = False
    spool.append(points(3))
    assert sender.drain()
    sender.stop()
    assert store.taken[:3] == store.taken[-4:-1] == [points(step) for step in range(3)], "with the same time stamps"


def test_artifacts_that_fail_hold_up_no_metrics(spool: Spool) -> None:
    store = Store()
    store.artifacts_down = True
    artifact = {"artifact": "film.mp4", "folder": "media"}
    sender = Sender(spool, store, interval=0.0)
    spool.append(points(0))
    spool.append(artifact)
    spool.append(points(1))
    wait_until(lambda: len(store.taken) == 2)
    assert not spool.all_sent() and str(spool.backlog()) == "1 artifacts"
    store.artifacts_down = False
    assert sender.drain()
    sender.stop()
    assert store.taken == [points(0), points(1), artifact]


def test_a_store_that_fails_is_asked_ever_less_often_and_for_less(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, store = [0.0], Store()
    monkeypatch.setattr(sender_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Sender, "_run", lambda self: None)  # the test serves the lane itself
    sender = Sender(spool, store, interval=10.0)
    for step in range(1000):
        spool.append(points(step))
    sizes: list[int] = []
    store.send = lambda entries: sizes.append(len(entries) * 2) or 1 / 0  # type: ignore[method-assign,func-returns-value]
    pauses = []
    for _ in range(9):
        sender._serve(sender._lanes[0])
        pauses.append(sender._next_try(sender._lanes[0]) - clock[0])
        clock[0] += 1000.0
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert sizes == [250, 124, 62, 50, 50, 50, 50, 50, 50]
    sender._lanes[0].failures = 10_000  # a week of them
    assert sender._next_try(sender._lanes[0]) - sender._lanes[0].last_try == 60.0
    store.send = lambda entries: None  # type: ignore[method-assign]
    sender._serve(sender._lanes[0])
    assert sender._next_try(sender._lanes[0]) - clock[0] == 10.0 and sender._lanes[0].failures == 0


def test_nothing_that_a_store_raises_ends_the_thread(spool: Spool) -> None:
    store = Store()
    sender = Sender(spool, store, interval=0.0)
    send, failed = store.send, []

    def fail(entries: list[Entry]) -> None:
        failed.append(entries)
        raise RuntimeError  # without a message

    store.send = fail  # type: ignore[method-assign]
    spool.append(points(0))
    wait_until(lambda: failed)
    store.send = send  # type: ignore[method-assign]
    assert sender.drain()
    sender.stop()
    assert store.taken == [points(0)]


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
        wait_until(lambda: sender._lanes[0].failures)
        store.down = False
        assert sender.drain()
        sender.stop()
        spool.close()
        spool.append(points(1))  # refused, with a warning
    finally:
        logger.removeHandler(handler)
    assert store.taken == [points(0)]


def test_draining_does_not_wait_for_the_interval_when_it_comes_during_a_call(spool: Spool) -> None:
    """What is appended while a batch is on its way must follow it at once, not an hour later."""
    store = Store()
    take, called, released = store.send, threading.Event(), threading.Event()

    def send(entries: list[Entry]) -> None:
        called.set()
        released.wait(timeout=10)
        take(entries)

    store.send = send  # type: ignore[method-assign]
    spool.append(points(0))
    sender = Sender(spool, store, interval=3600.0)
    assert called.wait(timeout=10)
    spool.append(points(1))
    threading.Timer(0.2, released.set).start()
    assert sender.drain()
    sender.stop()
    assert store.taken == [points(0), points(1)]


def test_draining_gives_up_on_a_dead_store(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "PATIENCE", 0.2)
    store = Store()
    store.down = True
    sender = Sender(spool, store, interval=0.0)
    spool.append(points(0))
    assert not sender.drain(at_most=math.inf)
    sender.stop()


def test_draining_takes_a_limited_time_even_if_the_store_answers(spool: Spool) -> None:
    store = Store()
    sent: list[Entry] = []
    store.send = lambda entries: sent.extend(entries) or time.sleep(0.05)  # type: ignore[method-assign,func-returns-value]
    for step in range(200):
        spool.append({"end": "KILLED", "time": step})  # sent one by one
    sender = Sender(spool, store, interval=0.0)
    assert not sender.drain(at_most=0.2)
    sender.stop()
    assert 0 < len(sent) < 200


def test_sending_it_all_counts_what_was_sent(spool: Spool) -> None:
    store, sent = Store(), Backlog()
    for entry in (points(0), {"artifact": "a", "folder": ""}, points(1), {"end": "KILLED", "time": 2}):
        spool.append(entry)
    send_all(spool, store, sent)
    assert sent == Backlog(points=4, artifacts=1, records=1) and spool.all_sent()
    assert {lane: batches(spool, lane) for lane in LANES} == {"records": [], "artifacts": []}
