"""Which pace a run is to have: what its configuration plans, and what a person asks for while it runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from paceline import pace as p
from paceline.config import JobConfig, PaceConfig
from paceline.requests import answer, ask, waiting
from paceline.rundir import ASKED, replace_text
from paceline.runtimes.coordinator import Coordinator

_KIND = "yaml"  # of its requests: the keys of `pace:`
_PATIENCE = 60.0  # seconds that a person waits for the answer


def planned(config: JobConfig, day: int, samples: int) -> tuple[int, PaceConfig]:
    """(how many switches of the configuration are due, the pace after them) at the start of `day` with `samples`
    read."""
    chosen, due = config.pace, 0
    for switch in config.switch:
        now = day >= int(switch.at.removeprefix("day_")) if isinstance(switch.at, str) else samples >= switch.at
        if not now:
            break  # switches happen in the order in which they are written
        chosen, due = switch.pace, due + 1
    return due, chosen


class Switching:
    """The pace of one run. A person's choice holds until the plan's next switch."""

    def __init__(self, config: JobConfig, run: Path, note: Callable[[str], None]) -> None:
        self._config, self._run, self._note = config, run, note
        self._due = -1
        self._asked: PaceConfig | None = None
        self._kept: dict[int, PaceConfig] = {}  # what was asked for, by switches of the plan that were due then
        self._answering: tuple[Path, int] | None = None  # a request, and how many pauses there were before it
        self._refused: set[Path] = set()  # requests that were told to a person, and not taken up
        self._told = 0
        self._decided = 0  # decisions of the autopilot that were told, of this process
        self._earlier = 0  # and before it
        self.pilot: p.Pilot | None = None

    def begin(self, day: int, samples: int, state: dict[str, Any] | None) -> p.Pace:
        """The pace to begin with. state: of the snapshot that the run goes on from. Requests of before are void."""
        for path in waiting(self._run, _KIND):
            answer(path, {"refused": "the run was not running at that moment; ask again"})
        self._due, chosen = planned(self._config, day, samples)
        self._earlier = 0 if state is None else state.get("decisions", 0)
        plan = self._plan()
        self._kept = self._read_kept(plan)
        if self._due in self._kept:
            self._asked = chosen = self._kept[self._due]
        elif state is not None and state["asked"] is not None and (state["due"], state["plan"]) == (self._due, plan):
            self._asked = chosen = PaceConfig.model_validate(state["asked"])
        pace = self._take(chosen)
        if self.pilot is not None and state is not None and state.get("pilot") is not None:
            self.pilot.restore(state["pilot"])
            pace = self.pilot.pace
        return pace

    def _take(self, chosen: PaceConfig) -> p.Pace:
        """The pace to go on at, with an autopilot if that is to choose."""
        paces = chosen.build_all(self._config.gradients)
        self.pilot = p.Pilot(paces, chosen.margin, chosen.patience) if chosen.name == "auto" else None
        return paces[0]

    def follow_plan(self, coordinator: Coordinator, day: int) -> None:
        """Switch if the plan has come to its next pace."""
        read = coordinator.machine.account.read
        due, chosen = planned(self._config, day, read)
        if due != self._due:
            self._due, self._asked = due, self._kept.get(due)
            chosen = self._asked or chosen
            pace = self._take(chosen)
            coordinator.pilot = self.pilot
            coordinator.switch(pace)
            self._note(f"day {day}, {read:,} samples: the pace is now {pace.name}")

    def follow_requests(self, coordinator: Coordinator, virtual: bool) -> None:
        """Switch if a person asks for it; the answer is given as soon as somebody works under the new pace."""
        if self._answering is not None:
            path, before = self._answering
            if len(coordinator.pauses) > before or coordinator.done:
                pauses, machine = coordinator.pauses[before:], coordinator.machine
                told = {"pace": machine.pace.name, "samples_read": machine.account.read}
                answer(path, {**told, "pause_s": round(pauses[0], 6) if pauses else 0.0})
                self._answering = None
        elif (found := self._request()) is not None:
            path, chosen = found
            try:
                path.unlink(missing_ok=True)  # taken up: who asked cannot withdraw it any more
            except OSError as error:
                self._refuse(path, error)
                return
            if virtual:
                why = "a simulation changes its pace by `switch:` in its configuration"
                answer(path, {"refused": why})
                return
            self._asked, self._answering = chosen, (path, len(coordinator.pauses))
            self._keep(chosen)
            pace = self._take(chosen)
            coordinator.pilot = self.pilot
            coordinator.switch(pace)
            self._note(f"{coordinator.machine.account.read:,} samples: the pace is now {pace.name}, as asked")

    def _refuse(self, path: Path, error: OSError) -> None:
        """Of a request that cannot be taken up, since its folder is somebody else's; say it once."""
        if path not in self._refused:
            self._refused.add(path)
            self._note(f"{path} asks for a pace and cannot be removed ({error.strerror}); nothing is changed")

    def _keep(self, chosen: PaceConfig) -> None:
        """Write down at once what was asked: a recovery may go back to a snapshot of before."""
        self._kept[self._due] = chosen
        told = {str(due): pace.model_dump(mode="json", exclude_unset=True) for due, pace in self._kept.items()}
        with contextlib.suppress(OSError):
            replace_text(self._run / ASKED, json.dumps({"plan": self._plan(), "asked": told}) + "\n")

    def _read_kept(self, plan: Any) -> dict[int, PaceConfig]:
        """By the number of switches that were due when it was asked; nothing where the plan is another now."""
        try:
            kept = json.loads((self._run / ASKED).read_text())
            if kept["plan"] != plan:
                return {}
            return {int(due): PaceConfig.model_validate(asked) for due, asked in kept["asked"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a file that is there is whole
            return {}

    def tell_decisions(self, coordinator: Coordinator) -> list[dict[str, Any]]:
        """What the autopilot decided since the last call; each is noted."""
        new = coordinator.decisions[self._decided :]
        self._decided += len(new)
        for read, decision in new:
            self._note(f"{read:,} samples: the pace is now {decision.pace.name}: {decision.reason}")
        return [{"samples_read": read, **decision.to_json()} for read, decision in new]

    @property
    def decisions(self) -> int:
        """How many of the run's autopilot were told."""
        return self._earlier + self._decided

    def longest_pause(self, coordinator: Coordinator) -> float | None:
        """Of the switches since the last call, in seconds."""
        pauses, self._told = coordinator.pauses[self._told :], len(coordinator.pauses)
        return round(max(pauses), 6) if pauses else None

    def _request(self) -> tuple[Path, PaceConfig] | None:
        for path in waiting(self._run, _KIND):
            try:
                chosen = PaceConfig.model_validate(yaml.safe_load(path.read_text()))
            except (OSError, ValueError, yaml.YAMLError) as error:
                answer(path, {"refused": str(error)})
                continue
            return path, chosen
        return None

    def to_json(self) -> dict[str, Any]:
        """What a snapshot keeps."""
        asked = None if self._asked is None else self._asked.model_dump(mode="json", exclude_unset=True)
        pilot = None if self.pilot is None else self.pilot.to_json()
        told = {"pilot": pilot, "decisions": self.decisions}
        return {"due": self._due, "asked": asked, "plan": self._plan(), **told}

    def _plan(self) -> Any:
        paces = [self._config.pace, *(switch.pace for switch in self._config.switch)]
        return [[str(s.at) for s in self._config.switch], *(each.model_dump(mode="json") for each in paces)]


def ask_pace(run: Path, pace: PaceConfig) -> dict[str, Any]:
    """Ask the run that is going on in a directory for a pace, and wait for its answer: `samples_read` when it changed,
    `pause_s` until the first lease under it, `pace`. Raises RunDirError if nothing runs there or it refuses."""
    text = yaml.safe_dump(pace.model_dump(mode="json", exclude_unset=True))
    return ask(run, _KIND, text, _PATIENCE, "give pace=... to the next `paceline train`")
