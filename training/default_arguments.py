"""What `train` trains when its command line does not say: the settings of a schedule, as flags before the user's own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from serve_app.errors import UsageError

DATA, TARGET, FLAGS = "IRIS_TRAINING_DATA", "IRIS_TRAINING_TARGET", "IRIS_TRAINING_FLAGS"
"""The table, its target, and more flags of `train`; the keys of the ConfigMap `iris-training`."""


def default_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments that the environment states; none when `arguments` name a table of their own or ask for help.

    They come before the user's, and the last of two flags counts. The target and the flags of the environment name columns of its
    table, so they do not apply to another one. Raises UsageError for a text that cannot be split into flags.
    """
    names = {argument.partition("=")[0] for argument in arguments}
    if names & {"--data", "--help", "-h"}:
        return []
    data, target, flags = (environment.get(name, "").strip() for name in (DATA, TARGET, FLAGS))
    try:
        more = shlex.split(flags)
    except ValueError as error:
        raise UsageError(f"{FLAGS} cannot be split into flags ({error}): close each quote, as in a shell") from None
    for name in ("--data", "--target"):
        if name in {argument.partition("=")[0] for argument in more}:
            raise UsageError(f"{FLAGS} holds {name}: put its value into {DATA if name == '--data' else TARGET}")
    if target and not data:
        raise UsageError(f"{TARGET} is set without {DATA}: name the table too")
    return [*(["--data", data] if data else []), *(["--target", target] if target else []), *more]
