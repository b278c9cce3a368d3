"""Default arguments of `train` from the environment: the settings of a schedule, as flags before the user's own flags."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from serve_app.errors import UsageError

DATA, TARGET, FLAGS = "IRIS_TRAINING_DATA", "IRIS_TRAINING_TARGET", "IRIS_TRAINING_FLAGS"
"""Variables with the table, its target, and more flags of `train`; they are the keys of the ConfigMap `iris-training`."""


def default_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments from the environment; empty when `arguments` name another table or ask for help.

    They precede the user's arguments, and the last of two equal flags counts. The target and the flags in the environment name
    columns of its table, so they do not apply to another table. Raises UsageError for a text that cannot be split into flags.
    """
    names = {argument.partition("=")[0] for argument in arguments}
    if names & {"--data", "--help", "-h"}:
        return []
    data, target, flags = (environment.get(name, "").strip() for name in (DATA, TARGET, FLAGS))
    try:
        more = shlex.split(flags)
    except ValueError as error:
        raise UsageError(f"{FLAGS} cannot be split into flags ({error}): close each quote") from None
    for name in ("--data", "--target"):
        if name in {argument.partition("=")[0] for argument in more}:
            raise UsageError(f"{FLAGS} contains {name}: put its value into {DATA if name == '--data' else TARGET}")
    if target and not data:
        raise UsageError(f"{TARGET} is set without {DATA}: set the table, too")
    return [*(["--data", data] if data else []), *(["--target", target] if target else []), *more]
