"""Estimators of scikit-learn, fitted on few rows and converted as training does: the list of operators is derived from them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from sklearn import (
    calibration,
    cluster,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    impute,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    preprocessing,
    svm,
    tree,
)
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.signature import Feature, Signature
from tests.support import answers
from tests.support.estimators import BOOSTERS, OF_SCIKIT_LEARN
from tests.support.models import diabetes_signature, iris, iris_signature
from training.convert import CONVERSIONS, to_onnx
from training.estimators import ESTIMATORS
from training.fit import build

ROWS = 60
FEW: dict[str, Any] = {"n_estimators": 3, "max_depth": 3}


def classifiers() -> Iterator[Any]:
    """Classifiers with probabilities."""
    for name in OF_SCIKIT_LEARN:
        yield ESTIMATORS[name].classification.load()()
    for name in BOOSTERS:
        yield build(iris_signature(), name, {"n_estimators": 5}, random_state=0)
    logistic = linear_model.LogisticRegression(max_iter=500)
    few = FEW
    yield linear_model.LogisticRegressionCV(cv=2, max_iter=100)
    yield linear_model.SGDClassifier(loss="log_loss")
    yield linear_model.SGDClassifier(loss="modified_huber")
    yield svm.SVC(probability=True)
    yield svm.SVC(kernel="linear", probability=True)
    yield svm.NuSVC(probability=True, nu=0.2)
    yield tree.DecisionTreeClassifier(max_depth=3)
    yield tree.ExtraTreeClassifier(max_depth=3)
    yield ensemble.ExtraTreesClassifier(**few)
    yield ensemble.GradientBoostingClassifier(**few)
    yield ensemble.GradientBoostingClassifier(init="zero", **few)
    yield ensemble.AdaBoostClassifier(n_estimators=2)
    yield ensemble.BaggingClassifier(n_estimators=2)
    yield ensemble.BaggingClassifier(logistic, n_estimators=2, max_features=0.5)
    yield ensemble.VotingClassifier([("a", logistic), ("b", tree.DecisionTreeClassifier(max_depth=2))], voting="soft")
    yield ensemble.StackingClassifier([("a", logistic), ("b", naive_bayes.GaussianNB())], cv=2)
    yield naive_bayes.GaussianNB()
    yield naive_bayes.BernoulliNB()
    yield naive_bayes.MultinomialNB()
    yield naive_bayes.ComplementNB()
    yield naive_bayes.CategoricalNB(min_categories=20)
    for activation in ("relu", "tanh", "logistic", "identity"):
        yield neural_network.MLPClassifier(hidden_layer_sizes=(4,), activation=activation, max_iter=20)
    yield calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2)
    yield calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), method="isotonic", cv=2)
    yield discriminant_analysis.LinearDiscriminantAnalysis()
    yield discriminant_analysis.QuadraticDiscriminantAnalysis(reg_param=0.1)
    for step in transformers():
        yield make_pipeline(step, linear_model.LogisticRegression(max_iter=500))
    yield make_pipeline(
        ColumnTransformer(
            [("a", preprocessing.StandardScaler(), [0, 1]), ("b", preprocessing.OneHotEncoder(), [2])], remainder="drop"
        ),
        linear_model.LogisticRegression(max_iter=500),
    )


def transformers() -> Iterator[Any]:
    """Steps in front of a classifier."""
    for name in ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "Normalizer", "PowerTransformer", "Binarizer"):
        yield getattr(preprocessing, name)()
    yield preprocessing.Normalizer("l1")
    yield preprocessing.Normalizer("max")
    yield preprocessing.OneHotEncoder(handle_unknown="ignore")
    yield preprocessing.OrdinalEncoder()
    yield preprocessing.PolynomialFeatures(2)
    yield preprocessing.KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf")
    yield preprocessing.KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf")
    yield impute.SimpleImputer()
    yield impute.SimpleImputer(strategy="median", add_indicator=True)
    yield decomposition.PCA(2)
    yield decomposition.PCA(2, whiten=True)
    yield decomposition.TruncatedSVD(2)
    yield feature_selection.SelectKBest(k=2)
    yield feature_selection.VarianceThreshold()
    yield feature_selection.SelectFromModel(linear_model.LogisticRegression(max_iter=500))
    yield cluster.KMeans(2, n_init=1)


def regressors() -> Iterator[Any]:
    """Estimators of a number."""
    for name in OF_SCIKIT_LEARN:
        yield ESTIMATORS[name].regression.load()()
    for name in BOOSTERS:
        yield build(diabetes_signature(), name, {"n_estimators": 5}, random_state=0)
    for name in ("LinearRegression", "Lasso", "ElasticNet", "BayesianRidge", "HuberRegressor", "SGDRegressor", "Lars"):
        yield getattr(linear_model, name)()
    for name in ("PoissonRegressor", "GammaRegressor", "TweedieRegressor", "RANSACRegressor", "TheilSenRegressor"):
        yield getattr(linear_model, name)()
    yield svm.SVR()
    yield svm.NuSVR()
    yield svm.LinearSVR()
    yield tree.DecisionTreeRegressor(max_depth=3)
    yield ensemble.ExtraTreesRegressor(**FEW)
    yield ensemble.GradientBoostingRegressor(**FEW)
    yield ensemble.AdaBoostRegressor(n_estimators=2)
    yield ensemble.BaggingRegressor(n_estimators=2)
    yield ensemble.VotingRegressor([("a", linear_model.Ridge()), ("b", linear_model.Lasso())])
    yield ensemble.StackingRegressor([("a", linear_model.Ridge()), ("b", linear_model.Lasso())], cv=2)
    yield neural_network.MLPRegressor(hidden_layer_sizes=(4,), max_iter=20)


def others() -> Iterator[tuple[Any, Signature]]:
    """Estimators of outliers, clusters and several targets, fitted."""
    for name in answers.CONVERTED:
        model = answers.fitted(name)
        yield model.estimator, answers.signature_of(model)


def with_loops() -> Iterator[Any]:
    """Estimators whose conversion needs a loop or functions of its own."""
    yield neighbors.KNeighborsClassifier(3)
    yield make_pipeline(decomposition.KernelPCA(2, kernel="rbf"), linear_model.LogisticRegression())
    yield make_pipeline(impute.KNNImputer(n_neighbors=2), linear_model.LogisticRegression())


def fitted() -> Iterator[tuple[Any, Signature]]:
    """Every estimator with an allowed conversion, fitted."""
    wide = np.random.default_rng(1).uniform(0.1, 1.0, (ROWS, len(diabetes_signature().features)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for classifier in classifiers():
            yield fit(classifier), iris_signature()
        yield dated()
        for regressor in regressors():
            yield regressor.fit(wide, wide.sum(axis=1)), diabetes_signature()
        yield from others()


def dated() -> tuple[Any, Signature]:
    """A model that learns from dates."""
    signature = Signature((Feature("day", "date", low=0.0, high=9000.0, date=DateForm()), Feature("size")), "regression")
    rows = np.random.default_rng(2).uniform(0.0, 9000.0, (ROWS, 2))
    return build(signature, "random-forest", {}, random_state=0)[1:].fit(rows, rows.sum(axis=1)), signature


def fit(classifier: Any) -> Any:
    """A classifier fitted on some rows of iris."""
    X, y = iris()
    chosen = np.random.default_rng(0).permutation(len(X))[:ROWS]
    return classifier.fit(np.floor(X[chosen]), np.asarray(y)[chosen])


def conversions(estimator: Any, signature: Signature) -> Iterator[bytes]:
    """The models that the conversions of training give; none for a conversion that does not know the estimator."""
    for conversion in CONVERSIONS:
        try:
            yield to_onnx(estimator, signature, conversion.dtype, float64_operators=conversion.float64_operators)
        except Exception as error:
            print(f"{type(estimator).__name__}, {conversion}: {type(error).__name__}")


def operators(raw: bytes) -> set[tuple[str, str]]:
    """Domain and name of each operator, and `graph` for a graph in an attribute."""
    found: set[tuple[str, str]] = set()
    graphs = [onnx.load_from_string(raw).graph]
    while graphs:
        for node in graphs.pop().node:
            found.add((node.domain, node.op_type))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                    found.add((node.domain, f"graph in {node.op_type}"))
    return found
