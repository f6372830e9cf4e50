import os
import signal
import threading
from pathlib import Path

import pytest

from supertiny.errors import Stopped
from supertiny.train.stopping import STOP, end_if_told, saved_on_sigterm, told_to_stop


class Ended(Exception):
    """What ends the process in these tests."""


@pytest.fixture(autouse=True)
def _sigterm_raises():
    def end(*_: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("alone")
def test_the_workers_hear_of_the_first_sigterm_and_the_second_ends_the_process(tmp_path: Path) -> None:
    file = tmp_path / STOP
    with saved_on_sigterm(file):
        assert not told_to_stop(file)
        os.kill(os.getpid(), signal.SIGTERM)
        assert told_to_stop(file)
        with pytest.raises(Ended):
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_attempt_is_not_told_what_the_one_before_it_was(tmp_path: Path) -> None:
    (tmp_path / STOP).touch()
    with saved_on_sigterm(tmp_path / STOP):
        assert not (tmp_path / STOP).exists()


def test_sigterm_ends_the_process_again_afterwards(tmp_path: Path) -> None:
    with saved_on_sigterm(tmp_path / STOP):
        pass
    end_if_told()
    with pytest.raises(Ended):
        os.kill(os.getpid(), signal.SIGTERM)


def test_one_that_came_too_late_for_the_workers_ends_the_job_after_the_stage(tmp_path: Path) -> None:
    with saved_on_sigterm(tmp_path / STOP):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="the model is published"):
        end_if_told()
    end_if_told()


def test_one_that_the_workers_heard_of_is_not_told_twice(tmp_path: Path) -> None:
    def stopped() -> None:
        with saved_on_sigterm(tmp_path / STOP):
            os.kill(os.getpid(), signal.SIGTERM)
            raise Stopped("checkpoint")

    with pytest.raises(Stopped, match="checkpoint"):
        stopped()
    end_if_told()


def test_outside_the_main_thread_nothing_is_changed(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    inside = []

    def work() -> None:
        with saved_on_sigterm(tmp_path / STOP):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [handler]
