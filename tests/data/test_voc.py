"""Pascal VOC's files: what they say, and what of them is refused."""

from pathlib import Path

import pytest

from selfsight.data import voc
from selfsight.data.voc import Annotation, Object, image_file, image_sets, read_annotation
from selfsight.errors import DataError

OBJECT = """<object><name>{}</name><pose>Left</pose>{}<bndbox><xmin>1</xmin><ymin>2.5</ymin>
<xmax>48</xmax><ymax>30</ymax></bndbox></object>"""
SIZE = "<size><width>50</width><height>40</height><depth>3</depth></size>"


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "a.xml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_an_annotation(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>5</xmin></bndbox></part>"
    flags = "<truncated>1</truncated><difficult>0</difficult>"
    objects = OBJECT.format("dog", flags + part) + OBJECT.format(
        " cat ", "<difficult>1</difficult>"
    )
    text = f'<?xml version="1.0"?><annotation>{SIZE}{objects}</annotation>'
    box = (1.0, 2.5, 48.0, 30.0)
    assert read_annotation(written(tmp_path, text)) == Annotation(
        (40, 50), (Object("dog", box, truncated=True), Object("cat", box, difficult=True))
    )


def test_what_is_not_said(tmp_path: Path) -> None:
    assert read_annotation(written(tmp_path, "<annotation/>")) == Annotation(None, ())
    unknown = SIZE.replace("50", "0").replace("40", "0")
    assert read_annotation(written(tmp_path, f"<annotation>{unknown}</annotation>")).size is None


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "declares a document type or entities"),
        (BOMB.encode("utf-16"), "is not UTF-8"),
        ('<?xml version="1.0" encoding="utf-7"?>' + BOMB, "declares a document type"),
        ("<annotation>&b;</annotation>", "is not XML: undefined entity"),
        ("<annotation>", "is not XML: no element found"),
        ("", "is not XML"),
        (b"\0\1", "is not XML"),
        ("<a>" * 300_000, "is not XML: no element found"),
        (" " * (1 << 20) + "<annotation/>", "larger than 1048576 bytes"),
        ("<html/>", "outermost element must be annotation"),
        ("<annotation><object/></annotation>", "an object has no name"),
        ("<annotation><object><name>x\ny</name></object></annotation>", r"\(x\\ny\) has no bndbox"),
        (f"<annotation>{OBJECT.format('a', '').replace('48', 'nan')}</annotation>", "xmax is nan"),
        (f"<annotation>{OBJECT.format('a', '').replace('48', '1e999')}</annotation>", "xmax is 1e"),
        (f"<annotation>{OBJECT.format('a', '').replace('48', '')}</annotation>", "xmax is missing"),
        (f"<annotation>{OBJECT.format('a', '<difficult>2</difficult>')}</annotation>", "neither 0"),
        (f"<annotation>{SIZE.replace('50', 'wide')}</annotation>", "width is wide, not a number"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_annotation(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "a.xml" in str(caught.value)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.xml: cannot be read: No such file"):
        read_annotation(tmp_path / "none.xml")


def lists(tmp_path: Path, **sets: str) -> Path:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    for name, text in sets.items():
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return tmp_path


def test_image_sets(tmp_path: Path) -> None:
    assert not voc.is_voc(tmp_path)
    folder = lists(tmp_path, train="000005\r\n000007\n\n", test="2007 1\n", dog_train="000005 -1\n")
    assert voc.is_voc(folder)
    assert image_sets(folder) == {"train": ["000005", "000007"], "test": ["2007 1"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("../../secret\n", "which is no image's name"),
        ("a\\b\n", "which is no image's name"),
        ("..\n", "which is no image's name"),
        ("a\nb\na\n", "names an image twice"),
        ("\n", r"no names in train, val, trainval or test\.txt"),
    ],
)
def test_image_sets_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        image_sets(lists(tmp_path, train=text))


def test_image_file(tmp_path: Path) -> None:
    folder = lists(tmp_path)
    (folder / "JPEGImages" / "a.b.png").touch()
    assert image_file(folder, "a.b").name == "a.b.png"
    with pytest.raises(DataError, match=r"c\.jpg does not exist; restore it"):
        image_file(folder, "c")
