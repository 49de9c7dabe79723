"""How a model is to grow, as data: a dictionary, JSON or YAML. Reading YAML needs the extra ``config``.

manager: {strict: true, metrics_every: 10}
log: runs/a/events.jsonl
compile: {dynamic: false}
script:
  - {step: 500, type: SEED, slot: layer1.0.relu, blueprint: conv_bottleneck, name: a}
  - {step: 700, type: BLEND, seed: a, steps: 100}
  - {step: 900, type: FOSSILIZE, seed: a}

or, in the place of a script, ``autogrow: {budget: 2.0, when: flat}``.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from fxgraft import commands
from fxgraft.commands import SEED, Command
from fxgraft.errors import FxGraftError
from fxgraft.explore.autogrow import AutoGrowth
from fxgraft.explore.growth_settings import Budget, GrowthSettings, moments
from fxgraft.explore.measuring import Evaluate
from fxgraft.host.host import Host
from fxgraft.manager.dispatch import arguments
from fxgraft.manager.manager import SeedManager
from fxgraft.manager.settings import ManagerOptions
from fxgraft.telemetry import JsonLines, Sink, logger
from fxgraft.util.reading import InvalidDataError, decode, read

__all__ = ["ConfigError", "GrowConfig", "ManagerOptions", "Scripted"]


class ConfigError(FxGraftError):
    """A configuration is invalid."""


@dataclass(frozen=True)
class Scripted:
    """A command, and the training step (from 1) after which it is carried out.

    Attributes:
        step: the number of the training step, from 1.
        command: one of `fxgraft.commands`.
    """

    step: int
    command: Command

    def to_dict(self) -> dict[str, Any]:
        """The command's form, with the step."""
        return {"step": self.step, **commands.to_dict(self.command)}


@dataclass(frozen=True)
class _Options:
    manager: ManagerOptions = field(default_factory=ManagerOptions)
    log: str | None = None
    compile: dict[str, Any] | None = None
    autogrow: dict[str, Any] | None = None


