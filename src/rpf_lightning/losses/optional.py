"""What losses with third-party weights say when these are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def optional_term(weight: str) -> Iterator[None]:
    """Complete a FileNotFoundError raised inside, which says how to get the weights: how to do without the term.

    Args:
        weight: The option that switches the term off at 0.

    Raises:
        FileNotFoundError: The one raised inside, completed.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or switch the term off: {weight}: 0") from error
