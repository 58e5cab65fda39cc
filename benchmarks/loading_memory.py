"""What a long list of images costs in memory while it is trained on.

    python benchmarks/loading_memory.py --folder PHOTOS [--only opening reopening] \\
        [--out benchmarks/results/loading_memory.json]

A list names 100,000 files, which are links to 300 JPEGs of PHOTOS in a temporary folder. The
loader makes 2,000 batches of 64 (more than an epoch) and keeps nothing decoded. What is resident
is read before the list is opened, after a small one was, so that code and decoders are loaded;
once it is open; and after every 50 batches. Pages of the manifest's mapped files count as long
as they are held.

- opening: the first time, when every file is checked and the manifest is written
- reopening: in a process of its own, from the manifest

About three minutes on two idle cores.
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from measure import THREADS, apart, header, photographs, resident, seconds, write

from selfsight.data import open_source
from selfsight.data.loader import Loader
from selfsight.machine import keep_pages
from selfsight.views import IMAGENET_MEAN, IMAGENET_STD
from selfsight.views.presets import simclr_view

CASES = ("opening", "reopening")
IMAGES, FILES = 100_000, 300
BATCH, BATCHES, EVERY = 64, 2000, 50
SIZE = 32


def listed(photos: Path, folder: Path, count: int) -> Path:
    """A list of so many paths, each a file's own."""
    (folder / "files").mkdir(parents=True)
    (folder / "links").mkdir()
    for number, photo in enumerate(photographs(photos, min(FILES, count))):
        shutil.copyfile(photo, folder / "files" / f"{number}.jpg")
    names = []
    for number in range(count):
        names.append(f"links/{number:06}.jpg")
        os.link(folder / "files" / f"{number % FILES}.jpg", folder / names[-1])
    file = folder / "list.txt"
    file.write_text("\n".join(names) + "\n", encoding="utf-8")
    return file


def loader(file: Path, batch: int) -> Loader:
    return Loader(
        open_source(file, cache=file.parent / "cache"),
        simclr_view(size=SIZE, blur=0.0, count=2),
        batch=batch,
        seed=0,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        threads=THREADS,
        ram_bytes=0,
    )


def now() -> float:
    gc.collect()
    return resident("VmRSS")


def trim() -> None:
    """Free memory that stays resident would hide what is allocated in it later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measured(few: Path, many: Path, batches: int) -> dict[str, object]:
    """MiB above what the process held before it opened the list."""
    kept = keep_pages()
    warm = loader(few, BATCH)
    for step in range(10):
        warm.batch(step)
    trim()
    before = now()
    opened: list[Loader] = []
    took = seconds(lambda: opened.append(loader(many, BATCH)))
    open_mib, samples = now() - before, []
    for step in range(batches):
        opened[0].batch(step)
        if (step + 1) % EVERY == 0:
            samples.append(round(now() - before, 2))
    most = max(samples)
    return {
        "images": len(opened[0].source),
        "batches": batches,
        "batch": BATCH,
        "every": EVERY,
        "pages_kept": kept,
        "opening_s": took,
        "before_mib": before,
        "open_mib": open_mib,
        "samples_mib": samples,
        "most_mib": most,
        "bytes_per_image": most * 2**20 / len(opened[0].source),
        # The first fifth is left out: the second epoch's order has still to be drawn.
        "growth_mib": samples[-1] - samples[len(samples) // 5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of photographs")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--images", type=int, default=IMAGES, help="fewer for a trial")
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--out", type=Path, help="where the numbers are written as JSON")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.measure:
        print(json.dumps(measured(*options.measure, options.batches)))
        return
    if options.folder is None:
        parser.error("--folder: which photographs?")
    cases = {}
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        lists = [str(listed(options.folder, few, 2 * BATCH))]
        lists.append(str(listed(options.folder, many, options.images)))
        if options.only == ["reopening"]:
            open_source(lists[1], cache=many / "cache")
        for name in options.only:
            words = ("--measure", *lists, "--batches", str(options.batches))
            cases[name] = found = apart(__file__, *words)
            print(
                "{}: {open_mib:.1f} MiB when open after {opening_s:.1f} s, at most {most_mib:.1f}, "
                "{bytes_per_image:.0f} bytes an image, then {growth_mib:+.1f} MiB".format(
                    name, **found
                ),
                flush=True,
            )
    command = "python benchmarks/loading_memory.py --folder PHOTOS"
    result = {**header(command, "numpy", "pyarrow", "simplejpeg"), "cases": cases}
    if options.out:
        write(options.out, result)


if __name__ == "__main__":
    main()
