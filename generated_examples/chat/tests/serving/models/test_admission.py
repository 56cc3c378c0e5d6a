"""The limits of the work in flight."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from chat_server.serving.models.admission import Admission, BackgroundWork, background_var
from chat_server.serving.models.model_errors import Overloaded


def test_requests_and_tokens_are_bounded_and_come_back() -> None:
    admission = Admission(max_requests=3, max_tokens=100)
    with admission.enter(tokens=10, requests=2) as place:
        with pytest.raises(Overloaded), admission.enter(tokens=1, requests=2):
            pass
        with pytest.raises(Overloaded), admission.enter(tokens=91):
            pass
        place.tokens = 60  # the estimate was too low
        with pytest.raises(Overloaded), admission.enter(tokens=41):
            pass
        with admission.enter(tokens=40):
            pass
        with admission.enter(tokens=40):
            pass
    with admission.enter(tokens=100, requests=3):
        pass


def test_an_idle_model_takes_whatever_comes() -> None:
    admission = Admission(max_requests=1, max_tokens=10)
    with admission.enter(tokens=1000, requests=5):
        with pytest.raises(Overloaded), admission.enter(tokens=1):
            pass
    with admission.enter(tokens=1):
        pass


@contextmanager
def background(cancelled: list[str], name: str) -> Iterator[BackgroundWork]:
    work = BackgroundWork(lambda: cancelled.append(name), lambda: None)
    token = background_var.set(work)
    try:
        yield work
    finally:
        background_var.reset(token)


def test_background_work_takes_the_room_that_requests_leave() -> None:
    admission = Admission(max_requests=100, max_tokens=1000, slots=8, slot_tokens=80)
    with ExitStack() as requests, background([], "line") as work:
        for _ in range(4):
            background_var.set(None)
            requests.enter_context(admission.enter(tokens=1))
        background_var.set(work)
        with pytest.raises(Overloaded), admission.enter(tokens=1, requests=3):
            pass
        with pytest.raises(Overloaded), admission.enter(tokens=57):
            pass
        assert not work.entered
        with admission.enter(tokens=56, requests=2):
            assert work.entered
            # Work that has entered gets the further places that it needs.
            with admission.enter(tokens=5):
                pass


def test_background_work_gives_way_the_latest_first() -> None:
    admission = Admission(max_requests=10, max_tokens=1000, slots=4, slot_tokens=80)
    cancelled: list[str] = []
    with ExitStack() as stack:
        for name in ("first", "second", "third"):
            with background(cancelled, name):
                stack.enter_context(admission.enter(tokens=10))
        stack.enter_context(admission.enter(tokens=10))
        assert cancelled == []
        stack.enter_context(admission.enter(tokens=1))
        assert cancelled == ["third"]
        stack.enter_context(admission.enter(tokens=60))
        assert cancelled == ["third", "second", "first"]


def test_background_work_refuses_no_request() -> None:
    admission = Admission(max_requests=2, max_tokens=10, slots=1)
    with background([], "line"), admission.enter(tokens=10):
        background_var.set(None)
        with admission.enter(tokens=5), admission.enter(tokens=5):
            pass
