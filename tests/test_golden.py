"""Golden vectors: what the official and the popular implementations returned for the same input.

SELFSIGHT_GOLDEN names another folder of records than the small copy in tests/golden.
`python tests/test_golden.py [FOLDER]` prints the table alone.
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from golden import embeddings, measures
from golden.account import grouped, lines, stale_note, verdict
from golden.records import load
from golden.relations import Relation, problems, stale
from golden.table import NOT_IMPLEMENTED, RELATIONS

COPY = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("SELFSIGHT_GOLDEN") or COPY)
RECORDS = load(FOLDER)
GROUPS = grouped(RECORDS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As the records were made; and they are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def named(record):
    return record.name.replace(" ", "_")


def one(method):
    """A finite record of the method from the small copy, which agrees with us."""
    return next(
        record
        for record in load(COPY)
        if record.method == method
        and record.finite
        and not RELATIONS[method][record.source].applies(record)
    )


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_record(record):
    assert verdict(record) == []


@pytest.mark.parametrize("group", GROUPS.values(), ids=["-".join(key) for key in GROUPS])
def test_no_note_outlives_the_difference_it_explains(group):
    assert stale_note(group) == ""


def test_a_method_is_done_or_not():
    assert not set(RELATIONS) & NOT_IMPLEMENTED


def test_the_small_copy_has_every_source_of_what_is_done():
    assert set(grouped(load(COPY))) == {(m, s) for m, sources in RELATIONS.items() for s in sources}


@pytest.mark.skipif(FOLDER == COPY, reason="the table is printed for SELFSIGHT_GOLDEN")
def test_table(capsys):
    found = list(lines(RECORDS))
    with capsys.disabled():
        print("", *(line for _, line in found), sep="\n")
    assert all(accounted for accounted, _ in found)


# The harness itself.


def disturbed(record, name):
    """The record with the largest entry of one output moved a little."""
    array = np.array(record.outputs[name], copy=True)
    at = np.unravel_index(np.abs(array).argmax(), array.shape)
    array[at] += max(1, 1e-3 * abs(array[at])) if array.dtype.kind == "i" else 1e-3 + array[at]
    return dataclasses.replace(record, outputs={**record.outputs, name: array})


@pytest.mark.parametrize("key", [(m, s) for m, sources in RELATIONS.items() for s in sources],
                         ids="-".join)  # fmt: skip
def test_a_disturbed_output_is_reported(key):
    relation = RELATIONS[key[0]][key[1]]
    pairs = [
        (record, name)
        for record in grouped(load(COPY))[key]
        for name in record.outputs
        if name.split("__")[0] not in excused(relation, record)
    ]
    assert pairs
    assert not [name for record, name in pairs if verdict(disturbed(record, name)) == []]


def excused(relation, record):
    """Outputs that are not compared."""
    if not record.finite:
        return set(record.outputs)
    differs = relation.differs if relation.applies(record) and relation.theirs is None else ()
    return {*relation.aside, *differs}


def test_an_unknown_method_or_source_is_reported():
    record = one("byol")
    assert verdict(dataclasses.replace(record, method="new")) == ["no word of the method new"]
    (problem,) = verdict(dataclasses.replace(record, source="new"))
    assert problem == "no word of the source new for byol"


def test_a_method_both_done_and_not_is_reported():
    assert verdict(one("byol"), missing={"byol"}) == ["byol is both done and not"]


@pytest.mark.parametrize("change", [{"margin": 0.5}, {"lambda_param": None}, {"lambd": 0.005}])
def test_unknown_or_missing_hyper_parameters_are_reported(change):
    record = one("barlow_twins")
    hyper = {k: v for k, v in {**record.hyper, **change}.items() if v is not None}
    (problem,) = verdict(dataclasses.replace(record, hyper=hyper))
    assert "does not fit the record" in problem


def test_an_unknown_input_or_output_is_reported():
    record = one("barlow_twins")
    more = dataclasses.replace(record, inputs={**record.inputs, "mask": record.inputs["z1"]})
    assert "does not fit the record" in verdict(more)[0]
    for name in ("margin", "grad_mask", "loss__median"):
        outputs = {**record.outputs, name: np.ones(())}
        assert verdict(dataclasses.replace(record, outputs=outputs)), name


def test_a_value_that_ours_cannot_take_is_reported():
    record = one("vicreg")
    (problem,) = verdict(dataclasses.replace(record, hyper={**record.hyper, "eps": 0.1}))
    assert problem == "our hinge has ε = 1e-4, the record 0.1"


def test_a_shape_or_a_nan_is_reported():
    record = one("byol")
    cut = {**record.outputs, "grad_p1": record.outputs["grad_p1"][:, :2]}
    assert "shape" in verdict(dataclasses.replace(record, outputs=cut))[0]
    broken = {**record.inputs, "p1": np.full_like(record.inputs["p1"], np.nan)}
    for finite in (True, False):
        found = verdict(dataclasses.replace(record, inputs=broken, finite=finite))
        assert "loss: ours is not finite" in found


def test_a_stale_note_is_reported():
    record = one("byol")
    byol = RELATIONS["byol"][record.source].ours
    note = "nothing at all"
    excused = Relation(ours=byol, note=note, differs=("loss",), when=lambda facts: True)
    assert problems(excused, record) == ["agrees, although noted: nothing at all"]
    again = Relation(ours=byol, note=note, theirs=byol)
    assert problems(again, record) == []
    assert stale(again, [record])
    assert stale_note([record], {"byol": {record.source: again}}) == note


def test_an_allowed_difference_is_stale_where_several_records_agree():
    record = one("byol")
    allowed = Relation(ours=RELATIONS["byol"][record.source].ours, note="may", differs=("loss",))
    assert problems(allowed, record) == []
    assert not stale(allowed, [record])
    assert stale(allowed, [record, record])


def test_a_note_excuses_only_the_outputs_that_it_names():
    record = one("vicreg")

    def doubled(**given):
        return {name: 2 * value for name, value in embeddings.vicreg(**given).items()}

    def missed(**facts):
        relation = Relation(ours=doubled, **facts)
        return {text.split(":")[0] for text in problems(relation, record)}

    assert "loss" in missed()
    assert missed(note="twice", differs=("loss",)) == missed() - {"loss"} != set()


def test_what_is_set_aside_has_no_counterpart():
    record = one("knn_weighted")
    aside = {"pred": "not ours", "top5": "not ours", "min_relative_margin": "not ours"}
    relation = Relation(ours=measures.knn, read=measures.shares, aside=aside)
    assert problems(relation, record) == ["pred has a counterpart after all"]


def test_derivatives_of_named_outputs_are_followed():
    record = one("vicreg")
    halved = Relation(ours=lambda **given: {
        name: value * (0.5 if name == "inv" else 1.0)
        for name, value in embeddings.vicreg(**given).items()
    })  # fmt: skip
    assert {text.split(":")[0] for text in problems(halved, record)} == {"inv", "grad_inv_z1"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = list(lines(load(Path(sys.argv[1])) if sys.argv[1:] else RECORDS))
    print(*(line for _, line in table), sep="\n")
    sys.exit(not all(accounted for accounted, _ in table))
