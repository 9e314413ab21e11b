"""Draw the pace machine's life cycles from its table of transitions into docs/pace.md (a test compares them).

python scripts/draw_pace.py
"""

from pathlib import Path

from paceline.pace import TRANSITIONS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pace.md"
BEGIN, END = "<!-- drawn by scripts/draw_pace.py -->", "<!-- end of the drawing -->"


def drawing() -> str:
    """Two Mermaid state diagrams, one per life cycle."""
    pieces = []
    for what in dict.fromkeys(t[0] for t in TRANSITIONS):
        lines = [f"    {a} --> {b} : {why}" for kind, a, why, b in TRANSITIONS if kind == what]
        first = next(a for kind, a, _, _ in TRANSITIONS if kind == what)
        pieces.append(
            "\n".join([f"A {what}:", "", "```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *lines, "```"])
        )
    return "\n\n".join(pieces)


def drawn_page(text: str) -> str:
    """The page with the drawing put between its marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{drawing()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn_page(PAGE.read_text()))
