"""The load of one candidate in a separate thread, so the slot can watch it and give it up."""

from __future__ import annotations

import threading

from serve_app.artifacts.bundle import Bundle
from serve_app.errors import BundleRefused
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import Predictor, check_policy, open_predictor
from serve_app.inference.sources import Source
from serve_app.inference.trial import Trial, TrialStopped


class Loading:
    """Reads the bundle of `pointer`, tries it, and loads it. `finished` is set at the end, also after an error.

    `stop` kills the process of a trial, but cannot kill the thread. After `stop`, do not call `result`. The thread may still read
    from a slow volume or load a model that passed its trial, without effect.
    """

    def __init__(self, source: Source, pointer: str, policy: LoadPolicy) -> None:
        self.source = source
        self.pointer = pointer
        self.finished = threading.Event()
        self.is_reading = True
        """Whether the load still waits for the bundle from the source."""
        self._policy = policy
        self._trial = Trial(policy.trial) if policy.trial is not None else None
        self._stopped = False
        self._predictor: Predictor | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="load", daemon=True).start()

    def stop(self) -> None:
        """Give up the load and kill the process of its trial."""
        self._stopped = True
        if self._trial is not None:
            self._trial.stop()

    def result(self) -> Predictor:
        """The predictor, after `finished` is set. Raises the error of the load."""
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
