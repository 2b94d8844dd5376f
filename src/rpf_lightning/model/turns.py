"""A lock that a model's threads share: many compute with the weights at once, one alone changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident


class Turns:
    """Many inside of `using`, or one inside of `changing`; who wants to change them goes before those that come later.

    A copy, as of a model by `deepcopy` or `pickle`, is a new one.
    """

    def __init__(self) -> None:
        self._condition = Condition()
        self._users: list[int] = []  # threads, once for each time that they are inside
        self._changer: int | None = None
        self._depth = 0
        self._waiting = 0

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Compute with the weights; a thread that is inside already never waits."""
        own = get_ident()
        with self._condition:
            self._condition.wait_for(
                lambda: own in self._users or self._changer == own or not (self._changer or self._waiting)
            )
            self._users.append(own)
        try:
            yield
        finally:
            with self._condition:
                self._users.remove(own)
                self._condition.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change the weights while no other thread is inside.

        Raises:
            RuntimeError: Inside of `using`, which would wait for itself.
        """
        own = get_ident()
        with self._condition:
            if self._changer != own and own in self._users:
                raise RuntimeError(
                    "the model computes: its weights cannot be changed from inside of a forward"
                )
            self._waiting += 1
            try:
                self._condition.wait_for(lambda: self._changer == own or not (self._changer or self._users))
            finally:
                self._waiting -= 1
            self._changer = own
            self._depth += 1
        try:
            yield
        finally:
            with self._condition:
                self._depth -= 1
                if not self._depth:
                    self._changer = None
                self._condition.notify_all()
