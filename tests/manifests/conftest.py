"""Ray Serve's own models are written for an older pydantic and warn when they are imported: that happens here, once, unheard."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401
