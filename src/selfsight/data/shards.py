"""Images inside tar files: where each one lies, learnt from headers alone.

Nothing is unpacked and no member but an image or a label is ever read. An image is bytes at
an offset; its name is shown and may give its class, and leads nowhere.

- read: v7, ustar, pax and GNU long names; sizes in octal, in base 256 and in pax headers
- left alone: links, devices, folders, sparse members, hidden names, a name met before, and
  whatever stands beside an image under its key (`7.json` beside `7.jpg`)
- a shard that ends early, or that has a damaged header, gives the members before that place
"""

import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from selfsight.data.base import Skip, printable
from selfsight.data.decode import MAX_BYTES, Undecodable
from selfsight.data.listing import Entry, Listing, promises_image
from selfsight.machine import cores

__all__ = ["BLOCK", "LABEL", "members", "plain_label", "read_range"]

BLOCK = 512
LABEL = ".cls"

_MOST_WORDS = 1 << 20  # bytes of a long name or of a pax header
_MOST_LABEL = 1024
_LOOKED_BEYOND = 1 << 16
_RECORD = re.compile(rb"([0-9]{1,7}) ")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class _Torn(Exception):
    """Nothing can be read beyond this place.

    lost: there may be images there
    """

    def __init__(self, reason: str, *, lost: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.lost = reason, lost


@dataclass(frozen=True, slots=True)
class _Member:
    """odd: why it can be no image, whatever its name"""

    name: str
    offset: int
    size: int
    odd: str = ""


@dataclass
class _Index:
    """labels: by stem, empty where the text is no label"""

    images: list[_Member] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    refused: list[Skip] = field(default_factory=list)
    unreadable: list[Skip] = field(default_factory=list)


def members(shards: Listing) -> Listing:
    """What could be images in a listing's shards: the shards in their order, and the members
    of each in its own.

    Where any member is a label (`7.cls` beside `7.jpg`), these are the labels of all; where
    none is, an image has the first folder of its name.
    """
    with ThreadPoolExecutor(cores(), "selfsight-shards") as pool:
        found = list(pool.map(lambda shard: _index(shards.root, shard), shards.entries))
    listing = Listing(shards.root, shards.origin, refused=list(shards.refused))
    listing.unreadable += shards.unreadable
    labelled = any(index.labels for index in found)
    for shard, index in zip(shards.entries, found, strict=True):
        listing.refused += index.refused
        listing.unreadable += index.unreadable
        for member in index.images:
            name, labels = member.name, index.labels
            if labelled:
                label = labels.get(_stem(name), labels.get(_key(name), ""))
            else:
                label = name.split("/", 1)[0] if "/" in name else ""
            listing.entries.append(
                Entry(
                    f"{shard.path}/{name}",
                    member.size,
                    shard.modified,
                    label,
                    shard=shard.path,
                    offset=member.offset,
                    shard_size=shard.size,
                )
            )
    return listing


def _stem(name: str) -> str:
    """`a/b.c` of `a/b.c.jpg`."""
    return os.path.splitext(name)[0]


def _key(name: str) -> str:
    """`a/b` of `a/b.c.jpg`: what the parts of a sample have in common in a WebDataset."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def plain_label(text: bytes) -> str | None:
    """The class that a .cls member names, or None when it is not one line of text."""
    text = text.rstrip(b"\r\n")
    if not text or len(text) > _MOST_LABEL or re.search(rb"[\0-\x1f\x7f]", text):
        return None
    return os.fsdecode(text)


def read_range(path: str, offset: int, length: int) -> tuple[bytes, os.stat_result]:
    """`length` bytes of a regular file."""
    if length > MAX_BYTES:
        raise Undecodable(f"larger than {MAX_BYTES} bytes")
    with _opened(path) as number:
        data = _bytes(number, offset, length)
        if len(data) < length:
            raise Undecodable("changed since the data set was opened: the shard is shorter")
        return data, os.fstat(number)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        # O_NONBLOCK: should a pipe have taken the file's place, opening it must not wait.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise Undecodable("not a regular file")
            yield number
        finally:
            os.close(number)
    except OSError as error:
        raise Undecodable(f"cannot be read: {error.strerror}") from None


def _bytes(number: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes: fewer only where the file ends."""
    data = os.pread(number, length, offset)
    while len(data) < length:
        more = os.pread(number, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _index(root: str, shard: Entry) -> _Index:
    index, found, seen = _Index(), list[_Member](), set[str]()
    try:
        with _opened(os.path.join(root, shard.path)) as number:
            try:
                for member in _walk(number, os.fstat(number).st_size):
                    path = f"{shard.path}/{member.name}"
                    if _hidden(member.name):
                        continue
                    if member.odd or member.name in seen:
                        reason = member.odd or "the name of an earlier member"
                        index.refused.append(Skip(path, reason))
                    elif member.name.endswith(LABEL):
                        text = _bytes(number, member.offset, min(member.size, 2 * _MOST_LABEL))
                        label = plain_label(text)
                        index.labels[_stem(member.name)] = label or ""
                        if label is None:
                            index.refused.append(Skip(path, "not a label in one line of text"))
                    else:
                        found.append(member)
                    seen.add(member.name)
            except _Torn as end:
                skips = index.unreadable if end.lost else index.refused
                skips.append(Skip(shard.path, end.reason))
    except Undecodable as error:
        index.unreadable.append(Skip(shard.path, str(error)))
    images = {_key(member.name) for member in found if promises_image(member.name)}
    index.images = [m for m in found if promises_image(m.name) or _key(m.name) not in images]
    return index


def _hidden(name: str) -> bool:
    """As in folders; macOS writes a `._7.jpg` beside every `7.jpg`."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _walk(number: int, total: int) -> Iterator[_Member]:
    """Every member up to the end of the archive; each turn moves on by a block at least."""
    at, told = 0, dict[bytes, bytes]()
    while block := _header(number, at):
        kind, begins = block[156:157], at + BLOCK
        size = _number(block[124:136], at)
        if kind in b"xXgLK":
            if size > _MOST_WORDS:
                raise _damaged(at)
            words = _bytes(number, begins, size)
            if len(words) < size:
                raise _Torn(f"truncated at byte {total:,}, inside a header")
            # What "g" says holds for all members, so it cannot be a name or a length.
            if kind == b"L":
                told[b"path"] = words
            elif kind in b"xX":
                told |= _records(words, at)
            at = begins + _padded(size)
            continue
        name = _name(told.get(b"path") or _short_name(block))
        if b"size" in told:
            if re.fullmatch(rb"[0-9]{1,20}", told[b"size"]) is None:
                raise _damaged(at)
            size = int(told[b"size"])
        sparse = kind == b"S" or any(word.startswith(b"GNU.sparse") for word in told)
        if kind == b"S":
            begins = _past_sparse_map(number, block, begins)
        told = {}
        folder = kind == b"5" or (kind in b"0\0" and name.endswith("/"))
        if folder or kind in b"12346":
            size = 0  # whatever the header says, nothing follows it
        if begins + size > total:
            raise _Torn(f"truncated at byte {total:,}, inside {printable(name)}")
        if not folder:
            yield _Member(name, begins, size, "a sparse member" if sparse else _odd(kind))
        at = begins + _padded(size)


def _header(number: int, at: int) -> bytes:
    """The block, or nothing at the end of the archive."""
    block = _bytes(number, at, BLOCK)
    if not block and at:
        raise _Torn("has no end mark: it may have been cut between two members", lost=False)
    if not block:
        raise _Torn("an empty file")
    if len(block) < BLOCK:
        raise _Torn(f"truncated at byte {at + len(block):,}, inside a header")
    if not block.strip(b"\0"):
        if _bytes(number, at, _LOOKED_BEYOND).strip(b"\0"):
            raise _Torn(f"more follows its end at byte {at:,}; join tar files by tar -A")
        return b""
    if not _sound(block):
        packed = [name for magic, name in _MAGIC.items() if block.startswith(magic)]
        if packed and not at:
            raise _Torn(f"compressed by {packed[0]}; unpack it to a plain tar file")
        raise _damaged(at)
    return block


def _sound(block: bytes) -> bool:
    """The checksum, which counts itself as spaces, is right."""
    stored = re.match(rb" *([0-7]+)", block[148:156])
    rest = block[:148] + b" " * 8 + block[156:]
    # Some old writers added up signed bytes.
    sums = sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest)
    return stored is not None and int(stored[1], 8) in sums


def _damaged(at: int) -> _Torn:
    return _Torn(f"a damaged header at byte {at:,}" if at else "not a tar file")


def _number(text: bytes, at: int) -> int:
    """A header's number: octal digits or, announced by the first bit, base 256."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:])
    digits = text.partition(b"\0")[0].strip(b" ")
    if re.fullmatch(rb"[0-7]*", digits) is None:
        raise _damaged(at)
    return int(digits or b"0", 8)


def _records(words: bytes, at: int) -> dict[bytes, bytes]:
    """`LENGTH KEY=VALUE` and a line's end, over and over."""
    found, start = dict[bytes, bytes](), 0
    while start < len(words):
        length = _RECORD.match(words, start)
        end = start + int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(words) or words[end - 1] != ord("\n"):
            raise _damaged(at)
        name, _, value = words[length.end() : end - 1].partition(b"=")
        found[name] = value
        start = end
    return found


def _short_name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    # GNU's own format keeps other things in the prefix's place.
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _name(name: bytes) -> str:
    name = name.partition(b"\0")[0]
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    return os.fsdecode(name)


def _past_sparse_map(number: int, block: bytes, at: int) -> int:
    more = block[482]
    while more:
        following = _bytes(number, at, BLOCK)
        if len(following) < BLOCK:
            raise _Torn(f"truncated at byte {at + len(following):,}, inside a header")
        more, at = following[504], at + BLOCK
    return at


def _odd(kind: bytes) -> str:
    if kind in b"0\x007":
        return ""
    return "a link" if kind in b"12" else "not a regular file"


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
