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

# Signals so close together count as one: timeout(1), say, sends its signal to the process and to
# its group.
_SAME_SECS = 0.5


class StopSignals:
    """Records the first signal, so that the run stops in order; a second one ends it at once.

    In a notebook, whose kernel must survive, a second interrupt raises KeyboardInterrupt instead.
    Only the main thread receives signals: in another one nothing is recorded.
    """

    def __init__(self):
        self.received: str | None = None  # the signal's name
        self._previous: dict[signal.Signals, Any] = {}
        self._thread: threading.Thread | None = None
        self._wakeup_fd = self._previous_fd = -1

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            # Python calls no handler while the main thread compiles, which may take minutes: a
            # thread reads the numbers of the signals, to answer at once and to act on a second one.
            receiver, self._wakeup_fd = os.pipe()
            os.set_blocking(self._wakeup_fd, False)
            self._thread = threading.Thread(target=_listen, args=(receiver,), daemon=True)
            self._thread.start()
            self._previous_fd = signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
            self._previous = {number: signal.signal(number, self._record) for number in _SIGNALS}

        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

        if self._thread is not None:
            signal.set_wakeup_fd(self._previous_fd)

            # At the end of the pipe the thread ends.
            os.close(self._wakeup_fd)
            self._thread.join()

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
        elif _in_notebook():
            raise KeyboardInterrupt


def _listen(receiver: int) -> None:
    """Answers the first signal, and ends the process at the second one."""
    first = None
    with open(receiver, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            # The pipe carries every signal that has a handler in Python.
            if number[0] not in _SIGNALS:
                continue

            name, now = signal.Signals(number[0]).name, time.monotonic()
            if first is None:
                first = now
                _print(
                    f"{name}: the run saves its state after this step, and stops; a second "
                    "signal stops it at once"
                )
            elif now - first > _SAME_SECS and not _in_notebook():
                _print(f"{name} for the second time: nothing more is saved")

                # Not sys.exit, which would end this thread alone. Shells report 128 + its number
                # of a process that a signal ended.
                os._exit(128 + number[0])


def _in_notebook() -> bool:
    return hasattr(builtins, "__IPYTHON__")


def _print(text: str) -> None:
    # Around the buffer of sys.stderr, whose lock the interrupted code may hold. Standard error may
    # be a file on a full disk.
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
