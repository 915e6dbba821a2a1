"""As root, Postgres gets an account of its own, made once however many platforms start at the same moment."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.embedded import accounts
from perdure.embedded.accounts import Account, other_account

_MADE = Account("pgserver", 995, 995)


@pytest.fixture
def user_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(accounts, "_USER_DATABASE", tmp_path)
    return tmp_path


def _others_may_enter(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _answers(*found: Account | None) -> Callable[[str], Account | None]:
    waiting = list(found)
    return lambda _name: waiting.pop(0)


def test_an_account_is_made_while_no_other_process_can_make_one(
    user_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[bool] = []
    monkeypatch.setattr(accounts, "_look_up", _answers(None, None, _MADE))
    monkeypatch.setattr(accounts, "_create", lambda _name: others.append(_others_may_enter(user_database)))

    assert other_account() == _MADE
    assert others == [False]
    assert _others_may_enter(user_database)


@pytest.mark.usefixtures("user_database")
def test_an_account_that_another_process_made_meanwhile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(accounts, "_look_up", _answers(None, _MADE))
    monkeypatch.setattr(accounts, "_create", made.append)

    assert other_account() == _MADE
    assert made == []
