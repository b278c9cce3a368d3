"""The plain application for a table with texts: FastAPI, pydantic, pandas and scikit-learn in one uvicorn worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel


class Customer(BaseModel):
    n0: float
    n1: float
    n2: float
    n3: float
    n4: float
    n5: float
    n6: float
    n7: float
    city: str
    plan: str


class Customers(BaseModel):
    instances: list[Customer]


class Prediction(BaseModel):
    prediction: str
    confidence: float
    probabilities: dict[str, float]


class Predictions(BaseModel):
    predictions: list[Prediction]


model: Any = joblib.load(Path(os.environ["PLAIN_MODEL"]))
names = [str(label) for label in model.classes_]
app = FastAPI()


def answers(rows: list[Customer]) -> list[Prediction]:
    frame = pd.DataFrame([row.model_dump() for row in rows])
    labels, probabilities = model.predict(frame), model.predict_proba(frame)
    return [
        Prediction(prediction=str(label), confidence=float(row.max()), probabilities=dict(zip(names, map(float, row), strict=True)))
        for label, row in zip(labels, probabilities, strict=True)
    ]


@app.post("/predict")
async def predict(customer: Customer) -> Prediction:
    return answers([customer])[0]


@app.post("/predict/batch")
async def predict_batch(customers: Customers) -> Predictions:
    return Predictions(predictions=answers(customers.instances))
