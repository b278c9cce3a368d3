"""One table, written in every way that people write tables, is the same table for training and for scoring."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from serve_app.artifacts.fields import read_rows
from serve_app.errors import UsageError
from serve_app.tables.columns import Reading, csv_rows, parquet_rows
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.frame import read_table
from serve_app.tables.location import Location, sources
from serve_app.tables.splits import parquet_parts
from tests.support.scoring import split
from training.dataset import Dataset, load

TEXT = 'größe,count,town,active,art\n1.5,3,Köln,True,a\n"2.25",4,"Au, am ""See""",False,b\n,5,,True,a\n4,6,Köln,False,b\n'
ROWS = TEXT * 1 + "".join(f"{row / 4},{row},{'Bonn' if row % 3 else 'Köln'},{row % 2 == 0},{'ab'[row % 2]}\n" for row in range(40))


def rewritten(separator: str, *, decimal: str = ".", **options: Any) -> str:
    frame = pd.read_csv(io.StringIO(ROWS))
    return str(frame.to_csv(index=False, sep=separator, decimal=decimal, **options))


def zipped(text: str, *names: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("table.csv", "__MACOSX/._table.csv"):
            archive.writestr(name, text)
    return raw.getvalue()


FORMS: dict[str, tuple[bytes, str]] = {
    "semicolons": (rewritten(";").encode(), "';'"),
    "semicolons and decimal commas": (rewritten(";", decimal=",").encode(), "decimal comma"),
    "tabs": (rewritten("\t").encode(), "tab"),
    "tabs and decimal commas": (rewritten("\t", decimal=",").encode(), "decimal comma"),
    "bars": (rewritten("|").encode(), "'|'"),
    "every value quoted": (rewritten(",", quoting=1).encode(), "','"),
    "spaces after separators": (ROWS.replace(",", ", ").replace('"Au,  am', '"Au, am').encode(), "','"),
    "a byte order mark": (("\ufeff" + ROWS).encode(), "','"),
    "UTF-16 of Excel": (rewritten("\t").encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (ROWS.encode("utf-16-le"), "UTF-16-LE"),
    "Latin-1": (ROWS.encode("latin-1"), "Latin-1"),
    "German Excel": (rewritten(";", decimal=",").replace("\n", "\r\n").encode("cp1252"), "';', decimal comma, Windows-1252"),
    "Excel's line": (("sep=;\r\n" + rewritten(";", decimal=",").replace("\n", "\r\n")).encode("utf-8-sig"), "';', decimal comma"),
    "CR alone": (ROWS.replace("\n", "\r").encode(), "CR"),
    "blank lines": (("\n" + ROWS.replace("\n", "\n\n", 5) + "\n\n").encode(), "','"),
    "no end of line": (ROWS.rstrip("\n").encode(), "','"),
    "gzip": (gzip.compress(ROWS[:200].encode()) + gzip.compress(ROWS[200:].encode()), "gzip"),
    "gzip of UTF-16": (gzip.compress(ROWS.encode("utf-16")), "UTF-16, gzip"),
    "zip": (zipped(ROWS), "zip"),
    "bzip2": (bz2.compress(ROWS.encode()), "bzip2"),
    "xz": (lzma.compress(ROWS.encode()), "xz"),
    "zstd": (pa.compress(ROWS.encode(), codec="zstd", asbytes=True), "zstd"),
    "R's row names": (
        "\n".join(line if not at else f'"{at}",{line}' for at, line in enumerate(ROWS.splitlines())).encode(),
        "row's name",
    ),
    "R's write.table": (
        "\n".join(line if not at else f'"{at}" {line}' for at, line in enumerate(rewritten(" ", quoting=2).splitlines())).encode(),
        "space",
    ),
    "separators at the end": (ROWS.replace("\n", ",\n").encode(), "','"),
    "separators at the end of the rows": (
        "\n".join(line + ",," * (at > 0) for at, line in enumerate(ROWS.splitlines())).encode(),
        "','",
    ),
    "a separator at the end of the header": (ROWS.replace("art\n", "art,\n").encode(), "','"),
    "an exported index": (pd.read_csv(io.StringIO(ROWS)).to_csv().encode(), "'Unnamed: 0'"),
    "an index exported twice": (
        pd.read_csv(io.StringIO(ROWS)).assign(**{"Unnamed: 0": range(44)}).iloc[:, [5, 0, 1, 2, 3, 4]].to_csv().encode(),
        "'Unnamed: 0.1', 'Unnamed: 0'",
    ),
}


def written(folder: Path, raw: bytes | str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return path


def scored(path: Path, dataset: Dataset, part_bytes: int, flags: DialectFlags | None = None) -> Any:
    """The matrix that scoring reads."""
    location, header, parts = split(path, part_bytes, flags)
    reading = Reading(dataset.signature, (), "refuse")
    rows = [rows for part in parts for rows in csv_rows(location, part, header, reading)]
    assert all(not each.problems for each in rows)
    return np.concatenate([each.matrix for each in rows])


def trained(path: Path, target: str = "art", **options: Any) -> Dataset:
    return load(path, target=target, **options)


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    raw, said = FORMS[form]
    plain = trained(written(tmp_path, ROWS, "plain.csv"))
    path = written(tmp_path, raw, "table")
    dataset = trained(path)
    assert said in "; ".join(dataset.remarks)
    assert dataset.signature == plain.signature
    pd.testing.assert_frame_equal(dataset.train, plain.train)
    assert dataset.train_target.tolist() == plain.train_target.tolist()
    matrix = scored(tmp_path / "plain.csv", plain, 1 << 20)
    for part_bytes in (1 << 20, 200):
        np.testing.assert_array_equal(scored(path, dataset, part_bytes), matrix)


PEOPLE: dict[str, tuple[str | bytes, dict[str, Any], dict[str, str]]] = {
    "Excel in French": (
        "ville;surface;kind\r\n"
        + "".join(f"{('à Orléans', 'Haÿ', 'Bézier')[row % 3]};{row},5;{'ab'[row % 2]}\r\n" for row in range(30)),
        {},
        {"ville": "category", "surface": "number"},
    ),
    "write.csv2 of R": (
        '"";"x";"n";"kind"\n'
        + "".join(f'"{row}";{row},25;{"NA" if row % 5 == 0 else row};"{"ab"[row % 2]}"\n' for row in range(30)),
        {},
        {"x": "number", "n": "number?"},
    ),
    "Google Sheets in German": (
        "x,y,kind\n" + "".join(f'"{row},25",{row},{"ab"[row % 2]}\n' for row in range(30)),
        {"flags": DialectFlags(decimal=",")},
        {"x": "number", "y": "number"},
    ),
    "SAS": (
        "x,n,kind\n" + "".join(f"{'.' if row % 5 == 0 else row},{row},{'ab'[row % 2]}\n" for row in range(30)),
        {"missing": ["."]},
        {"x": "number?", "n": "number"},
    ),
    "COPY of PostgreSQL": (
        "x\tactive\tkind\n"
        + "".join(f"{row}\t{chr(92) + 'N' if row % 5 == 0 else 'true'}\t{'ab'[row % 2]}\n" for row in range(30)),
        {"missing": ["\\N"]},
        {"x": "number", "active": "boolean?"},
    ),
    "an index of two levels": (
        ",,x,kind\n" + "".join(f"{row // 7},{row % 7},{row / 2},{'ab'[row % 2]}\n" for row in range(30)),
        {},
        {"x": "number"},
    ),
}


@pytest.mark.parametrize("program", PEOPLE)
def test_what_programs_export_is_learnt_and_scored(tmp_path: Path, program: str) -> None:
    raw, options, kinds = PEOPLE[program]
    path = written(tmp_path, raw.encode("cp1252") if program == "Excel in French" and isinstance(raw, str) else raw)
    dataset = load(path, target="kind", **options)
    assert {item.name: item.kind + "?" * item.nullable for item in dataset.signature.features} == kinds
    matrix = scored(path, dataset, 100, options.get("flags"))
    assert len(matrix) == 30
    assert np.isnan(matrix).any(axis=0).tolist() == [item.nullable for item in dataset.signature.features]


def test_a_text_among_numbers_is_named_with_the_flag_that_reads_it_as_missing(tmp_path: Path) -> None:
    raw, _, _ = PEOPLE["SAS"]
    with pytest.raises(UsageError, match=r"row 1 says '\.'.*--na \."):
        load(written(tmp_path, raw), target="kind")


def test_flags_name_what_cannot_be_found(tmp_path: Path) -> None:
    plain = trained(written(tmp_path, ROWS, "plain.csv"))
    flags = DialectFlags("^", ",", "cp1250")
    path = written(tmp_path, rewritten("^", decimal=",").encode("cp1250"))
    dataset = load(path, target="art", flags=flags)
    assert dataset.signature == plain.signature
    np.testing.assert_array_equal(scored(path, dataset, 200, flags), scored(tmp_path / "plain.csv", plain, 200))


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ("x,y\n1,2\n1,2,3\n1,2\n", r"row 2\b.*\b3\b.*\b2\b"),
        ("x,y,z\n1,2,3\n1,2\n1,2,3\n", r"row 2\b.*\b2\b.*\b3\b"),
        ('x,y\n1,"2\n2"\n\n1,2\n3\n', r"row 3\b"),
        ("x,y\n1.5,2,a\n1.5,2,b\n", r"row 1\b.*\b3\b.*\b2\b"),
        ("x,y\n1.5,2,\n3,4,5\n", r"row 1\b"),
        ("x;y\n" + "1;2\n" * 200_000 + "1;2;3\n", r"row 200001\b"),
        ("x,y\n" + "1,2,\n" * 300_000 + "1,2,3\n", r"row 300001\b"),
        ("x,y\n1,2,\n3,4,\n5,6\n", r"row 3\b.*\b2\b.*\b3\b"),
        ("x,,y\n1,2,3\n", r"column 2\b"),
        ("x,y,\n1,2,3\n", r"column 3\b"),
        ("x,y\n1,a\x00\n", r"NUL.*row 1\b"),
        ("x\0,y\n1,a\n", "NUL"),
        ("a;b,c\n1;2,3\n4;5,6\n", "--separator"),
        ("x;y\n1,5;2.25\n", "--decimal"),
        ("x;y\n1,234;2\n", "--decimal"),
        ("рост,y\n1,2\n".encode("cp1251"), "--encoding"),
        ("x,y\n1,Ж\n".encode("koi8-r"), "--encoding"),
        ("x,y\n1,男\n2,女\n".encode("gbk"), "--encoding"),
        ("x,y\nŁódź,1\n".encode("cp1250"), "--encoding"),
        (b"x,y\n" + b"1,2\n" * 300_000 + b"1,\xe4\n", "row 300001.*--encoding"),
        (zipped("x,y\n1,2\n", "a.csv", "b.csv"), "2 files"),
        (zipped("", "[Content_Types].xml", "xl/workbook.xml"), "Excel"),
        (gzip.compress(ROWS.encode())[:60], "cannot be unpacked"),
        (b"BZh91AY" + b"0" * 40, "cannot be unpacked"),
        (b"table.csv" + b"\0" * 248 + b"ustar", "tar"),
        (gzip.compress(b""), "is empty"),
        ("x,y\n", "no rows"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "table",
)
def test_what_does_not_fit_is_refused_with_its_row_or_its_flag(tmp_path: Path, raw: bytes | str, named: str) -> None:
    path = written(tmp_path, raw)
    with pytest.raises(UsageError, match=named) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_a_packed_file_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.tables.content.FREE_BYTES", 1 << 20)
    path = written(tmp_path, gzip.compress(b"x,y\n" + b"1,2\n" * 2_000_000))
    with pytest.raises(UsageError, match="unpacks to more than"):
        read_table(path)


def test_names_that_differ_in_case_or_blanks_are_remarked(tmp_path: Path) -> None:
    remarks = read_table(written(tmp_path, "width,Width,kind,kind \n1,2,3,4\n5,6,7,8\n")).remarks
    assert [remark.count("'") for remark in remarks] == [4, 4]


@pytest.mark.parametrize("name", ["table.parquet.gzip", "table.csv", "table"])
def test_parquet_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    pd.DataFrame({"x": [1, 2], "y": ["a", "b"]}).to_parquet(tmp_path / name)
    table = read_table(tmp_path / name)
    assert table.description == "read as Parquet"
    assert table.frame["y"].tolist() == ["a", "b"]


def test_a_folder_with_keys_in_its_names_is_a_table_with_these_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"x": [1.5, 2.5, 3.5, 4.5] * 10, "y": ["a", "b"] * 20, "year": [2024, 2025] * 20, "town": ["Bonn", "Au"] * 20}
    )
    frame.to_parquet(tmp_path / "flat.parquet")
    parquet.write_to_dataset(pa.Table.from_pandas(frame), tmp_path / "by", partition_cols=["year", "town"])
    (tmp_path / "by" / "_SUCCESS").touch()
    (tmp_path / "by" / ".part.crc").write_bytes(b"x")
    flat, folder = trained(tmp_path / "flat.parquet", "y"), trained(tmp_path / "by", "y")
    assert {feature.name: feature.kind for feature in flat.signature.features} == {
        feature.name: feature.kind for feature in folder.signature.features
    }
    location = Location(str(tmp_path / "by"))
    reading = Reading(flat.signature, ("town",), "refuse")
    found = []
    for source in sources(location)[1]:
        _, (part,) = parquet_parts(location, source, 1 << 20, 0)
        for rows in parquet_rows(location, part, reading):
            found += list(zip(rows.matrix.tolist(), rows.kept.column("town").to_pylist(), strict=True))
    assert len(found) == 40
    expected = {tuple(read_rows(flat.signature, [row])[0]) for row in frame.drop(columns="y").to_dict("records")}
    assert {tuple(matrix) for matrix, _ in found} == expected
    assert {(matrix[1], town) for matrix, town in found} == {(2024.0, "Bonn"), (2025.0, "Au")}


def test_the_files_of_a_folder_are_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    for year in (2024, 2025):
        (folder / f"year={year}").mkdir(parents=True)
        written(folder / f"year={year}", f"x;y\n1,5;{year}\n", "part-0.csv")
    written(folder, "", "_SUCCESS")
    table = read_table(folder)
    assert table.frame.to_dict("list") == {"x": [1.5, 1.5], "y": [2024, 2025], "year": [2024, 2025]}
    written(folder, "x;z\n1;2\n", "other.csv")
    with pytest.raises(UsageError, match="other columns"):
        read_table(folder)


def test_thirty_thousand_columns_are_read_at_once(tmp_path: Path) -> None:
    names = [f"gene_{at}" for at in range(30_000)]
    rows = [",".join("0.5" if at % 7 else str(at) for at in range(30_000)) + f",{'ab'[row % 2]}" for row in range(10)]
    path = written(tmp_path, "\n".join([",".join([*names, "kind"]), *rows]))
    frame = read_table(path).frame
    assert list(frame.columns) == [*names, "kind"]
    assert frame.iloc[3, 29_995:].tolist() == [29_995, 0.5, 0.5, 0.5, 0.5, "b"]
