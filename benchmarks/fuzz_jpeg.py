"""Damaged JPEGs through our decoder: crashes, hangs, memory, and disagreement with Pillow.

    python benchmarks/fuzz_jpeg.py [--mutants 30000] [--out benchmarks/results/fuzz_jpeg.json]

Each mutant is a small JPEG changed in one to three ways, a pure function of the seed and
its number. Child processes decode it twice, with the fast decoder and by Pillow alone; the
pixels or the reasons for refusal must be the same. A child that dies or stays silent is
counted and replaced by another, which begins with the next mutant. About a minute on one
core.
"""

import argparse
import collections
import io
import json
import os
import platform
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from selfsight.data import jpeg
from selfsight.data.decode import DECODER, Undecodable, decode

SILENCE = 20  # seconds without a word from a child that make a hang
MEMORY = 512  # MiB that a child may map beyond what it has mapped when it begins

Random = np.random.Generator


def seeds() -> dict[str, bytes]:
    """Whole files of every kind that Pillow writes."""
    rng = np.random.default_rng(0)

    def image(width: int, height: int, mode: str = "RGB") -> Image.Image:
        small = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8)
        large = np.asarray(Image.fromarray(small).resize((width, height))).astype(int)
        noisy = np.clip(large + rng.integers(-12, 12, large.shape), 0, 255).astype(np.uint8)
        return Image.fromarray(noisy).convert(mode)

    def encoded(picture: Image.Image, **options: object) -> bytes:
        out = io.BytesIO()
        picture.save(out, "JPEG", **{"quality": 80, **options})
        return out.getvalue()

    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    xmp = b'<x:xmpmeta><rdf tiff:Orientation="8"/></x:xmpmeta>'
    return {
        "4:2:0": encoded(image(64, 48), subsampling=2),
        "4:2:2": encoded(image(61, 47), subsampling=1),
        "4:4:4": encoded(image(45, 51), subsampling=0),
        "4:1:1": encoded(image(67, 33), subsampling="4:1:1"),
        "rgb": encoded(image(40, 40), keep_rgb=True),
        "optimized": encoded(image(64, 48), optimize=True),
        "progressive": encoded(image(63, 49), progressive=True),
        "progressive 4:4:4": encoded(image(48, 64), progressive=True, subsampling=0),
        "restarts": encoded(image(80, 64), restart_marker_blocks=3),
        "progressive restarts": encoded(image(80, 64), progressive=True, restart_marker_rows=1),
        "gray": encoded(image(57, 43, "L")),
        "progressive gray": encoded(image(57, 43, "L"), progressive=True),
        "CMYK": encoded(image(40, 40, "CMYK")),
        "EXIF": encoded(image(50, 34), exif=exif),
        "XMP": encoded(image(50, 34), xmp=xmp),
        "colour profile": encoded(image(32, 32), icc_profile=bytes(200), dpi=(72, 72)),
        "1 × 1": encoded(image(1, 1)),
        "1 × 300": encoded(image(1, 300)),
        # Pillow reads 64 KiB at a time.
        "large": encoded(image(400, 300), quality=97),
        "large progressive": encoded(image(400, 300), quality=97, progressive=True),
    }


