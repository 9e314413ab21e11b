"""Text to spans, spans to numbers. A span is (start, end) into a uint8 buffer: no Python string is ever made."""

from __future__ import annotations

import numpy as np

from paceline.kernels.jit import kernel

NEWLINE, RETURN, SPACE, HASH, COLON = 10, 13, 32, 35, 58
FLOAT32_MAX = 3.4028234e38


@kernel
def split_rows(buf, end, last, delimiter, quote, starts, ends, found, lines):
    """Cut buf[:end] into rows and cells (RFC 4180 where `quote` >= 0; `delimiter` is uint8 [1..n] bytes).

    starts, ends: int32 [rows, columns]; found: int32 [rows], cells seen in the row (may exceed columns);
    lines: int64 [rows], newlines before the row. `last`: no more bytes follow, so the tail is a row too.
    Returns (rows, bytes used, newlines used, offset of a NUL byte or -1). Empty lines are no rows. Doubled quotes are
    folded in place, so a span holds the value itself.
    """
    columns = starts.shape[1]
    width = delimiter.shape[0]
    row, used, line, used_line = 0, 0, 0, 0
    i = 0
    while i < end and row < starts.shape[0]:
        lines[row] = line
        column = 0
        complete = False
        while True:  # one cell after another
            cell = i
            out = i
            if quote >= 0 and i < end and buf[i] == quote:
                cell = i + 1
                out = cell
                i += 1
                while i < end:
                    if buf[i] == quote:
                        if i + 1 < end and buf[i + 1] == quote:
                            i += 1
                        else:
                            break
                    if buf[i] == NEWLINE:
                        line += 1
                    buf[out] = buf[i]
                    out += 1
                    i += 1
                if i >= end:
                    if not last:
                        return row, used, used_line, -1
                else:
                    i += 1  # the closing quote; what follows up to the delimiter is kept as it is
            else:
                out = i
            while i < end:
                c = buf[i]
                if c == NEWLINE:
                    break
                if c == 0:
                    return row, used, used_line, i
                if c == delimiter[0]:
                    same = True
                    for k in range(1, width):
                        if i + k >= end or buf[i + k] != delimiter[k]:
                            same = False
                            break
                    if same:
                        break
                if out != i:
                    buf[out] = c
                out += 1
                i += 1
            at_end = i >= end
            if at_end and not last:
                return row, used, used_line, -1
            stop = at_end or buf[i] == NEWLINE
            if stop and out > cell and buf[out - 1] == RETURN:
                out -= 1
            if column < columns:
                starts[row, column] = cell
                ends[row, column] = out
            column += 1
            if stop:
                complete = True
                i += 1
                line += 1
                break
            i += width
        if complete:
            if not (column == 1 and ends[row, 0] == starts[row, 0]):
                found[row] = column
                row += 1
            used, used_line = min(i, end), line
    return row, used, used_line, -1


@kernel
def parse_number(buf, start, end):
    """(value, state) of the decimal text buf[start:end]: state 0 fine, 1 empty, 2 no finite number."""
    while start < end and buf[start] == SPACE:
        start += 1
    while end > start and buf[end - 1] == SPACE:
        end -= 1
    if start == end:
        return 0.0, 1
    sign = 1.0
    i = start
    if buf[i] == 45 or buf[i] == 43:
        sign = -1.0 if buf[i] == 45 else 1.0
        i += 1
    digits = 0
    mantissa = 0.0
    scale = 0
    while i < end and 48 <= buf[i] <= 57:
        mantissa = mantissa * 10.0 + (buf[i] - 48)
        digits += 1
        i += 1
    if i < end and buf[i] == 46:
        i += 1
        while i < end and 48 <= buf[i] <= 57:
            mantissa = mantissa * 10.0 + (buf[i] - 48)
            digits += 1
            scale -= 1
            i += 1
    if digits == 0:
        return 0.0, 2
    if i < end and (buf[i] == 101 or buf[i] == 69):
        i += 1
        negative = False
        if i < end and (buf[i] == 45 or buf[i] == 43):
            negative = buf[i] == 45
            i += 1
        if i == end:
            return 0.0, 2
        power = 0
        while i < end and 48 <= buf[i] <= 57:
            power = min(power * 10 + (buf[i] - 48), 100000)
            i += 1
        scale += -power if negative else power
    if i != end:
        return 0.0, 2
    if scale < 0:
        value = mantissa / 10.0 ** min(-scale, 308)
    elif scale > 0 and mantissa != 0.0:
        value = mantissa * 10.0 ** min(scale, 309)
    else:
        value = mantissa
    if not np.isfinite(value):
        return 0.0, 2
    return sign * value, 0


