"""Numbers of which most are zero, on the wire: as they are, by their places, or by a mask, whichever is shortest.

Source: section 3.3 of our note on DCT (Gupta et al., KDD 2021). Nothing is lost: what is read is bit by bit what was
written, but for the sign of zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from paceline.batch import Floats

Form = Literal["whole", "places", "mask"]
_FORMS: tuple[Form, ...] = ("whole", "places", "mask")
HEAD = 16  # bytes before the values, packed


@dataclass(frozen=True, slots=True)
class Thin:
    """n numbers. values: float32, those that are not zero (form whole: all); places: int32, where they stand; or uint8,
    a bit for each of the n."""

    form: Form
    values: Floats
    places: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Of the values and of what tells where they stand."""
        return int(self.values.nbytes + self.places.nbytes)


def thin_bytes(entries: float, kept: float) -> tuple[float, float]:
    """(bytes of values, bytes of places) that `kept` of `entries` numbers take in the shortest form."""
    places = min(4 * kept, float(math.ceil(entries / 8)))
    return (4 * entries, 0.0) if 4 * kept + places >= 4 * entries else (4 * kept, places)


def thin(values: Floats, mask: npt.NDArray[np.bool_] | None = None) -> Thin:
    """The shortest form of float32 [n]. mask: which of them are sent, whatever they are, and known to be sent; default:
    those that are not zero."""
    sent = values != 0.0 if mask is None else mask
    n, kept = values.shape[0], int(np.count_nonzero(sent))
    mask_bytes = -(-n // 8)
    if mask is None and 4 * kept + min(4 * kept, mask_bytes) >= 4 * n:
        return Thin("whole", values, np.zeros(0, np.uint8))
    places = np.flatnonzero(sent)
    if 4 * kept <= mask_bytes:
        return Thin("places", values[places], places.astype(np.int32))
    return Thin("mask", values[places], np.packbits(sent))


def pack(found: Thin) -> npt.NDArray[np.uint8]:
    """As bytes: number of the form and of the values (int64), values, places."""
    head = np.array([_FORMS.index(found.form), found.values.shape[0]])
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in (head, found.values, found.places)])


def unpack(data: npt.NDArray[np.uint8]) -> Thin:
    """What `pack` wrote."""
    number, count = data[:HEAD].copy().view(np.int64).tolist()
    stop, form = HEAD + 4 * count, _FORMS[number]
    places = data[stop:].copy().view(np.int32 if form == "places" else np.uint8)  # copies, for they are aligned
    return Thin(form, data[HEAD:stop].copy().view(np.float32), places)


def thicken(found: Thin, entries: int) -> Floats:
    """float32 [entries], out of what `thin` made of them. Raises ValueError if it is of another number of them."""
    if found.form == "whole":
        if found.values.shape[0] != entries:
            raise ValueError(f"{found.values.shape[0]} numbers instead of {entries}")
        return found.values
    places = _places(found, entries)
    if places.shape[0] != found.values.shape[0] or (places.size and not 0 <= places.min() <= places.max() < entries):
        raise ValueError(f"{found.values.shape[0]} numbers at {places.shape[0]} places of {entries}")
    whole: Floats = np.zeros(entries, np.float32)
    whole[places] = found.values
    return whole


def sent_of(found: Thin, entries: int) -> npt.NDArray[np.bool_]:
    """Which of the numbers were sent, bool [entries]."""
    sent = np.full(entries, found.form == "whole")
    if found.form != "whole":
        sent[_places(found, entries)] = True
    return sent


def _places(found: Thin, entries: int) -> npt.NDArray[Any]:
    return np.flatnonzero(np.unpackbits(found.places, count=entries)) if found.form == "mask" else found.places
