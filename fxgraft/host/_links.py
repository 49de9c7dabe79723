"""Who hears of what happens to a host, and what it is used for at the moment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxgraft.host._copies import Copies

if TYPE_CHECKING:
    from fxgraft.host.host import Host


def _no_followers() -> MutableMapping[Host, Callable[[Host, Host], None]]:
    return weakref.WeakKeyDictionary()


@dataclass
class Links:
    """What a host is bound to. A copy of it, or a host from a file, has none of these.

    Attributes:
        on_call: called with the arguments of every forward pass, or None.
        on_replaced: called with what ``load_state_dict(assign=True)`` has replaced, old -> new; or None.
        on_structure: called in the place of growing with the entry of a state to be loaded that says how its
            seeds are wired, or with None where the state has all of the model and no seeds; or None.
        on_write: called in the place of the model's own ``save_pretrained`` while something has grown, with
            that and its arguments; None refuses.
        followers: copies of the host (weakly) -> what is called with host and copy after each swap.
        copies: the deep copies of the host that live.
        led_by: the lifecycle of the host's manager (weakly), or None. What it says of stages and alphas
            (its ``steering()``) holds, whatever a state says.
        borrowed: by what the host runs otherwise for a moment, or None.
    """

    on_call: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None
    on_replaced: Callable[[Mapping[nn.Parameter, nn.Parameter]], None] | None = None
    on_structure: Callable[[Tensor | None], None] | None = None
    on_write: Callable[..., None] | None = None
    followers: MutableMapping[Host, Callable[[Host, Host], None]] = field(default_factory=_no_followers)
    copies: Copies = field(default_factory=Copies)
    led_by: weakref.ref[Any] | None = None
    borrowed: str | None = None
