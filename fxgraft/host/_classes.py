"""The classes of the modules in which something grew: generated code is right for these."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_

from fxgraft.capture.region import Region
from fxgraft.errors import TraceError

_OF_ANY_CLASS = {"__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__new__"}


class KnownClasses:
    """Notices a module whose class was changed since it was traced: ``module.__class__ = Other``.

    Args:
        regions: of the modules.
    """

    def __init__(self, regions: Iterable[Region] = ()):
        self._regions = list(regions)
        self._modules = [region.module for region in self._regions]
        self._classes = [region.traced_class for region in self._regions]

    def check(self) -> None:
        """Raise `TraceError` for a module that has a class of other code now."""
        if all(map(is_, map(type, self._modules), self._classes)):
            return
        for i, module in enumerate(self._modules):
            was, now = self._classes[i], type(module)
            if now is not was and (other := _redefined(was, now)):
                raise TraceError(
                    f"the class of {self._regions[i].name or 'the model'!r} was changed after fxgraft.trace, "
                    f"from {was.__name__} to {now.__name__}, which has another {other}; what grew there is "
                    f"part of a graph of {was.__name__}. Expected classes as they were: change them before "
                    f"tracing, or put {was.__name__} back"
                )
            self._classes[i] = now


def _redefined(was: type, now: type) -> str:
    """What of the code of ``was`` is other code in ``now``; empty for a subclass that only adds."""
    own = {"forward"}.union(*(vars(base) for base in was.__mro__ if not _is_of_torch(base)))
    for name in sorted(own - _OF_ANY_CLASS):
        if getattr(was, name, None) is not getattr(now, name, None):
            return name
    return ""


def _is_of_torch(cls: type) -> bool:
    return cls is object or cls.__module__.partition(".")[0] == "torch"
