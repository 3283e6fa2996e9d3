"""One search by several drivers, through a study in Optuna's storage.

A proposal that is being tried is claimed by its trial, which carries the driver's name: nobody else
takes it until it is told, or its driver starts again, or the claim is old. Everything else is in
the tuning database, so a study that cannot be used, or is deleted while it is, costs the others'
claims and nothing more: the driver goes on alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from kdsl.autotune.search.guided import FAILED, STARTUP, Guided
from kdsl.autotune.search.propose import StudyAt
from kdsl.autotune.search.space import Params, Point, Space, point
from kdsl.autotune.search.studies import close_storage, open_storage

STALE = timedelta(minutes=5)
"""Age at which a claim of a driver that says nothing any more is void."""
MOMENT_S = 1.0
"""How long a trial is waited for that has no parameters yet; its driver may have died there."""
T = TypeVar("T")
TAKE_OVER = timedelta(seconds=15)
"""How long the end of a search waits for what others are at, before it does that, too."""
WAIT_S = 0.25
_DRIVER, _SINCE = "driver", "since"
_BROKEN = (optuna.exceptions.OptunaError, SQLAlchemyError, KeyError, OSError)


class Shared(Guided):
    """`Guided` with others. The head of ``first``, the default, is tried by every driver itself."""

    def __init__(
        self,
        space: Space,
        *,
        first: Sequence[Params],
        prior: Callable[[Params], float],
        seed: int,
        at: StudyAt,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.at, self._now = at, now
        self.alone = ""
        """Why the study is not shared any more; empty while it is."""
        self._own: set[int] = set()
        self._heard: set[int] = set()
        self._silent: set[int] = set()
        self._patience = STALE
        self._seen: dict[int, str] = {}
        self._busy: dict[Point, int] = {}
        """Points that others are at, with the first trial that claims each."""
        self._storage: optuna.storages.BaseStorage | None = None
        self._start = dict(first[0]) if first else None
        super().__init__(space, first=first[1:], prior=prior, seed=seed)

    def _sampler(self) -> optuna.samplers.TPESampler:
        """Parallel proposals must not all go to the same place."""
        return optuna.samplers.TPESampler(
            seed=self.seed, n_startup_trials=STARTUP, constant_liar=True
        )

    def _study(self) -> optuna.Study:
        try:
            self._storage = open_storage(self.at.place)
            return optuna.create_study(
                storage=self._storage,
                study_name=self.at.name,
                sampler=self._sampler(),
                load_if_exists=True,
            )
        except _BROKEN as error:
            self.alone = f"{type(error).__name__}"
            return super()._study()

    def ask(self) -> Params | None:
        """A legal point that nobody has tried or is trying."""
        if self._start is not None:
            params, self._start = self._start, None
            if point(params) not in self._told:
                return params
        return self._kept(self._ask_listening)

    def close(self) -> None:
        """Let go of the study; what is claimed and not told is anybody's when it is old."""
        if self._storage is not None:
            close_storage(self._storage)

    def _ask_listening(self) -> Params | None:
        self._listen()
        params = super().ask()
        # Nothing is left but what others are at: wait for it, or do it if they died.
        end = time.monotonic() + TAKE_OVER.total_seconds()
        while params is None and self._busy and not self._asked and not self.alone:
            time.sleep(WAIT_S)
            self._patience = STALE if time.monotonic() < end else timedelta()
            self._listen()
            params = super().ask()
        self._patience = STALE
        return params

    def tell(self, params: Params, cost: float | None) -> None:
        """Give a value to the trial it came from, or add one if nobody has."""
        self._kept(lambda: self._tell(params, cost))

    def _tell(self, params: Params, cost: float | None) -> None:
        if not self.alone and point(params) not in self._asked:
            self._listen()
            if point(params) in self._told:
                return
        super().tell(params, cost)

    def _kept(self, act: Callable[[], T]) -> T:
        """What ``act`` gives; if the study is gone, in a new one of this driver's own."""
        try:
            return act()
        except _BROKEN as error:
            if self.alone:
                raise
            self._leave(f"{type(error).__name__}")
            return act()

    def _leave(self, why: str) -> None:
        self.alone = why
        self._busy.clear()
        self.study = Guided._study(self)
        for at, cost in list(self._told.items()):
            if self._on_axes(dict(at)):
                self._add(dict(at), cost)
        for at in list(self._asked):
            self.study.enqueue_trial(self._encode(dict(at)))
            self._asked[at] = self.study.ask(self.axes)

    def _listen(self, before: int = 0) -> set[int]:
        """Hear what others were told, and what they are at.

        The trials with a number under ``before`` that are being made just now: a trial is there
        before all its parameters are.
        """
        unsaid: set[int] = set()
        if self.alone:
            return unsaid
        self._busy.clear()
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number in self._own or trial.number in self._heard:
                continue
            if trial.params.keys() != self.axes.keys():
                running = trial.state == TrialState.RUNNING and trial.number not in self._silent
                if running and trial.number < before:
                    unsaid.add(trial.number)
                continue
            at = point(self._decode(trial.params))
            if trial.state == TrialState.COMPLETE:
                self._heard.add(trial.number)
                self._told.setdefault(at, _cost(trial))
            elif trial.state == TrialState.RUNNING and self._claimed(trial):
                self._busy[at] = min(trial.number, self._busy.get(at, trial.number))
        return unsaid

    def _claimed(self, trial: FrozenTrial) -> bool:
        """Whether somebody is at it: not this driver before it died, nor long ago."""
        mine = trial.user_attrs.get(_DRIVER) == self.at.driver
        since = trial.user_attrs.get(_SINCE)
        if since is None:  # the claim is being made; Optuna's own times are in unknown time zones
            since = self._seen.setdefault(trial.number, self._now().isoformat())
        stale = self._now() - datetime.fromisoformat(since) > self._patience
        if mine or stale:
            self._heard.add(trial.number)
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        return not (mine or stale)

    def _asked_for(self) -> Params | None:
        params = super()._asked_for()
        if params is not None and not self.alone:
            trial = self._asked[point(params)]
            self._own.add(trial.number)
            trial.set_user_attr(_DRIVER, self.at.driver)
            trial.set_user_attr(_SINCE, self._now().isoformat())
        return params

    def _fresh(self, params: Params) -> bool:
        return point(params) not in self._busy and super()._fresh(params)

    def _settled(self, trial: Trial, params: Params) -> bool:
        self._own.add(trial.number)
        end = time.monotonic() + MOMENT_S
        while unsaid := self._listen(trial.number):
            if time.monotonic() > end:
                self._silent |= unsaid
            time.sleep(0.01)
        if self._busy.get(point(params), trial.number) < trial.number:
            # Two asked at once and were given the same; the first of them does it.
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return True
        return super()._settled(trial, params)

    def _finish(self, trial: Trial, cost: float | None) -> None:
        try:
            super()._finish(trial, cost)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            # It took so long that another driver declared the claim void.
            self._add(self._decode(trial.params), cost)


def _cost(trial: FrozenTrial) -> float | None:
    broken: Any = getattr(trial, "constraints", None)
    if broken and any(value > 0 for value in dict(broken).values()):
        return None
    return None if trial.value is None or trial.value >= FAILED else trial.value
