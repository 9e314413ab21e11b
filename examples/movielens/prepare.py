"""MovieLens-1M as seven Parquet files in order of time.

    python examples/movielens/prepare.py [--data FOLDER] [--out FOLDER]

--data: where ratings.dat.gz, users.dat.gz and movies.dat.gz are (default: movielens-1m under $PACELINE_DATA, or under
../shared/data). --out: where day_0.parquet ... go (default: examples/movielens/log).
"""

import argparse
import gzip
import os
from pathlib import Path

import polars as pl

HERE = Path(__file__).resolve().parent
DAYS = 7


def read(path: Path, columns: list[str]) -> pl.DataFrame:
    """A MovieLens file: '::' between columns, Latin-1."""
    with gzip.open(path, "rt", encoding="latin-1") as file:
        lines = file.read().splitlines()
    return pl.DataFrame([line.split("::") for line in lines], schema=columns, orient="row")


def main() -> None:
    root = Path(os.environ.get("PACELINE_DATA", HERE.parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=root / "movielens-1m")
    parser.add_argument("--out", type=Path, default=HERE / "log")
    options = parser.parse_args()
    ratings = read(options.data / "ratings.dat.gz", ["user", "movie", "rating", "time"])
    users = read(options.data / "users.dat.gz", ["user", "gender", "age", "occupation", "zip"])
    movies = read(options.data / "movies.dat.gz", ["movie", "title", "genres"])
    joined = (
        ratings.with_columns(pl.col("rating").cast(pl.Int8), pl.col("time").cast(pl.Int64))
        .join(users, on="user", how="left")
        .join(movies.with_columns(year=pl.col("title").str.extract(r"\((\d{4})\)$")), on="movie", how="left")
        .with_columns(zip=pl.col("zip").str.slice(0, 3), hour=pl.from_epoch("time").dt.hour())
        .drop("title")
        .sort("time", "user", "movie")
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for day in range(DAYS):
        start, stop = len(joined) * day // DAYS, len(joined) * (day + 1) // DAYS
        joined[start:stop].write_parquet(options.out / f"day_{day}.parquet")
    print(f"{len(joined):,} ratings in {DAYS} files in {options.out}")


if __name__ == "__main__":
    main()
