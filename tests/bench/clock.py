"""Where time goes: seconds of each phase of one piece of work."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any
from unittest import mock

import numpy as np
import torch


class Clock:
    """Wall and thread-seconds of each phase, without those of phases inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self._inner: list[np.ndarray] = [np.zeros(2)]

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(np.zeros(2))
            start = now()
            result = function(*args, **kwargs)
            took = now() - start
            self.spent[name] += took - self._inner.pop()
            self._inner[-1] += took
            return result

        return timed

    @contextlib.contextmanager
    def timing(self, phases: Mapping[str, tuple[type, str]]) -> Iterator[None]:
        """Time methods, by name of the phase, as long as the context lasts."""
        with contextlib.ExitStack() as stack:
            for name, (owner, attribute) in phases.items():
                timed = self.wrap(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield


def now() -> np.ndarray:
    """Wall and thread-seconds; on a GPU, when its work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])