def segments(data: bytes) -> list[tuple[int, int]]:
    """Where each whole segment up to the first scan's, included, begins and ends."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if end > len(data) or end < at + 4:
            break
        found.append((at, end))
        if data[at + 1] == 0xDA:
            break
        at = end
    return found


def named(data: bytes, *codes: int) -> tuple[int, int] | None:
    return next((part for part in segments(data) if data[part[0] + 1] in codes), None)


FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB)


def bits(data: bytearray, rng: Random) -> None:
    for at in rng.integers(0, len(data), rng.integers(1, 9)):
        data[at] ^= 1 << rng.integers(0, 8)


def header_bytes(data: bytearray, rng: Random) -> None:
    end = segments(data)[-1][1]
    for at in rng.integers(2, end, rng.integers(1, 4)):
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(0, 256))))


def truncate(data: bytearray, rng: Random) -> None:
    del data[rng.integers(3, len(data)) :]
    if rng.random() < 0.5:
        data += b"\xff\xd9"


def splice(data: bytearray, rng: Random) -> None:
    files = list(seeds_once().values())
    other = files[rng.integers(0, len(files))]
    data[rng.integers(3, len(data)) :] = other[rng.integers(0, len(other)) :]


def repeat(data: bytearray, rng: Random) -> None:
    """A stretch left out, or given twice."""
    start, stop = sorted(rng.integers(3, len(data), 2).tolist())
    if rng.random() < 0.5:
        data[start:start] = data[start:stop]
    else:
        del data[start:stop]


def marker(data: bytearray, rng: Random) -> None:
    places = [m.start() + 1 for m in re.finditer(rb"\xff[^\0]", data)][1:]
    if places:
        data[rng.choice(places)] = rng.integers(1, 255)


def length(data: bytearray, rng: Random) -> None:
    start, end = segments(data)[rng.integers(0, len(segments(data)))]
    wanted = rng.choice((0, 1, 2, 3, end - start - 3, end - start - 1, 0xFFFF))
    data[start + 2 : start + 4] = struct.pack(">H", int(wanted))


def frame(data: bytearray, rng: Random) -> None:
    """Kind, precision, size, number of components, sampling factors, tables."""
    place = named(data, *FRAMES)
    if place is None or place[1] - place[0] < 13:
        return
    start, end = place
    match rng.integers(0, 6):
        case 0:
            data[start + 1] = rng.choice(FRAMES)
        case 1:
            data[start + 4] = rng.choice((0, 1, 2, 7, 9, 12, 16, 255))
        case 2:
            sides = (0, 1, 7, 8, 9, 100, 1000, 16_000, 65_500, 65_535, int(rng.integers(1, 400)))
            at = start + 5 + 2 * int(rng.integers(0, 2))
            data[at : at + 2] = struct.pack(">H", int(rng.choice(sides)))
        case 3:
            data[start + 9] = rng.integers(0, 6)
        case 4:
            for at in range(start + 11, end, 3):
                data[at] = 16 * rng.integers(0, 6) + rng.integers(0, 6)
        case _:
            data[start + 10 + rng.integers(0, end - start - 10)] = rng.integers(0, 6)


def scan(data: bytearray, rng: Random) -> None:
    place = named(data, 0xDA)
    if place is not None and place[1] - place[0] > 4:
        data[rng.integers(place[0] + 4, place[1])] = rng.choice((0, 1, 2, 3, 5, 16, 63, 64, 255))


def shuffle(data: bytearray, rng: Random) -> None:
    """A segment left out, given twice, or moved."""
    parts = segments(data)
    start, end = parts[rng.integers(0, len(parts))]
    taken = bytes(data[start:end])
    if rng.random() < 0.7:
        del data[start:end]
    if rng.random() < 0.7 and len(parts) > 1:
        target = min(parts[rng.integers(0, len(parts))][0], len(data))
        data[target:target] = taken


def application(data: bytearray, rng: Random) -> None:
    """One more segment of the kinds that are parsed: some as they should be, most not."""
    code, body = (
        (0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        (0xE0, b"JFXX\0\x10"),
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\5\0\0\0\0\0\0\0"),
        (0xE1, b'http://ns.adobe.com/xap/1.0/\0<rdf tiff:Orientation="3"/>'),
        (0xE2, b"ICC_PROFILE\0\1\2abc"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16)),
        (0xEE, b"Adobe\0\x64\0\0\0\0\0"),
        (0xEE, b"Adobe\0\x64\0\0\0\0\1"),
        (0xEE, b"Adobe\0\x64\0\0\0\0\2"),
        (0xFE, b"a comment"),
    )[rng.integers(0, 11)]
    if rng.random() < 0.6:
        body = body[: rng.integers(0, len(body) + 1)]
    if body and rng.random() < 0.3:
        at = int(rng.integers(0, len(body)))
        body = body[:at] + rng.bytes(1) + body[at + 1 :]
    parts = segments(data)
    at = parts[rng.integers(0, len(parts))][0]
    data[at:at] = struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def more_scans(data: bytearray, rng: Random) -> None:
    """Anything from the last scan's beginning on, again and again."""
    at = data.rfind(b"\xff\xda")
    if at > 0:
        times = min(int(rng.choice((1, 3, 90, 110, 2000))), 2_000_000 // (len(data) - at))
        data[-2:] = data[at:-2] * times + b"\xff\xd9"


MUTATIONS: tuple[Callable[[bytearray, Random], None], ...] = (
    *(bits, header_bytes, truncate, splice, repeat, marker, length, frame, frame, scan),
    *(shuffle, application, more_scans),
)

_seeds: dict[str, bytes] = {}


def seeds_once() -> dict[str, bytes]:
    if not _seeds:
        _seeds.update(seeds())
    return _seeds


def mutant(seed: int, number: int) -> tuple[bytes, int, list[str]]:
    """The file, the size asked for, and what was done to it."""
    rng = np.random.default_rng([seed, number])
    files = seeds_once()
    name = list(files)[rng.integers(0, len(files))]
    data, done = bytearray(files[name]), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = MUTATIONS[rng.integers(0, len(MUTATIONS))]
        if len(data) > 8 and segments(data):
            change(data, rng)
            done.append(change.__name__)
    return bytes(data), int(rng.choice((0, 0, 8, 12, 20))), done


def verdict(data: bytes, least: int) -> np.ndarray | str:
    try:
        return decode(data, least)
    except Undecodable as error:
        return str(error)


def compare(data: bytes, least: int) -> str:
    """What became of the file, in a word."""
    quick: list[bool] = []
    fast = jpeg.fast

    def watched(*given: object) -> np.ndarray | None:
        pixels = fast(*given)
        quick.append(pixels is not None)
        return pixels

    try:
        jpeg.fast = watched
        ours = verdict(data, least)
        jpeg.fast = lambda *given: None
        pillows = verdict(data, least)
    except MemoryError:
        return "beyond the memory"
    except Exception as error:
        return f"escaped: {type(error).__name__}"
    finally:
        jpeg.fast = fast
    if isinstance(ours, str) or isinstance(pillows, str):
        same = isinstance(ours, str) and isinstance(pillows, str) and ours == pillows
        return "refused" if same else "verdicts differ"
    if not np.array_equal(ours, pillows):
        return "pixels differ"
    return "decoded fast" if quick == [True] else "decoded by Pillow"


def child(seed: int, first: int, stop: int) -> None:
    """Says each mutant's number before it decodes it, and what became of it after."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    before = peak()
    for number in range(first, stop):
        data, least, _ = mutant(seed, number)
        print(number, flush=True)
        print(number, compare(data, least), flush=True)
    print("peak", peak() - before, flush=True)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(seed: int, mutants: int) -> dict[str, object]:
    outcomes: collections.Counter[str] = collections.Counter()
    examples: dict[str, list[int]] = {}
    number, most, slowest = 0, 0.0, 0.0

    def count(outcome: str, number: int) -> None:
        outcomes[outcome] += 1
        if outcome not in ("decoded fast", "decoded by Pillow", "refused"):
            examples.setdefault(outcome, []).append(number)

    while number < mutants:
        command = [sys.executable, __file__, "--child", str(seed), str(number), str(mutants)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
            at = number
            for line, waited in said(process):
                slowest = max(slowest, waited if line[-1:].isalpha() else 0.0)
                word, _, outcome = line.partition(" ")
                if word == "peak":
                    most, number = max(most, float(outcome)), mutants
                elif outcome:
                    count(outcome, int(word))
                    number = int(word) + 1
                else:
                    at = int(word)
            died = process.wait()
        if number < mutants:
            count("hang" if died == -signal.SIGKILL else f"crash, exit {died}", at)
            number = at + 1
    return {
        "outcomes": dict(sorted(outcomes.items())),
        "examples": {name: numbers[:20] for name, numbers in examples.items()},
        "peak_mib": round(most, 1),
        "slowest_s": round(slowest, 2),
    }


def said(process: subprocess.Popen[bytes]):
    """Each line of a child and how long it took; a silent child is killed."""
    rest, since = b"", time.monotonic()
    while True:
        if not select.select([process.stdout], [], [], SILENCE)[0]:
            process.kill()
            return
        more = os.read(process.stdout.fileno(), 1 << 16)
        if not more:
            return
        *lines, rest = (rest + more).split(b"\n")
        for line in lines:
            yield line.decode(), time.monotonic() - since
            since = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the numbers are written as JSON")
    parser.add_argument("--child", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    start = time.monotonic()
    found = run(options.seed, options.mutants)
    results = {
        "command": "python benchmarks/fuzz_jpeg.py",
        "python": platform.python_version(),
        "decoder": DECODER,
        "mutants": options.mutants,
        "seed": options.seed,
        "memory_limit_mib": MEMORY,
        "seconds": round(time.monotonic() - start),
        **found,
    }
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
