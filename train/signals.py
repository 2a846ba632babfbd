"""Requests to stop, by SIGTERM (of schedulers and preemptions) or SIGINT (Ctrl-C)."""

import builtins
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Signals so close together are one: timeout(1), say, sends its own to the process and to its group.
_ONE_SECS = 0.5


class StopSignals:
    """Notes the first signal, for the run to stop in order; a second one ends the process at once.

    In a notebook, whose kernel is to live on, a second interrupt raises KeyboardInterrupt instead.
    A thread other than the main one cannot hear signals: there nothing is noted.
    """

    def __init__(self):
        self.received: str | None = None  # the signal's name
        self._before: dict[signal.Signals, Any] = {}
        self._thread: threading.Thread | None = None
        self._wakes = self._wakes_before = -1  # file descriptors

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            # Python calls no handler while the main thread compiles, which may take minutes: what a
            # person is to see at once, and a second signal, are the work of a thread.
            heard, self._wakes = os.pipe()
            os.set_blocking(self._wakes, False)
            self._thread = threading.Thread(target=_listen, args=(heard,), daemon=True)
            self._thread.start()
            self._wakes_before = signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._thread is not None:
            signal.set_wakeup_fd(self._wakes_before)
            os.close(self._wakes)  # which ends the thread
            self._thread.join()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
        elif _in_notebook():
            raise KeyboardInterrupt


def _listen(heard: int) -> None:
    """Tells of the first signal, and ends the process at the second one."""
    first = None
    with open(heard, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] not in _SIGNALS:
                continue
            name, now = signal.Signals(number[0]).name, time.monotonic()
            if first is None:
                first = now
                _tell(f"{name}: the run stops behind its step, and saves itself; again: at once")
            elif now - first > _ONE_SECS and not _in_notebook():
                _tell(f"{name} for the second time: nothing more is saved")
                os._exit(128 + number[0])


def _in_notebook() -> bool:
    return hasattr(builtins, "__IPYTHON__")


def _tell(text: str) -> None:
    """Prints without the buffer, which the code that was interrupted may hold."""
    with contextlib.suppress(OSError):  # standard error may be a file on the disk that is full
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
