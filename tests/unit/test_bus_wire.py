from __future__ import annotations

import pytest

from perdure.bus.wire import error_reply, raise_for_error
from perdure.errors import API_ERRORS, ApiError, InternalError, RateLimited, RunFailed


@pytest.mark.parametrize("kind", API_ERRORS.values())
def test_every_error_comes_out_on_the_other_side_as_it_went_in(kind):
    body, _ = error_reply(kind("why", more=1))
    with pytest.raises(kind) as caught:
        raise_for_error(body)
    assert caught.value.message == "why"
    assert caught.value.details["more"] == 1


def test_a_failed_run_keeps_its_run_status_and_cause():
    body, headers = error_reply(RunFailed("r1", "dead", {"type": "ValueError", "message": "no"}))
    assert (body["error"]["run_id"], headers["Nats-Service-Error-Code"]) == ("r1", "422")
    with pytest.raises(RunFailed) as caught:
        raise_for_error(body)
    assert (caught.value.run_id, caught.value.status) == ("r1", "dead")
    assert caught.value.error == {"type": "ValueError", "message": "no"}


def test_a_rate_limit_says_when_to_come_back():
    body, _ = error_reply(RateLimited("slow down", retry_after=7.5))
    with pytest.raises(RateLimited) as caught:
        raise_for_error(body)
    assert caught.value.retry_after == 7.5


def test_a_code_from_the_future_is_still_an_api_error():
    with pytest.raises(InternalError, match="new"):
        raise_for_error({"status": "error", "error": {"code": "brand_new", "message": "new"}})


def test_a_reply_that_is_no_error_is_returned():
    reply = {"status": "failed", "error": {"type": "ValueError", "message": "of the run, not of the request"}}
    assert raise_for_error(reply) is reply


def test_details_never_hide_the_code_or_the_message():
    error = ApiError("said")
    error.details.update(code="other", message="other")
    assert error_reply(error)[0]["error"] == {"code": "internal", "message": "said"}


def test_a_header_is_one_short_line_of_ascii():
    _, headers = error_reply(ApiError("eins\r\nzwei\tdré " + "x" * 1000))
    text = headers["Nats-Service-Error"]
    assert text.startswith("eins zwei dr? x")
    assert text.isascii()
    assert len(text) == 200
