"""What the papers of ReSSL and of alignment and uniformity say, and their official code."""

import pytest
import torch
import torch.nn.functional as F
from cases import batch, clock, engine, make, train

from selfsight.losses import alignment, nt_xent, relation_consistency, uniformity
from selfsight.methods.base import Clock


def test_ressl_takes_the_queue_as_it_was_before_the_batch():
    method = make("ressl", "test_resnet", multi_crop=0)
    before = method.queue.rows.clone()
    out = method(batch(method), clock(0))
    z, t = out.projections
    torch.testing.assert_close(out.loss, relation_consistency(z, t, before, 0.1, 0.04))
    method.after_step(out.carry, clock(0))
    torch.testing.assert_close(method.queue.rows[:16], F.normalize(t, dim=1))
    assert torch.equal(method.queue.rows[16:], before[:8])


def test_ressls_teacher_gets_no_gradient():
    out = (method := make("ressl", "test_resnet"))(batch(method), clock(0))
    assert out.projections[0].requires_grad
    assert not out.projections[1].requires_grad
    out.loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())


def test_ressl_is_no_less_than_its_teachers_entropy():
    method = make("ressl", "test_resnet", teacher_temperature=0.1, multi_crop=0)
    data = batch(method)
    out = method(data, clock(0))
    p = (F.normalize(out.projections[1], dim=1) @ method.queue.rows.T / 0.1).softmax(1)
    entropy = torch.special.entr(p).sum(1).mean()
    assert out.loss > entropy
    # With one view and one set of BatchNorm groups, the student is its teacher.
    same = make("ressl", "test_vit", teacher_temperature=0.1, multi_crop=0)
    data = batch(same)
    data.views[1] = data.views[0]
    out = same(data, clock(0))
    p = (F.normalize(out.projections[1], dim=1) @ same.queue.rows.T / 0.1).softmax(1)
    torch.testing.assert_close(out.loss, torch.special.entr(p).sum(1).mean())


def test_ressls_crops_share_one_teacher_and_are_averaged():
    method = make("ressl", "test_vit", multi_crop=2)
    data = batch(method)
    out = method(data, clock(0))
    x, x_t, *small = data.views
    t = method.teacher(x_t)
    losses = [
        relation_consistency(method.projector(method.encoder(x_i)), t, method.queue.rows)
        for x_i in (x, *small)
    ]
    assert len(losses) == 3
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_ressls_five_crops_are_the_official_ones():
    method = make("ressl", "test_vit", multi_crop=4)
    views = [method.views[0], *method.views[2:]]
    # make() scales 224 px to 64, in multiples of the patch.
    assert [view.count for view in views] == [1] * 5
    lows, highs = zip(*(view.crop for view in views), strict=True)
    assert lows == pytest.approx([0.2, 0.172, 0.143, 0.114, 0.086], abs=1e-3)
    assert highs == pytest.approx([1.0, 0.86, 0.715, 0.571, 0.429], abs=5e-3)
    assert all(view.jitter == (0.4, 0.4, 0.4, 0.1) for view in views)


def test_ressls_teacher_sees_a_weak_view_or_the_students():
    weak = make("ressl", "test_vit").views[1]
    assert (weak.jitter_p, weak.gray, weak.blur, weak.flip) == (0, 0, 0, 0.5)
    assert weak.crop == (0.2, 1.0)
    student, teacher, *_ = make("ressl", "test_vit", teacher_view="contrastive").views
    assert student == teacher


def test_ressls_head_has_no_batchnorm_and_its_norms_no_decay():
    method = make("ressl", "test_resnet")
    assert not [m for m in method.projector.modules() if "BatchNorm" in type(m).__name__]
    running = engine(method)
    for group in running.optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["decays"]}


@pytest.mark.parametrize(("decay", "follows"), [(0.0, True), (1.0, False)])
@pytest.mark.parametrize("name", ["ressl", "moco_align_uniform"])
def test_with_momentum_0_the_teacher_copies_the_student(name, decay, follows):
    method = make(name, "test_resnet", momentum=decay)
    train(method, 1)
    student, teacher = (
        method.projector[0].weight,
        method.teacher.network.get_submodule("1.0").weight,
    )
    assert torch.equal(student, teacher) is follows


