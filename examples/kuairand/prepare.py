"""KuaiRand (15-core subset) as one Parquet file per date, users' features joined.

    python examples/kuairand/prepare.py [--data FOLDER] [--out FOLDER]

--data: where the .csv.gz files are (default: kuairand under $PACELINE_DATA, or under ../shared/data). --out: where
day_0.parquet ... go (default: examples/kuairand/log).
"""

import argparse
import os
from pathlib import Path

import polars as pl

HERE = Path(__file__).resolve().parent
USER = ["user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num_range",
        "fans_user_num_range", "friend_user_num_range", "register_days_range"]  # fmt: skip


def main() -> None:
    root = Path(os.environ.get("PACELINE_DATA", HERE.parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=root / "kuairand")
    parser.add_argument("--out", type=Path, default=HERE / "log")
    options = parser.parse_args()
    shown = pl.read_csv(options.data / "processed_standard_kcore_15.csv.gz", separator="\t")
    users = pl.read_csv(options.data / "user_features_pure.csv.gz", infer_schema_length=None)
    onehot = [c for c in users.columns if c.startswith("onehot_feat")]
    joined = (
        shown.join(users.select("user_id", *USER, *onehot), on="user_id", how="left")
        .with_columns(hour=pl.col("hourmin") // 100)
        # What is only known after the impression (play time, likes, ...) may not be a feature.
        .select("is_click", "user_id", "video_id", "hour", "duration_ms", *USER, *onehot, "date", "time_ms")
        .sort("time_ms", "user_id", "video_id")
    )
    options.out.mkdir(parents=True, exist_ok=True)
    dates = sorted(joined["date"].unique())
    for day, date in enumerate(dates):
        joined.filter(pl.col("date") == date).drop("date", "time_ms").write_parquet(options.out / f"day_{day}.parquet")
    print(f"{len(joined):,} impressions in {len(dates)} files in {options.out}")


if __name__ == "__main__":
    main()
