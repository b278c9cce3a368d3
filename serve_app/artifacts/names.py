"""Names that other programs read: files of a bundle and of the store's folder, folders and tags of an MLflow run."""

from __future__ import annotations

import re

# --- a version

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The form of a model's version. The version is part of a header of each response, of labels and of logs."""

# --- files of a bundle

MANIFEST = "metadata.json"
"""The manifest (serve_app/artifacts/manifest.py). The description in the legacy layout has the same name."""
METRICS = "metrics.json"
JOBLIB = "model.joblib"
ONNX = "model.onnx"
XGBOOST = "model.ubj"
LIGHTGBM = "model.lgb.txt"
CATBOOST = "model.cbm"
NATIVE = {XGBOOST: "xgboost", LIGHTGBM: "lightgbm", CATBOOST: "catboost"}
"""Models in the formats of their libraries, which contain no code: the library's package by file name."""
GOLDEN = "golden.json"
"""Held-out rows with the scores from training; a replica computes them again before it serves the version."""
SEAL = "metadata.json.sig"
"""Ed25519 signature over the bundle's digest (serve_app/artifacts/signing.py)."""
CARD = "card.html"
"""The model card."""
IMPORTANCE_IMAGE = "feature_importance.png"
CONFUSION_IMAGE = "confusion_matrix.png"
RESIDUALS_IMAGE = "predicted_and_true.png"

PACKAGE = re.compile(r"package-[A-Za-z0-9._-]{1,100}\.zip")
"""Code of the user that a pickled model imports (serve_app/artifacts/code_package.py)."""

LEGACY_FILES = (JOBLIB, MANIFEST, METRICS)
"""The files of the legacy layout. A store offers the served version under these names, too."""

# --- files beside the bundles

REPORT = "verdict.json"
"""The verdict of the last training (serve_app/artifacts/training_report.py)."""

# --- an MLflow run

BUNDLE_FOLDER = "bundle"
"""Artifact folder with a copy of the published bundle."""
MODEL_FOLDER = "model"
"""Artifact folder with the model as MLflow's scikit-learn flavor stores it."""
REPORT_FOLDER = "report"
"""Artifact folder with the model card and the images, also of a refused model."""

DIGEST_TAG = "digest"
STORE_VERSION_TAG = "store_version"
VERDICT_TAG = "verdict"
VERDICT_REASONS_TAG = "verdict_reasons"
