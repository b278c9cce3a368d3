"""The rules for the frame that a pickled model takes instead of the coded matrix: the dtypes must fit the features."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.artifacts.manifest import Frame
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import BundleRefused
from serve_app.printable import printable

NUMBER = re.compile(r"float(?:32|64)|u?int(?:8|16|32|64)")
NULLABLE_NUMBER = re.compile(r"Float(?:32|64)|U?Int(?:8|16|32|64)")
DATE = re.compile(r"datetime64\[(?P<unit>s|ms|us|ns)(?:, (?P<zone>[A-Za-z0-9_+/-]{1,64}))?\]")
TEXTS = ("str", "string", "object")
"""The dtypes of columns of texts."""


def check_frame(frame: Frame, signature: Signature) -> None:
    """Refuse a frame that cannot hold rows of this signature; raises BundleRefused `manifest`."""
    problem = next(_problems(frame, signature), None)
    if problem is not None:
        raise BundleRefused("manifest", f"the manifest's frame cannot be used: {problem}")


def fits(feature: Feature, dtype: str) -> bool:
    """Whether a column of this dtype can hold the values of a feature."""
    if feature.kind == "number":
        return bool(NUMBER.fullmatch(dtype) or NULLABLE_NUMBER.fullmatch(dtype)) or dtype == "object"
    if feature.kind == "boolean":
        return dtype in ("bool", "boolean", "object")
    if feature.kind == "category":
        return dtype in (*TEXTS, "bool", "category") or bool(NUMBER.fullmatch(dtype))
    if feature.date is not None:
        number = feature.date.epoch is not None and NUMBER.fullmatch(dtype)
        return bool(DATE.fullmatch(dtype) or number) or dtype in TEXTS
    return dtype in TEXTS


def _problems(frame: Frame, signature: Signature) -> Iterator[str]:
    features = {feature.name: feature for feature in signature.features}
    if frame.dtypes.keys() != features.keys():
        yield "its columns are not those of the signature"
        return
    for name, feature in features.items():
        if not fits(feature, frame.dtypes[name]):
            yield f"column '{printable(name[:100])}' cannot hold a {feature.kind}"
    for name, values in frame.values.items():
        if name not in features or features[name].kind != "category" or len(values) != len(features[name].categories):
            yield f"the values of '{printable(name[:100])}' do not match its categories"
    for name, order in frame.order.items():
        if frame.dtypes.get(name) != "category" or sorted(order) != list(range(len(features[name].categories))):
            yield f"the order of '{printable(name[:100])}' does not match its categories"
    for name in frame.ordered:
        if frame.dtypes.get(name) != "category":
            yield f"'{printable(name[:100])}' has an order, but its dtype is not category"
