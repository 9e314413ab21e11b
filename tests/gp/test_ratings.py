"""Rating files: every format, every mistake, and the real data sets."""

import gzip
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rating_data import RATINGS

from conftest import real_data
from paceline.errors import ConfigError, DataError
from paceline.gp.config import FactorizeConfig, RatingsConfig
from paceline.gp.encode import UNSEEN, Vocabulary
from paceline.gp.ratings import MISSING, read_ratings
from paceline.jobfile import check

TEXT = "user,item,rating,mood,temperature\na,x,4,glad,20\nb,y,2.5,NA,\na,y,1,sad,-3\n"


def config(**changes):
    values = {"ratings": {**RATINGS, **changes}}
    return check(values, "job.yaml", kind=FactorizeConfig).ratings


def read(folder, text=TEXT, **changes):
    (folder / "ratings.csv").write_text(text)
    told = []
    return read_ratings("ratings.csv", config(**changes), folder, told.extend), told


def test_values_kinds_and_missing(tmp_path):
    rows, told = read(tmp_path)
    assert (rows.users.tolist(), rows.items.tolist(), rows.ratings.tolist()) == (
        ["a", "b", "a"],
        ["x", "y", "y"],
        [4, 2.5, 1],
    )
    assert rows.contexts["mood"].tolist() == ["glad", MISSING, "sad"]
    np.testing.assert_array_equal(rows.contexts["temperature"], [20, np.nan, -3])
    assert not told


def test_all_formats_say_the_same(tmp_path):
    rows, _ = read(tmp_path)
    (tmp_path / "r.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "r.tsv").write_text(TEXT.replace(",", "\t").replace("\n", "\r\n") + "\r\n")
    (tmp_path / "bare.csv").write_text(TEXT.split("\n", 1)[1])
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("folder/r.csv", TEXT)
    columns = {"user": ["a", "b", "a"], "item": ["x", "y", "y"], "rating": [4.0, 2.5, 1.0]}
    table = pa.table({**columns, "mood": ["glad", None, "sad"], "temperature": [20, None, -3]})
    pq.write_table(table, tmp_path / "r.parquet")
    names = TEXT.split("\n", 1)[0].split(",")
    for file, changes in [
        ("r.csv.gz", {}),
        ("r.tsv", {"format": "tsv"}),
        ("bare.csv", {"columns": names}),
        (f"zip://folder/r.csv::{tmp_path}/r.zip", {}),
        ("r.parquet", {"format": "parquet"}),
    ]:
        found = read_ratings(file, config(**changes), tmp_path, lambda _: None)
        assert found.users.tolist() == rows.users.tolist(), file
        assert found.contexts["mood"].tolist() == rows.contexts["mood"].tolist(), file
        np.testing.assert_array_equal(found.ratings, rows.ratings)
        np.testing.assert_array_equal(found.contexts["temperature"], rows.contexts["temperature"])
    both = read_ratings(["ratings.csv", "r.csv.gz"], config(), tmp_path, lambda _: None)
    assert len(both) == 6


def test_vocabulary(tmp_path):
    rows, _ = read(tmp_path)
    known = Vocabulary.of(rows.take(np.array([0, 2])))
    assert known.to_json()["contexts"] == {"mood": ["glad", "sad"]}
    assert Vocabulary.from_json(known.to_json()) == known
    coded = known.encode(rows)
    assert (coded.user.tolist(), coded.item.tolist()) == ([0, UNSEEN, 0], [0, 1, 1])
    assert coded.contexts[:, 0].tolist() == [0, UNSEEN, 1]
    np.testing.assert_allclose(coded.reals[:, 0].numpy(), [1, np.nan, -1])


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        (TEXT.replace("2.5", "good"), {}, ["line 3", "rating: 'good' is no finite number", "on_bad_row: skip"]),
        (TEXT.replace("2.5", "inf"), {}, ["line 3", "'inf'"]),
        (TEXT.replace("2.5", ""), {}, ["line 3", "no rating"]),
        (TEXT.replace("b,y", ",y"), {}, ["line 3", "no user"]),
        (TEXT.replace(",20", ",warm"), {}, ["line 2", "temperature: 'warm' is no finite number"]),
        (TEXT.replace(",20", ",20,1"), {}, ["line 2", "6 cells, not 5"]),
        (TEXT.replace("mood", "moods"), {}, ["no column 'mood'; did you mean 'moods'?"]),
        (TEXT.replace("temperature", "user"), {}, ["2 columns 'user'"]),
        (TEXT.replace("temperature", "mood"), {"contexts": ["mood"]}, ["2 columns 'mood'"]),
        (TEXT.split("\n")[0], {}, ["no row with a user, an item and a rating"]),
        ("", {}, ["the file is empty", "ratings.files"]),
        (TEXT, {"format": "parquet"}, ["Parquet"]),
    ],
)
def test_mistakes_in_files(tmp_path, text, changes, words):
    with pytest.raises(DataError) as error:
        read(tmp_path, text, **changes)
    for word in (str(tmp_path / "ratings.csv"), *words):
        assert word in str(error.value)


