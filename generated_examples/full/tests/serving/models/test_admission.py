"""The limits of the work in flight."""

import pytest

from full_server.serving.models.admission import Admission
from full_server.serving.models.model_errors import Overloaded


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
