"""What the operations pages name is there."""

from __future__ import annotations

import re

import pytest

from tests.manifests.shipped import KUBERAY, ROOT

PAGES = (
    "docs/how-to/adopt.md",
    "docs/how-to/install.md",
    "docs/how-to/roll-back.md",
    "docs/how-to/upgrade.md",
    "docs/how-to/variants.md",
    "docs/how-to/signed-models.md",
    "docs/how-to/models-without-onnx.md",
    "docs/how-to/training.md",
    "docs/how-to/score.md",
    "docs/how-to/backup.md",
    "docs/how-to/exposure.md",
    "docs/reference/orchestration.md",
    "docs/how-to/scaling.md",
    "docs/how-to/troubleshooting.md",
    "kuberay/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_every_target_and_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = set(
        re.findall(r"^([a-z0-9-]+):(?!=)", (KUBERAY / "k8s.mk").read_text() + (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    named = {one or other for one, other in re.findall(r"`make ([a-z][a-z0-9-]*)|^make ([a-z][a-z0-9-]*)", text, re.MULTILINE)}
    assert named <= targets, named - targets
    for path in re.findall(r"kuberay/[\w./-]+", text):
        if not path.endswith("/secret.yaml"):
            assert (ROOT / path.rstrip(".")).exists(), path


def test_the_page_lists_every_variant_and_no_other() -> None:
    text = (ROOT / "docs" / "how-to" / "variants.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \|", text[text.index("## Overlays") : text.index("## Write your own overlay")], re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert listed == {path.parent.name for path in (KUBERAY / "overlays").glob("*/kustomization.yaml")}
