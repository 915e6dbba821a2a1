"""Ids of new runs: nobody's guess, and in the order of time, so that indexes grow at one end."""

from __future__ import annotations

import time

from perdure.subjects import RUN_ID, new_run_id


def test_ids_are_different_also_within_a_millisecond(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    made = {new_run_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(each) == 32 and RUN_ID.fullmatch(each) for each in made)


def test_ids_made_later_sort_later(monkeypatch):
    moments = [1_000_000, 999_999_000_000, 1_700_000_000_000_000_000, 1_700_000_000_001_000_000, 2**62]
    made = []
    for moment in moments:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment)
        made.append(new_run_id())
    assert made == sorted(made)
