"""The load of one candidate, in a thread of its own, so that it can be watched and given up."""

from __future__ import annotations

import threading

from serve_app.artifacts.bundle import Bundle
from serve_app.errors import BundleRefused
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import Predictor, check_policy, open_predictor
from serve_app.inference.sources import Source
from serve_app.inference.trial import Trial, TrialStopped


class Loading:
    """Reads the bundle of `pointer`, tries it, and loads it. `finished` is set at the end, whatever the end is.

    A thread cannot be killed, the process of a trial can: after `stop` the result is not to be asked for, and what the thread still
    does (it reads from a volume that does not answer, or loads a model that passed its trial) has no effect.
    """

    def __init__(self, source: Source, pointer: str, policy: LoadPolicy) -> None:
        self.source = source
        self.pointer = pointer
        self.finished = threading.Event()
        self.is_reading = True
        """Whether the source has not given the bundle yet."""
        self._policy = policy
        self._trial = Trial(policy.trial) if policy.trial is not None else None
        self._stopped = False
        self._predictor: Predictor | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="load", daemon=True).start()

    def stop(self) -> None:
        """Give the load up; the process of a trial is killed."""
        self._stopped = True
        if self._trial is not None:
            self._trial.stop()

    def result(self) -> Predictor:
        """The predictor, once `finished` is set. Raises what the load raised."""
        if self._error is not None:
            raise self._error
        assert self._predictor is not None
        return self._predictor

    def _run(self) -> None:
        try:
            bundle = self.source.read(self.pointer, self._policy)
            self.is_reading = False
            try:
                self._try(bundle)
                self._predictor = open_predictor(bundle, self._policy)
            except BundleRefused as error:
                if bundle.advice is None or not error.final:
                    raise
                raise BundleRefused(error.reason, f"{error}: {bundle.advice}") from error
        except BaseException as error:
            self._error = error
        finally:
            self.finished.set()

    def _try(self, bundle: Bundle) -> None:
        check_policy(bundle, self._policy)
        if self._trial is not None:
            self._trial.run(bundle, allow_joblib=self._policy.allow_joblib, backend=self._policy.backend)
        if self._stopped:
            raise TrialStopped
