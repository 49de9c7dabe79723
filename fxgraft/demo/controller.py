"""The controller: a plain class that watches the training loss and says what to grow.

It knows neither the host nor the manager. It is given two ways of measuring, and answers each
training loss with a list of actions. One seed grows at a time::

    loss flat -> probe the free slots -> Germinate the best -> (isolated steps)
              -> does it help at alpha 1?  no: Cull    yes: Blend -> (ramp, hold)
              -> would it be missed?       no: Cull    yes: Fossilize
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Candidate = tuple[str, str]
"""(slot, blueprint)."""


@dataclass(frozen=True)
class Germinate:
    """Put a seed of ``blueprint`` behind ``slot``. ``gain`` is what the probe promised."""

    seed: str
    slot: str
    blueprint: str
    gain: float = 0.0


@dataclass(frozen=True)
class Blend:
    """Ramp ``seed`` to alpha 1 within ``steps`` steps."""

    seed: str
    steps: int
    gain: float = 0.0


@dataclass(frozen=True)
class Cull:
    """Take ``seed`` out: what it contributes, ``gain``, is not enough."""

    seed: str
    gain: float = 0.0


@dataclass(frozen=True)
class Fossilize:
    """Keep ``seed`` for good: it contributes ``gain``."""

    seed: str
    gain: float = 0.0


Action = Germinate | Blend | Cull | Fossilize


@dataclass(frozen=True)
class Policy:
    """All in training steps, but for the last three.

    Attributes:
        window: two windows of this length are compared to tell whether the loss is flat.
        isolate, blend, hold: how long a seed is trained isolated, ramped up, and held.
        latest: no germination after this step, so that what grows can also be used.
        flat: the loss is flat when a window's mean fell by less than this share of the one before.
        margin: the held-out loss that a seed has to be worth to stay.
        attempts: how many seeds are tried at most.
    """

    window: int = 30
    isolate: int = 45
    blend: int = 45
    hold: int = 20
    latest: int = 450
    flat: float = 0.2
    margin: float = 0.002
    attempts: int = 4


@dataclass
class Controller:
    """Decides what to grow.

    Args:
        policy: when, and how long.
        candidates: the places and blueprints to choose from; each is tried once.
        probe: candidates -> the held-out loss that each would save, by a short isolated trial.
        contribution: seed -> the held-out loss at alpha 0 minus that at alpha 1.
    """

    policy: Policy
    candidates: Sequence[Candidate]
    probe: Callable[[Sequence[Candidate]], Sequence[float]]
    contribution: Callable[[str], float]
    step: int = 0
    _losses: list[float] = field(default_factory=list)
    _tried: list[Candidate] = field(default_factory=list)
    _seed: str | None = None
    _blending: bool = False
    _until: int = 0

    def observe(self, loss: float) -> list[Action]:
        """Take in the loss of one more training step; say what to do now."""
        self.step += 1
        self._losses.append(loss)
        if self._seed is None:
            return self._look_for_room()
        if self.step < self._until:
            return []
        gain = self.contribution(self._seed)
        if gain <= self.policy.margin:
            return [self._done(Cull(self._seed, gain))]
        if self._blending:
            return [self._done(Fossilize(self._seed, gain))]
        self._blending = True
        self._until = self.step + self.policy.blend + self.policy.hold
        return [Blend(self._seed, self.policy.blend, gain)]

    @property
    def is_flat(self) -> bool:
        """Whether the last window's mean loss is hardly below that of the window before."""
        window = self.policy.window
        if len(self._losses) < 2 * window:
            return False
        before, now = sum(self._losses[-2 * window : -window]), sum(self._losses[-window:])
        return now > (1 - self.policy.flat) * before

    def _look_for_room(self) -> list[Action]:
        free = [candidate for candidate in self.candidates if candidate not in self._tried]
        may = self.step <= self.policy.latest and len(self._tried) < self.policy.attempts
        if not (free and may and self.is_flat):
            return []
        gains = self.probe(free)
        best = max(range(len(free)), key=gains.__getitem__)
        if gains[best] <= self.policy.margin:
            self._losses.clear()  # nothing would help now: look again at the next plateau
            return []
        slot, blueprint = free[best]
        self._tried.append(free[best])
        self._seed, self._blending = f"{slot.replace('.', '_')}_{blueprint}", False
        self._until = self.step + self.policy.isolate
        return [Germinate(self._seed, slot, blueprint, gains[best])]

    def _done(self, action: Action) -> Action:
        self._seed = None
        # A plateau is judged anew: what the loss did with this seed says nothing of the next.
        self._losses.clear()
        return action