WEIGHTS = {"alignment": 0.7, "uniformity": 1.3, "alpha": 1.0, "t": 3.0}


def test_align_uniform_is_the_published_loss():
    method = make("align_uniform", "test_resnet", **WEIGHTS)
    out = method(batch(method), clock(0))
    z1, z2 = out.projections
    even = (uniformity(z1, 3.0) + uniformity(z2, 3.0)) / 2
    torch.testing.assert_close(out.loss, 0.7 * alignment(z1, z2, 1.0) + 1.3 * even)
    torch.testing.assert_close(out.metrics["alignment"], alignment(z1, z2, 1.0).detach())
    torch.testing.assert_close(out.metrics["uniformity"], even.detach())


def test_align_uniform_can_be_contrastive():
    """With negatives from the other view alone, which SimCLR's are beside its own."""
    alone = {"alignment": 0.0, "uniformity": 0.0, "contrast": 2.0, "temperature": 0.5}
    method = make("align_uniform", "test_resnet", **alone)
    out = method(batch(method), clock(0))
    z1, z2 = (F.normalize(z, dim=1) for z in out.projections)
    logits, own = z1 @ z2.T / 0.5, torch.arange(16)
    expected = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
    torch.testing.assert_close(out.loss, expected)
    assert out.loss / 2 < nt_xent(z1, z2, 0.5)


def test_align_uniforms_small_crops_follow_the_large_ones():
    method = make("align_uniform", "test_vit", multi_crop=2)
    out = method(batch(method), clock(0))
    z = out.projections
    near = [alignment(z[i], z[j]) for i in range(2) for j in range(4) if i != j]
    even = [uniformity(z_i) for z_i in z]
    torch.testing.assert_close(out.loss, torch.stack(near).mean() + torch.stack(even).mean())


def test_align_uniform_drops_its_rate_three_times():
    method = make("align_uniform", "test_vit")
    running = engine(method, total=40)
    rates = {at: train_one(running, method, at) for at in (30, 31, 33, 34, 36, 37)}
    assert list(rates.values()) == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001, 0.0001])


def train_one(running, method, at):
    where = Clock(at, 40, 3, 0)
    return running.step(where, [batch(method)], lambda network, view: iter(())).rate


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_moco_align_uniform_by_hand(alpha):
    method = make("moco_align_uniform", "test_resnet", alpha=alpha, alignment=3.0)
    before = method.queue.rows.clone()
    out = method(batch(method), clock(0))
    q, k = (F.normalize(z, dim=1) for z in out.projections)
    assert not k.requires_grad
    near = (q - k).norm(dim=1).pow(alpha).mean()
    distances = torch.cat([(2 - 2 * q @ before.T).flatten(), torch.pdist(q).square()])
    even = (-3 * distances).exp().mean().log()
    torch.testing.assert_close(out.loss, 3 * near + even)
    method.after_step(out.carry, clock(0))
    torch.testing.assert_close(method.queue.rows[:16], k)
    assert torch.equal(method.queue.rows[16:], before[:8])


def test_moco_align_uniforms_recipes():
    steps = make("moco_align_uniform", "test_vit", schedule="steps", augment="v1", head="linear")
    assert [240 * share for share in steps.recipe.drops] == pytest.approx([160, 190, 220])
    assert steps.views[0].blur == 0
    assert len(steps.projector) == 1
    cosine = make("moco_align_uniform", "test_vit")
    assert cosine.recipe.drops == ()
    assert cosine.views[0].blur == 0.5
    assert len(cosine.projector) == 3


def test_moco_align_uniforms_small_crops_are_queries_too():
    method = make("moco_align_uniform", "test_vit", multi_crop=2)
    data = batch(method)
    out = method(data, clock(0))
    x, x_k, *small = data.views
    k, queries = method.teacher(x_k), [x, *small]
    losses = []
    for x_q in queries:
        q = method.projector(method.encoder(x_q))
        losses.append(3 * alignment(q, k) + uniformity(q, 3.0, method.queue.rows))
    assert len(losses) == 3
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())
