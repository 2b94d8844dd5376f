"""What losses with third-party weights say when these are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def optional_term(weight: str, remedy: str) -> Iterator[None]:
    """Complete a FileNotFoundError raised inside: how to get the weights, how to do without the term.

    A message that already names the switch (`faces.weights` writes such ones) passes unchanged.

    Args:
        weight: The option that switches the term off at 0.
        remedy: How to get the weights.

    Raises:
        FileNotFoundError: The one raised inside, completed.
    """
    try:
        yield
    except FileNotFoundError as error:
        if f"{weight}: 0" in str(error):
            raise
        raise FileNotFoundError(f"{error}; {remedy}, or switch the term off: {weight}: 0") from error