@kernel
def parse_numbers(buf, starts, ends, values, state):
    """values float64 [rows], state uint8 [rows] of the spans (see `parse_number`)."""
    for r in range(starts.shape[0]):
        values[r], state[r] = parse_number(buf, np.int64(starts[r]), np.int64(ends[r]))


@kernel
def split_cells(buf, starts, ends, separator, offsets, cell_starts, cell_ends):
    """Cut each span at byte `separator`. offsets: int64 [rows + 1]. Returns the number of cells.

    With empty `cell_starts` it only counts. Empty cells are left out; a span without cells is an empty bag.
    """
    count = 0
    write = cell_starts.shape[0] > 0
    for r in range(starts.shape[0]):
        offsets[r] = count
        cell = np.int64(starts[r])
        for i in range(np.int64(starts[r]), np.int64(ends[r]) + 1):
            if i == ends[r] or buf[i] == separator:
                if i > cell:
                    if write:
                        cell_starts[count] = cell
                        cell_ends[count] = i
                    count += 1
                cell = i + 1
    offsets[starts.shape[0]] = count
    return count


@kernel
def split_libsvm(buf, starts, ends, offsets, id_starts, id_ends, weights, labels, state):
    """Rows `label index:value ...` (a `qid:` pair and a `# comment` are passed over).

    offsets int64 [rows + 1]; id_starts, id_ends int32 and weights float32 [pairs]; labels float64 [rows];
    state uint8 [rows]: 0 fine, 1 no label, 2 a pair that is none, 3 a value that is no finite number,
    4 an index that is no whole number below 2^63, 5 no features. Returns the number of pairs.
    """
    count = 0
    for r in range(starts.shape[0]):
        offsets[r] = count
        state[r] = 0
        i = np.int64(starts[r])
        end = np.int64(ends[r])
        for k in range(i, end):
            if buf[k] == HASH:
                end = k
                break
        first = True
        while i < end:
            while i < end and (buf[i] == SPACE or buf[i] == 9):
                i += 1
            if i >= end:
                break
            token = i
            colon = -1
            while i < end and buf[i] != SPACE and buf[i] != 9:
                if buf[i] == COLON and colon < 0:
                    colon = i
                i += 1
            if first:
                value, bad = parse_number(buf, token, i)
                if bad != 0 or colon >= 0:
                    state[r] = 1
                    break
                labels[r] = value
                first = False
            elif colon < 0 or colon == token or colon + 1 == i:
                state[r] = 2
                break
            elif colon - token == 3 and buf[token] == 113 and buf[token + 1] == 105 and buf[token + 2] == 100:
                continue
            else:
                value, bad = parse_number(buf, colon + 1, i)
                if bad != 0 or abs(value) > FLOAT32_MAX:
                    state[r] = 3
                    break
                number = np.uint64(0)
                if colon - token > 19:
                    state[r] = 4
                for k in range(token, colon):
                    if buf[k] < 48 or buf[k] > 57:
                        state[r] = 4
                    number = number * np.uint64(10) + np.uint64(buf[k] - 48)
                if state[r] != 0 or number >= np.uint64(1) << np.uint64(63):
                    state[r] = 4
                    break
                id_starts[count] = token
                id_ends[count] = colon
                weights[count] = value
                count += 1
        if state[r] == 0 and first:
            state[r] = 1
        if state[r] == 0 and count == offsets[r]:
            state[r] = 5
        if state[r] != 0:
            count = offsets[r]
    offsets[starts.shape[0]] = count
    return count
