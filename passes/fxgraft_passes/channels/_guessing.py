"""Which guess keeps the function, of those that only values tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from fxgraft_passes.channels._filling import Guess
from fxgraft_passes.channels.settings import CannotRunWiderError
from fxgraft_passes.errors import ChannelError

_CLEAR = 1e-4
"""Outputs that differ by less, relative to themselves, differ by rounding of float32: the guess is right."""

_ROUNDING = 1e-6
"""Outputs that differ by less differ by rounding of float32 alone."""

_AS_NEAR = 2.0
"""How many times further from the outputs of before than the nearest guess another may be, to be as good."""

_Made = TypeVar("_Made")


class AmbiguousExampleError(ChannelError):
    """The example call does not tell apart what has to be told apart."""


def best_guess(attempt: Callable[[Guess], tuple[_Made, float]], guesses: Iterable[Guess]) -> _Made:
    """What the first guess that keeps the function makes, with as few ``bare`` weights as do.

    In few digits (bfloat16) rounding can hide that a guess is wrong. There the function counts as kept where
    the outputs are as near to those of before as the nearest guess brings them.

    Args:
        attempt: returns what a guess makes, and how far the outputs then are from those of before, relative
            to themselves; raises `ChannelError` where that is no rounding.
        guesses: in the order in which they are tried.

    Raises:
        ChannelError: that of the first guess, where none keeps the function.
    """
    fitting: dict[Guess, float] = {}
    failed: ChannelError | None = None
    made: _Made | None = None
    for guess in guesses:
        try:
            made, fitting[guess] = attempt(guess)
        except CannotRunWiderError:
            raise
        except ChannelError as error:
            failed = failed or error
            continue
        if fitting[guess] <= _CLEAR:
            _refuse_ambiguous(attempt, guess, fitting[guess])
            break
    if made is None:
        assert failed is not None
        raise failed
    most = max(_AS_NEAR * min(fitting.values()), _CLEAR)
    guess = next(guess for guess, share in fitting.items() if share <= most)
    needed = frozenset(
        path for path in guess.bare if not _fits(attempt, replace(guess, bare=guess.bare - {path}), most)
    )
    if needed == guess.bare and guess == list(fitting)[-1]:
        return made
    return attempt(replace(guess, bare=needed))[0]


def _refuse_ambiguous(attempt: Callable[[Guess], tuple[object, float]], guess: Guess, share: float) -> None:
    """Raise `ChannelError` where the outputs are those of before whatever the queries are multiplied by.

    An example of one position, or of equal ones, does not show by what attention divides, and other inputs
    would: the guess may be wrong for them.
    """
    most = max(_AS_NEAR * share, _ROUNDING)
    if guess.queries != 1.0 and _fits(attempt, replace(guess, queries=1.0), most):
        raise AmbiguousExampleError(
            "the example call does not show by what attention divides its products, as its outputs are the "
            "same either way: expected one of several positions that differ. Trace with such an example"
        )


def _fits(attempt: Callable[[Guess], tuple[object, float]], guess: Guess, most: float) -> bool:
    try:
        return attempt(guess)[1] <= most
    except ChannelError:
        return False
