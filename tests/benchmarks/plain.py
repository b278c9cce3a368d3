"""What everybody writes first: FastAPI, pydantic and scikit-learn in one uvicorn worker. The base of every ratio."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib
from fastapi import FastAPI
from pydantic import BaseModel, Field


class Flower(BaseModel):
    sepal_length: float = Field(ge=0, le=20)
    sepal_width: float = Field(ge=0, le=20)
    petal_length: float = Field(ge=0, le=20)
    petal_width: float = Field(ge=0, le=20)


class Flowers(BaseModel):
    instances: list[Flower]


class Prediction(BaseModel):
    prediction: str
    confidence: float
    probabilities: dict[str, float]


class Predictions(BaseModel):
    predictions: list[Prediction]


model: Any = joblib.load(Path(os.environ["PLAIN_MODEL"]))
names = [str(label) for label in model.classes_]
app = FastAPI()


def values(flower: Flower) -> list[float]:
    return [flower.sepal_length, flower.sepal_width, flower.petal_length, flower.petal_width]


def answers(rows: list[list[float]]) -> list[Prediction]:
    labels, probabilities = model.predict(rows), model.predict_proba(rows)
    return [
        Prediction(prediction=str(label), confidence=float(row.max()), probabilities=dict(zip(names, map(float, row), strict=True)))
        for label, row in zip(labels, probabilities, strict=True)
    ]


@app.post("/predict")
async def predict(flower: Flower) -> Prediction:
    return answers([values(flower)])[0]


@app.post("/predict/batch")
async def predict_batch(flowers: Flowers) -> Predictions:
    return Predictions(predictions=answers([values(flower) for flower in flowers.instances]))
