"""Notebooks for the soak: what their cells do, what they must show, and what is wrong with what they showed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RAN = "ran"
"""The file in which the cells note their begins and ends, beside the notebook."""

_HEAD = f"""\
import os, time
from IPython.display import display
def _note(what):
    with open({RAN!r}, 'a') as file:
        file.write(f'{{what}} {{os.getpid()}}\\n')
"""


@dataclass(frozen=True)
class Cell:
    """A cell and what it must show.

    :ivar kind: what it does, for people.
    :ivar source: its code.
    :ivar shows: its output, streams and displays behind each other.
    """

    kind: str
    source: str
    shows: str


def cells(draw: random.Random) -> list[Cell]:
    """Draw the cells of one notebook; each notes its begin and its end outside of the kernel."""
    made = []
    for number in range(draw.randint(3, 7)):
        kind = draw.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        body, shows = KINDS[kind][1](number, draw)
        head = _HEAD if number == 0 else ""
        made.append(Cell(kind, f"{head}_note('begin {number}')\n{body}\n_note('end {number}')", shows))
    return made


def _lines(number: int, draw: random.Random) -> tuple[str, str]:
    count, pause = draw.randint(1, 150), draw.choice([0.0, 0.005, 0.02, 0.05])
    body = f"for i in range({count}):\n    print('c{number}', i, flush=True)\n    time.sleep({pause})"
    return body, "".join(f"c{number} {i}\n" for i in range(count))


def _counts(number: int, draw: random.Random) -> tuple[str, str]:
    """Depend on the variables of the cells before."""
    step = draw.randint(1, 9)
    return f"n{number} = {step}\nprint('c{number}', sum(v for k, v in globals().items() if k == 'n{number}'))", (
        f"c{number} {step}\n"
    )


def _silent(number: int, draw: random.Random) -> tuple[str, str]:
    return f"time.sleep({draw.uniform(0.3, 7):.2f})", ""


def _big(number: int, draw: random.Random) -> tuple[str, str]:
    """Print so much at once that jupyter_server's limit of 1 MB/s strikes."""
    count, bursts, pause = draw.randint(3000, 5000), draw.randint(1, 3), draw.uniform(0, 3)
    each = -(-count // bursts)
    body = (
        f"for i in range({count}):\n"
        f"    print('c{number}', i, 'x' * 1000)\n"
        f"    if i % {each} == {each - 1}:\n"
        f"        time.sleep({pause:.2f})"
    )
    return body, "".join(f"c{number} {i} {'x' * 1000}\n" for i in range(count))


def _displays(number: int, draw: random.Random) -> tuple[str, str]:
    count, pause = draw.randint(1, 60), draw.choice([0.0, 0.02, 0.1])
    body = (
        f"for i in range({count}):\n"
        f"    display({{'text/plain': f'c{number} {{i}}\\n'}}, raw=True)\n"
        f"    time.sleep({pause})"
    )
    return body, "".join(f"c{number} {i}\n" for i in range(count))


def _mixed(number: int, draw: random.Random) -> tuple[str, str]:
    count, every, pause = draw.randint(10, 100), draw.randint(2, 5), draw.choice([0.0, 0.01, 0.04])
    body = (
        f"for i in range({count}):\n"
        f"    if i % {every}:\n"
        f"        print('c{number}', i)\n"
        "    else:\n"
        f"        display({{'text/plain': f'c{number} {{i}}\\n'}}, raw=True)\n"
        f"    time.sleep({pause})"
    )
    return body, "".join(f"c{number} {i}\n" for i in range(count))


def _many(number: int, draw: random.Random) -> tuple[str, str]:
    """Bring so many messages at once that jupyter_server's limit of 1000/s strikes."""
    count = draw.randint(3200, 4500)
    body = f"for i in range({count}):\n    display({{'text/plain': f'c{number} {{i}}\\n'}}, raw=True)"
    return body, "".join(f"c{number} {i}\n" for i in range(count))


KINDS: dict[str, tuple[int, Callable[[int, random.Random], tuple[str, str]]]] = {
    "lines": (5, _lines),
    "counts": (3, _counts),
    "silent": (3, _silent),
    "big": (3, _big),
    "displays": (2, _displays),
    "mixed": (2, _mixed),
    "many": (1, _many),
}
"""Kinds of cells: how often each is drawn, and what draws one of this number: its code and what it shows."""


def repeats(folder: Path, count: int) -> tuple[int, list[str]]:
    """Judge by the cells' own notes how often each ran.

    :param folder: the notebook's folder.
    :param count: how many cells there are.
    :return: how often a cell ran that had run already, and what else is wrong.
    """
    path = folder / RAN
    notes = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    begun = Counter(number for what, number, _ in notes if what == "begin")
    again = sum(times - 1 for times in begun.values())
    wrong = [f"cell {number} ran {times} times" for number, times in begun.items() if times > 1]
    expected = [[what, str(number)] for number in range(count) for what in ("begin", "end")]
    if not again and [note[:2] for note in notes] != expected:
        wrong.append(f"the cells ran like this: {' '.join(f'{what}-{number}' for what, number, _ in notes)}")
    kernels = {pid for _, _, pid in notes}
    if len(kernels) > 1:
        wrong.append(f"{len(kernels)} kernels ran cells")
    return again, wrong


def losses(path: Path, wanted: list[Cell]) -> list[str]:
    """Compare what an executed notebook shows with what its cells printed; describe each difference."""
    wrong = []
    shown = [_shown(cell) for cell in json.loads(path.read_text())["cells"]]
    for number, (text, cell) in enumerate(zip(shown, wanted, strict=True)):
        if text != cell.shows:
            wrong.append(f"cell {number} ({cell.kind}) {_difference(text, cell.shows)}")
    return wrong


def _shown(cell: dict[str, object]) -> str:
    outputs = cell["outputs"]
    assert isinstance(outputs, list)
    values = [item["text"] if "text" in item else item.get("data", {}).get("text/plain", "?") for item in outputs]
    return "".join(value if isinstance(value, str) else "".join(value) for value in values)


def _difference(shown: str, wanted: str) -> str:
    ours, theirs = [text.splitlines(keepends=True) for text in (shown, wanted)]
    missing, more = Counter(theirs) - Counter(ours), Counter(ours) - Counter(theirs)
    first = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    what = (
        f"lacks {missing.total()} of {len(theirs)} lines and has {more.total()} too many"
        if missing or more
        else ("shows its lines in another order")
    )
    return f"{what}, the first difference at line {first}: {[line[:60] for line in ours[first : first + 2]]}"
