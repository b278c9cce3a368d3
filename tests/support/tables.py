"""Tables of the kinds that people have: numbers, texts, booleans and gaps, with something to learn in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def customers(rows: int = 240, *, seed: int = 0) -> pd.DataFrame:
    """Every kind of column; whether a customer `stays` (yes or no) follows from age, plan and `active`."""
    random = np.random.default_rng(seed)
    age = random.integers(18, 90, rows).astype(object)
    plan = random.choice(np.array(["basic", "gold", "silver"], dtype=object), rows)
    active = random.choice(np.array([True, False]), rows)
    newsletter = random.choice(np.array([True, False], dtype=object), rows)
    spent = np.round(random.gamma(2.0, 50.0, rows), 2)
    stays = np.where((age.astype(float) > 45) & (active | (plan == "gold")), "yes", "no")
    age[::11] = None
    plan[5::13] = None
    newsletter[3::7] = None
    return pd.DataFrame({"age": age, "plan": plan, "active": active, "newsletter": newsletter, "spent": spent, "stays": stays})


def houses(rows: int = 200, *, seed: int = 0) -> pd.DataFrame:
    """A regression: `price` follows from area, rooms and the town."""
    random = np.random.default_rng(seed)
    area = np.round(random.uniform(30, 220, rows), 1)
    rooms = np.maximum(1, (area // 28).astype(int))
    town = random.choice(np.array(["Bonn", "Oslo", "Rome"], dtype=object), rows)
    price = 1000.0 * area + 5000.0 * rooms + np.where(town == "Oslo", 60_000.0, 0.0) + random.normal(0, 5000, rows)
    return pd.DataFrame({"area": area, "rooms": rooms, "town": town, "price": np.round(price, 2)})


def spam(rows: int = 200, *, seed: int = 0) -> pd.DataFrame:
    """Two classes named by the numbers 0 and 1."""
    random = np.random.default_rng(seed)
    links, length = random.integers(0, 12, rows), random.integers(10, 900, rows)
    return pd.DataFrame({"links": links, "length": length, "spam": (links > 5).astype(int)})


def visits(rows: int = 300, *, seed: int = 0) -> pd.DataFrame:
    """Dates in several forms: whether a visitor `stays` follows from the day of the week, the hour and the month of birth."""
    random = np.random.default_rng(seed)
    moments = pd.Timestamp("2001-02-03") + pd.to_timedelta(random.integers(0, 900 * 24 * 60, rows), "min")
    born = pd.Series(pd.Timestamp("1940-01-01") + pd.to_timedelta(random.integers(0, 22_000, rows), "D"))
    born = born.where(born.index % 9 > 0)
    stays = (moments.day_of_week > 3) & (moments.hour > 6) | (born.dt.month == 2).to_numpy()
    return pd.DataFrame(
        {
            "arrived": moments.strftime("%m/%d/%Y %I:%M %p"),
            "zoned": moments.strftime("%Y-%m-%dT%H:%M:00+02:00"),
            "born": born.dt.strftime("%d %b %Y"),
            "opens": moments.strftime("%H:%M"),
            "month": moments.strftime("%Y-%m"),
            "plan": random.choice(np.array(["basic", "gold"], dtype=object), rows),
            "stays": np.where(stays, "yes", "no"),
        }
    )


def written(table: pd.DataFrame, folder: Path, name: str = "table.csv") -> Path:
    """The table as a CSV or Parquet file, by the ending of its name."""
    path = folder / name
    if path.suffix == ".parquet":
        table.convert_dtypes().to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


def lines(folder: Path, *rows: str, name: str = "table.csv") -> Path:
    """A CSV file of these lines."""
    path = folder / name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def many(rows: int, *columns: Any) -> list[str]:
    """Lines of a CSV file: constants, or functions of the row's number."""
    return [",".join(str(column(row) if callable(column) else column) for column in columns) for row in range(rows)]
