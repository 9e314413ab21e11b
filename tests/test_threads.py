"""Waiting for a thread, interrupted."""

import signal
import threading

import pytest

from paceline.threads import SureThread


def wait_for(thread):
    thread.start()
    while True:
        thread.join(0.1)


def test_an_interrupt_in_the_waiting_leaves_the_thread_alive_until_it_is_over():
    go_on, done = threading.Event(), []

    def body():
        signal.raise_signal(signal.SIGUSR1)  # its handler runs in the main thread, which waits
        go_on.wait()
        done.append(True)

    def strike(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, strike)
    thread = SureThread(target=body)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait_for(thread)
        assert thread.is_alive()
        thread.join(0.05)
        assert thread.is_alive()
        assert not done
        go_on.set()
        thread.join()
        assert done
        assert not thread.is_alive()
    finally:
        signal.signal(signal.SIGUSR1, before)
        go_on.set()


def test_it_is_a_thread_otherwise():
    thread = SureThread(target=lambda: 1 / 0, name="failing")
    with pytest.raises(RuntimeError, match="before it is started"):
        thread.join()
    assert not thread.is_alive()
    assert thread.name == "failing"
    hook, told = threading.excepthook, []
    threading.excepthook = told.append
    try:
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert not thread.is_alive()
