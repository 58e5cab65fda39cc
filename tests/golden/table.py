"""Every method and source of the golden records, and how it stands to this package."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from golden import (
    embeddings,
    instances,
    measures,
    momentum_contrast,
    negatives,
    neighbours,
    predictors,
    prototypes,
    related,
    training,
)
from golden.relations import Relation

__all__ = ["NOT_IMPLEMENTED", "RELATIONS"]

NOT_IMPLEMENTED = {
    "dbn", "densecl",
    "frossl", "group_cholesky_whitening", "ibot_patch", "iternorm",
    "koleo", "lidar", "mmcr",
    "msn", "pixpro_ppm", "pixpro_regression",
    "shuffled_dbn", "tico", "vibcreg", "vicregl", "wmse_loss",
    "wmse_pair_loss", "wmse_whitening",
}  # fmt: skip

BARLOW, BYOL = "facebookresearch/barlowtwins@8e8d284", "google-deepmind/deepmind-research(byol)"
DINO, DINOV2 = "facebookresearch/dino@7c446df", "facebookresearch/dinov2@b8931f7"
HTDT, LIGHTLY = "htdt/self-supervised@d9662c8", "lightly@1.6.0"
HUA = "PatrickHua/FeatureDecorrelationSSL@408bd9e"
IJEPA, LUCK = "facebookresearch/ijepa@52c1ae9", "facebookresearch/luckmatters@625b5f7"
MAE, MOCO = "facebookresearch/mae@efb2a80", "facebookresearch/moco@7397dfe"
MOCO_V3, PIXPRO = "facebookresearch/moco-v3@c349e6e", "zdaxie/PixPro@e390d6b"
SOLO, SWAV = "vturrisi/solo-learn@9187ea3", "facebookresearch/swav@06b1b7c"
STABLE = "rbalestr-lab/stable-pretraining@9aa93f8"
VICREG = "facebookresearch/vicreg@4e12602"

AddTo = dict[str, Relation]


def _same(ours: Callable[..., Mapping[str, object]], *sources: str) -> AddTo:
    return {source: Relation(ours=ours) for source in sources}


def _ntxent() -> AddTo:
    mean = Relation(
        ours=embeddings.simclr,
        note="half of ours: the mean over 2N anchors (our option mean), not two directions added",
        theirs=partial(embeddings.simclr, mean=True),
    )
    halves = (
        LIGHTLY, HTDT, SOLO, LUCK, HUA, "Spijkervet/SimCLR", "sthalles/SimCLR",
        "leftthomas/SimCLR", "solo-learn@1.0.2 (PyPI)",
    )  # fmt: skip
    return {
        **_same(embeddings.simclr, "google-research/simclr@383d414"),
        **dict.fromkeys(halves, mean),
    }


def _moco() -> AddTo:
    place = "the same queue as a ring with a pointer; ours has the newest row first"
    pointer = {"queue_ptr": "our queue has no pointer"}
    return {
        MOCO: Relation(
            ours=embeddings.moco, note=place, theirs=partial(embeddings.moco, ring=True),
            aside=pointer,
        ),
        LIGHTLY: Relation(
            ours=embeddings.moco, note=f"{place}; keys carry a gradient",
            theirs=embeddings.moco_open_keys,
        ),
    }  # fmt: skip


def _moco_bank() -> AddTo:
    return {
        LIGHTLY: Relation(
            ours=embeddings.moco_bank,
            note="where N does not divide K the tail of a batch is dropped; ours keeps all of it",
            theirs=partial(embeddings.moco_bank, truncated=True),
            when=lambda facts: facts["queue_size"] % facts["q"].shape[1] > 0,
            aside={"bank_ptr": "our queue has no pointer"},
        )
    }


def _byol() -> AddTo:
    return {
        **_same(embeddings.byol, BYOL, HTDT, SOLO),
        LUCK: Relation(
            ours=embeddings.byol, note="4 less than ours: −2 cos without the constant",
            theirs=predictors.byol,
        ),
    }  # fmt: skip


def _simsiam() -> AddTo:
    return {
        **_same(embeddings.simsiam, "facebookresearch/simsiam@a7bc177", LIGHTLY, SOLO),
        HUA: Relation(
            ours=embeddings.simsiam, note="twice ours: adds the two directions",
            theirs=partial(embeddings.simsiam, scale=2.0),
        ),
    }  # fmt: skip


def _barlow_twins() -> AddTo:
    return {
        **_same(embeddings.barlow_twins, BARLOW, LIGHTLY, f"{SOLO}[scale_loss=1.0]"),
        f"{SOLO}[scale_loss=0.025]": Relation(
            ours=embeddings.barlow_twins_unscaled, note="ours times scale_loss",
            theirs=embeddings.barlow_twins,
        ),
        HUA: Relation(
            ours=embeddings.barlow_twins,
            note="deviation unbiased and without ε, while C is divided by N (our normalize none)",
            theirs=embeddings.barlow_twins_unbiased,
        ),
    }  # fmt: skip


def _vicreg() -> AddTo:
    return {
        **_same(embeddings.vicreg, VICREG, LIGHTLY),
        SOLO: Relation(
            ours=embeddings.vicreg, note="variance term added over the views, not averaged",
            theirs=partial(embeddings.vicreg, views=2),
        ),
    }  # fmt: skip


def _dino() -> AddTo:
    plain = Relation(ours=embeddings.dino, aside={"teacher_temp_schedule": "seen in the losses"})
    return {
        **dict.fromkeys((DINO, LIGHTLY, SOLO), plain),
        DINOV2: Relation(
            ours=embeddings.dino, note="adds the pairs of crops, ours averages them",
            theirs=partial(embeddings.dino, added=True),
        ),
    }  # fmt: skip


def _swav(ours: Callable[..., Mapping[str, object]], *sources: str) -> AddTo:
    relation = Relation(
        ours=ours,
        note="assigns other crops than the first two; ours always assigns those",
        differs=("loss", "grad_z", "grad_prototypes", "grad_scores"),
        when=lambda facts: facts["crops_for_assign"] != [0, 1],
    )
    return dict.fromkeys(sources, relation)


def _mae_loss() -> AddTo:
    relation = Relation(
        ours=prototypes.mae_loss,
        note="the same values; a patch runs over rows, columns, channels, ours channels first",
        theirs=partial(prototypes.mae_loss, channels_last=True),
    )
    return dict.fromkeys((MAE, SOLO, LIGHTLY), relation)


def _lars() -> AddTo:
    joint, lars = partial(training.lars, eps=1e-8), training.lars
    apart = partial(joint, form="larc", decay_idle=False)
    below = "‖g‖ + λ‖p‖ + ε below the trust ratio (our larc), no decay where g or p is 0"
    return {
        **_same(lars, BARLOW, VICREG, MOCO_V3, MAE, DINO, BYOL),
        LIGHTLY: Relation(
            ours=lars, note=f"{below}, no trust ratio without decay",
            theirs=partial(apart, adapt_undecayed=False),
        ),
        SOLO: Relation(ours=lars, note=below, theirs=apart),
        PIXPRO: Relation(ours=lars, note="adds ε = 1e-8 below the trust ratio", theirs=joint),
    }  # fmt: skip


def _lr_schedule() -> AddTo:
    twice = training.peak_twice
    peak = "base rate reached a step early, and again at the warm-up's end"

    def at(
        rate: Callable[..., Mapping[str, object]], note: str, clock: training.Clock,
        when: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> Relation:  # fmt: skip
        return Relation(
            ours=partial(rate, clock=training.ours), note=note,
            theirs=partial(rate, clock=clock), when=when,
        )  # fmt: skip

    return {
        BARLOW: Relation(ours=training.rate_barlow_twins),
        VICREG: Relation(ours=training.rate_vicreg),
        **_same(training.rate_scaled, MOCO_V3, MAE),
        DINO: at(training.rate_dino, peak, twice),
        SWAV: at(training.rate_swav, peak, twice),
        SOLO: at(training.rate_solo, peak, twice),
        HUA: at(training.rate_decorrelation, peak, twice),
        IJEPA: at(training.rate_ijepa, "a step ahead of ours", training.one_ahead),
        LIGHTLY: at(
            training.rate_lightly, "warm-up a step ahead of ours; the last step has the last rate",
            training.ends_reached, when=lambda facts: "max_steps" in facts,
        ),
        "facebookresearch/simsiam@a7bc177": Relation(ours=training.rate_simsiam),
        MOCO: Relation(ours=training.rate_moco),
        "KyleZheng1997/ReSSL@4d67daa": Relation(ours=training.rate_ressl),
        "facebookresearch/VICRegL@803ae4c": Relation(ours=training.rate_vicregl),
        BYOL: Relation(ours=training.rate_byol),
    }  # fmt: skip


def _ema_schedule() -> AddTo:
    return {
        MOCO_V3: Relation(ours=training.moving_mocov3),
        DINO: Relation(ours=training.moving_dino),
        SOLO: Relation(ours=training.moving_solo),
        HTDT: Relation(ours=training.moving_htdt),
        PIXPRO: Relation(ours=training.moving_pixpro),
        BYOL: Relation(ours=training.moving_byol),
        LIGHTLY: Relation(
            ours=training.moving_lightly, note="the last step has the last value; ours the next",
            theirs=partial(training.moving_lightly, clock=training.ends_reached),
        ),
        "sayannag/TiCo-pytorch@2259b83": Relation(
            ours=training.moving_tico, note="a quarter sine: the second half of a cosine of ours",
            theirs=partial(training.moving_tico, half=True),
        ),
    }  # fmt: skip


def _wd_schedule() -> AddTo:
    return {
        **_same(training.moving_dino, DINO),
        IJEPA: Relation(
            ours=training.moving_ijepa, note="a step ahead of ours",
            theirs=partial(training.moving_ijepa, clock=training.one_ahead),
        ),
    }  # fmt: skip


def _knn_weighted() -> AddTo:
    top5 = {"top5": "we count the first class only"}
    return {
        DINO: Relation(
            ours=measures.knn, read=measures.shares,
            aside={**top5, "min_relative_margin": "says how safe the predictions are"},
        ),
        **dict.fromkeys((LIGHTLY, SOLO), Relation(ours=measures.knn, aside=top5)),
    }  # fmt: skip


def _rankme() -> AddTo:
    return {
        STABLE: Relation(
            ours=measures.rankme_default, note="ε is 1e-5; ours the paper's 1e-7 (our option eps)",
            theirs=measures.rankme,
        ),
        "definition (numpy)": Relation(ours=measures.rankme_definition),
    }  # fmt: skip


def _whitening() -> AddTo:
    matrices = ("cov", "corr", "eigvals_cov", "eigvals_corr")
    aside = dict.fromkeys(matrices, "what the matrices are made from")
    return {"definition (numpy/scipy)": Relation(ours=measures.whitening, aside=aside)}


RELATIONS: dict[str, AddTo] = {
    **predictors.RELATIONS,
    **negatives.RELATIONS,
    **instances.RELATIONS,
    **neighbours.RELATIONS,
    **related.RELATIONS,
    **momentum_contrast.RELATIONS,
    "barlow_twins": _barlow_twins(),
    "byol": _byol(),
    "deepclusterv2_kmeans": {
        SWAV: Relation(
            ours=prototypes.kmeans, differs=("centroids0", "centroids1"),
            note="centroids read off the model after a later run had overwritten them; "
            "the assignments are this run's and agree",
        )
    },
    "deepclusterv2_loss": _same(prototypes.deepcluster, SWAV),
    "deepclusterv2_loss_solo": {
        SOLO: Relation(
            ours=prototypes.deepcluster_unmarked, note="what is ignored is marked by ignore_index",
            theirs=prototypes.deepcluster_marked,
        )
    },
    "dino": _dino(),
    "ema_schedule": _ema_schedule(),
    "ema_update": _same(training.ema_update, LIGHTLY),
    "knn_majority_euclidean": {HTDT: Relation(ours=measures.knn_majority)},
    "knn_weighted": _knn_weighted(),
    "knn_weighted_euclidean": {
        SOLO: Relation(
            ours=measures.knn_euclidean, aside={"top5": "we count the first class only"}
        )
    },
    "lars": _lars(),
    "lr_schedule": _lr_schedule(),
    "mae_loss": _mae_loss(),
    "mae_pos_embed": {
        MAE: Relation(
            ours=prototypes.mae_positions, note="a row of zeros comes first, for the class token",
            theirs=partial(prototypes.mae_positions, with_class=True),
            when=lambda facts: facts["cls_token"],
        )
    },
    "mae_random_masking": _same(prototypes.mae_masking, MAE),
    "moco_queue": _moco(),
    "moco_queue_step1": _same(embeddings.moco_first_step, SOLO),
    "moco_queue_wraparound": _moco_bank(),
    "ntxent": _ntxent(),
    "rankme": _rankme(),
    "simsiam": _simsiam(),
    "sinkhorn": _same(prototypes.sinkhorn, SWAV, LIGHTLY, SOLO, DINOV2),
    "std_of_l2_normalized": _same(measures.deviation, LIGHTLY),
    "swav": _swav(prototypes.swav, SWAV),
    "swav_scores": _swav(prototypes.swav_scores, LIGHTLY, SOLO),
    "vicreg": _vicreg(),
    "wd_schedule": _wd_schedule(),
    "whiten_tensor_svd": {
        HUA: Relation(
            ours=measures.zca, theirs=measures.zca_about_scalar,
            note="ZCA centred by one number for all channels, biased and with ε = 1e-5",
        )
    },
    "whitening_matrices": _whitening(),
}  # fmt: skip