@dataclass(frozen=True)
class GrowConfig(_Options):
    """How a model grows: options, and what to germinate when. Read from YAML, JSON or dictionaries.

    Attributes:
        manager: options of the manager.
        log: a file to which each event is appended as a line of JSON, for ``fxgraft report``; None: none.
        compile: keyword arguments of `Host.compile`; None: the host is not compiled.
        autogrow: arguments of `SeedManager.autogrow`, for `grow`; None: the host does not grow automatically.
        script: the commands to carry out, each after a given step.
    """

    script: tuple[Scripted, ...] = ()

    def start(
        self,
        host: Host,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        sinks: Sequence[Sink] = (),
        **options: Any,
    ) -> SeedManager:
        """Compile the host, if ``compile`` is set, and make its manager.

        Everything that the script would germinate is planned first: a slot or a blueprint that does not fit
        raises now, not in the middle of the run.

        Args:
            host: freshly traced, or one that has its seeds.
            optimizer: as for `SeedManager`.
            resume: a checkpoint of `SeedManager.save` to continue from; None: a new run.
            sinks: further sinks, beside the one of ``log``.
            **options: as for `SeedManager` and `SeedManager.load`, beside those of ``manager``.

        Raises:
            SlotError, BlueprintError, ValueError: as `SeedManager.plan`.
            CommandError: a blueprint's ``config`` has an argument of `SeedManager.germinate` (``mode``, say).
            CheckpointError: as `SeedManager.load`.
        """
        if self.compile is not None and host.compiled is None:
            host.compile(**self.compile)
        if self.log is not None:
            Path(self.log).parent.mkdir(parents=True, exist_ok=True)
            sinks = [*sinks, JsonLines(self.log)]
        options = {**dataclasses.asdict(self.manager), "sinks": sinks, **options}
        if resume is None:
            manager = SeedManager(host, optimizer, **options)
        else:
            manager = SeedManager.load(resume, host, optimizer, **options)
        for seed in self._seeds():
            manager.plan(**arguments(seed))
        return manager

    def act(self, manager: SeedManager) -> None:
        """Carry out the commands of the script for the step just made; call it after ``manager.step()``.

        A refused command is logged as a warning; the run continues.

        Args:
            manager: the one that `start` returned.
        """
        for scripted in self.script:
            if scripted.step == manager.steps:
                reply = manager.carry_out(scripted.command)
                if reply.refused:
                    logger.warning("step %d: the script's %s: %s", manager.steps, reply.command, reply.reason)

    def grow(self, manager: SeedManager, evaluate: Evaluate) -> AutoGrowth | None:
        """Let the host grow automatically, by ``autogrow``; return None where that is None.

        Args:
            manager: what `start` returned.
            evaluate: as for `SeedManager.autogrow`.

        Raises:
            SlotError, BlueprintError, CommandError, ValueError, StageError: as `SeedManager.autogrow`.
        """
        return None if self.autogrow is None else manager.autogrow(evaluate, **self.autogrow)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "manager": dataclasses.asdict(self.manager),
            "log": self.log,
            "compile": self.compile,
            "autogrow": self.autogrow,
            "script": [scripted.to_dict() for scripted in self.script],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GrowConfig:
        """The inverse of `to_dict`. Missing fields have their defaults.

        Args:
            data: the fields of a `GrowConfig`, in JSON types.

        Raises:
            ConfigError: a field is unknown or invalid; says which, what was expected, and what was given.
        """
        try:
            given = dict(data)
            names = [f.name for f in dataclasses.fields(cls)]
            if strange := sorted(map(str, given.keys() - set(names))):
                raise ConfigError(f"expected {', '.join(names)}; got {strange}")
            script = tuple(map(_scripted, _listed("script", given.pop("script", ()))))
            options = read(given, _Options)
            _check_terms(options.autogrow or {})
            return cls(**vars(options), script=script)
        except (FxGraftError, TypeError, ValueError) as error:
            raise ConfigError(f"the configuration: {error}") from error

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> GrowConfig:
        """From JSON. Raises `ConfigError`.

        Args:
            text: a JSON object with the fields of a `GrowConfig`.
        """
        try:
            return cls._from(decode(text))
        except InvalidDataError as error:
            raise ConfigError(f"the configuration: expected JSON; {error}") from error

    def to_yaml(self) -> str:
        """As YAML."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def from_yaml(cls, text: str) -> GrowConfig:
        """From YAML; nothing in it is executed. Raises `ConfigError`.

        Args:
            text: a YAML mapping with the fields of a `GrowConfig`.
        """
        import yaml

        try:
            return cls._from(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"the configuration: expected YAML; {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GrowConfig:
        """From a file: JSON if its name ends in ``.json``, else YAML. Raises `ConfigError`.

        Args:
            path: the file, in UTF-8.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{file}: cannot be read: {error.strerror}; expected a file of YAML or JSON"
            ) from error
        try:
            return cls.from_json(text) if file.suffix == ".json" else cls.from_yaml(text)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """To a file: JSON if its name ends in ``.json``, else YAML.

        Args:
            path: the file; it is replaced if it exists.
        """
        file = Path(path)
        file.write_text(self.to_json() if file.suffix == ".json" else self.to_yaml(), encoding="utf-8")

    @classmethod
    def _from(cls, data: Any) -> GrowConfig:
        if not isinstance(data, dict):
            raise ConfigError(f"the configuration: expected an object with fields; got {type(data).__name__}")
        return cls.from_dict(data)

    def _seeds(self) -> list[SEED]:
        return [entry.command for entry in self.script if isinstance(entry.command, SEED)]


def _scripted(data: Any) -> Scripted:
    if not isinstance(data, dict) or type(data.get("step")) is not int or data["step"] < 1:
        raise ConfigError(f"script: expected a command with a step from 1, like {EXAMPLE}; got {data!r}")
    command = {key: value for key, value in data.items() if key != "step"}
    return Scripted(data["step"], commands.parse(command))


def _listed(name: str, data: Any) -> list[Any]:
    if not isinstance(data, (list, tuple)):
        raise ConfigError(f"{name}: expected an array; got {data!r}")
    return list(data)


def _check_terms(given: Mapping[str, Any]) -> None:
    """Check what can be checked of `autogrow` without a host. Raises `ConfigError` or `ValueError`."""
    known = sorted(inspect.signature(SeedManager.autogrow).parameters.keys() - {"self", "evaluate"})
    if strange := sorted(given.keys() - set(known)):
        raise ConfigError(f"autogrow: expected {', '.join(known)}; got {strange}")
    fields = {f.name for f in dataclasses.fields(GrowthSettings)}
    durations = {"explore" if name == "steps" else name: value for name, value in given.items()}
    try:
        GrowthSettings(**{name: value for name, value in durations.items() if name in fields})
        Budget.of(given.get("budget", 1.0))
        moments(given.get("when", "flat"), given.get("total_steps"))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"autogrow: {error}") from error


EXAMPLE = "{step: 100, type: BLEND, seed: a}"
