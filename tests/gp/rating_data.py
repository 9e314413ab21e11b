"""Small rating files that the tests of the room share."""

import numpy as np


def rating_file(folder, users=8, rows=12, seed=0):
    """A CSV of `users` * `rows` ratings with a context `mood` that matters and a real one, `temperature`."""
    draw = np.random.default_rng(seed)
    lines = ["user,item,rating,mood,temperature"]
    for user in range(users):
        taste = draw.normal(size=2)
        for _ in range(rows):
            item, mood, degrees = draw.integers(6), draw.integers(3), draw.normal(15, 8)
            y = 3 + taste[0] * (item - 2.5) / 2 + taste[1] * (mood - 1) + 0.2 * draw.normal()
            lines.append(f"u{user},i{item},{y:.3f},{('calm', 'sad', 'glad')[mood]},{degrees:.2f}")
    path = folder / "ratings.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


RATINGS = {
    "files": "ratings.csv", "user": "user", "item": "item", "rating": "rating",
    "contexts": ["mood", {"column": "temperature", "kind": "real"}],
}  # fmt: skip