def test_no_such_file_and_not_text(tmp_path):
    with pytest.raises(DataError, match=r"ratings\.files: .*does not exist"):
        read_ratings("none.csv", config(), tmp_path, lambda _: None)
    (tmp_path / "ratings.csv").write_bytes(TEXT.encode().replace(b"glad", b"\xff\xfe"))
    with pytest.raises(DataError, match="in UTF-8"):
        read_ratings("ratings.csv", config(), tmp_path, lambda _: None)


def test_bad_rows_are_left_out_and_told(tmp_path):
    text = TEXT.replace("2.5", "good") + "a,z\n,y,3,sad,1\n"
    rows, told = read(tmp_path, text, on_bad_row="skip")
    assert rows.ratings.tolist() == [4, 1]
    assert [row.line for row in told] == [3, 5, 6]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"name": "gplvm"}}, ["model.name", "'gplvm' is not allowed"]),
        ({"model": {"name": "fm", "inducing": 3}}, ["the model 'fm' has no option 'inducing'", "l2_factors"]),
        ({"model": {"name": "gplvmf", "dim": 0}}, ["model.dim: 0 is not allowed"]),
        ({"model": {"name": "gpfm", "covariance": "cosine"}}, ["model.covariance: 'cosine'"]),
        ({"model": "gplvmf", "training": {"method": "sgd"}}, ["'sgd' does not fit the model 'gplvmf'", "adam, lbfgs"]),
        ({"model": "mean", "training": {"method": "adam"}}, ["nothing to train"]),
        ({"training": {"epochs": 0}}, ["training.epochs: 0 is not allowed"]),
        ({"training": {"rate": 0.1}}, ["training.rate: unknown key"]),
        ({"split": {"test": 1.0}}, ["split.test: 1.0 is not allowed"]),
        ({"split": {"test": 0.1}, "ratings": {**RATINGS, "test": "t.csv"}}, ["leave one of the two out"]),
        ({"ratings": {**RATINGS, "item": "user"}}, ["column 'user' is used twice"]),
        ({"ratings": {**RATINGS, "contexts": [{"column": "a", "kind": "number"}]}}, ["ratings.contexts.0.kind"]),
        ({"ratings": {**RATINGS, "files": []}}, ["ratings.files", "name at least one"]),
        ({"ratings": {**RATINGS, "format": "parquet", "columns": ["a"]}}, ["columns are for csv and tsv"]),
        ({"ratings": {"files": "a", "user": "u", "item": "i"}}, ["ratings.rating: this key is needed"]),
        ({"rating": {}}, ["rating: unknown key; did you mean 'ratings'?"]),
    ],
)
def test_mistakes_in_the_configuration(changes, words):
    with pytest.raises(ConfigError) as error:
        check({"ratings": RATINGS, **changes}, "job.yaml", kind=FactorizeConfig)
    for word in words:
        assert word in str(error.value)


def test_what_is_not_given_is_written_down():
    found = check({"ratings": RATINGS, "model": "gpfm"}, "job.yaml", kind=FactorizeConfig)
    assert (found.method, found.rate, found.step_users) == ("adam", 0.03, 8)
    again = found.to_yaml()
    assert "inducing" not in again
    assert "start: 2.0" in again
    assert "lr: 0.03" in again
    assert check(yaml.safe_load(again), "config.yaml", kind=FactorizeConfig).to_yaml() == again


def test_real_rows_are_counted():
    context = real_data("context")
    movies = RatingsConfig(
        files=f"zip://Movie_DePaulMovie/ratings.txt::{context}/Movie_DePaulMovie.zip",
        user="userid", item="itemid", rating="rating", contexts=[{"column": "Companion"}],
    )  # fmt: skip
    rows = read_ratings(movies.files, movies, context, lambda _: None)
    assert len(rows) == 5043
    assert set(rows.contexts["Companion"]) == {MISSING, "Alone", "Family", "Partner"}
    hotels = RatingsConfig(
        files=f"zip://Travel_TripAdvisor_v2/Data_TripAdvisor_v2.csv::{context}/Travel_TripAdvisor_v2.zip",
        user="UserID", item="ItemID", rating="Rating", contexts=[{"column": "TripType"}],
    )  # fmt: skip
    assert len(read_ratings(hotels.files, hotels, context, lambda _: None)) == 14175
