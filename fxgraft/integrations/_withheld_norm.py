"""``args.max_grad_norm`` while a callback clips in the place of its trainer.

The arguments are the user's, and outlive a run that ends in an error: in files, in logs, for another callback
and for another trainer they must have the number, and not 0.
"""

from __future__ import annotations

import sys


class WithheldNorm(float):
    """That number. A trainer with the callback, which asks whether it is above 0, does not clip.

    Attributes:
        callback: who clips.
    """

    callback: object

    @classmethod
    def of(cls, callback: object, norm: float) -> WithheldNorm:
        """``norm``, to which ``callback`` clips."""
        found = cls(norm)
        found.callback = callback
        return found

    def __gt__(self, other: float) -> bool:
        trainer = sys._getframe(1).f_locals.get("self")
        known = getattr(getattr(trainer, "callback_handler", None), "callbacks", None)
        if known is not None and self.callback not in known:  # another trainer, with the same arguments
            return float(self) > other
        return False

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)
