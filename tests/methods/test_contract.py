"""What every method of the catalogue promises; a new one is tested by its line in cases.py."""

import copy
import math
import types
import typing

import pytest
import torch
from cases import (
    NEEDS_TOKENS,
    SHARED,
    SMALL,
    batch,
    clock,
    encoders,
    engine,
    make,
    sweep,
    train,
)

from selfsight import methods
from selfsight.errors import ConfigError
from selfsight.methods.base import Output
from selfsight.train.checkpoint import optimizer_tensors, restore_optimizer

CASES = [(name, encoder) for name in methods.METHODS for encoder in encoders(name)]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

each = pytest.mark.parametrize(("name", "encoder"), CASES)


def prepared(name, encoder, **options):
    method = make(name, encoder, **options)
    method.prepare(clock(0), sweep(method, clock(0)))
    return method


def snapshot(method):
    return {key: value.clone() for key, value in method.state_dict().items()}


@each
def test_the_loss_is_finite_and_reaches_every_trainable_parameter(name, encoder):
    method = prepared(name, encoder)
    with torch.no_grad():
        for p in method.parameters():  # the last scale of a residual branch starts at zero
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    out = method(batch(method), clock(0))
    assert isinstance(out, Output)
    assert out.loss.isfinite()
    assert out.embedding.shape == (16, method.encoder.dim)
    out.loss.backward()
    named = {key: p for key, p in method.named_parameters() if p.requires_grad}
    assert [key for key, p in named.items() if p.grad is None] == []
    assert [key for key, p in named.items() if not p.grad.abs().sum() > 0] == []


@each
def test_forward_changes_nothing_but_batchnorm_statistics(name, encoder):
    method = prepared(name, encoder)
    before = snapshot(method)
    method(batch(method), clock(0))
    changed = [k for k, v in method.state_dict().items() if not torch.equal(v, before[k])]
    assert all(key.endswith(STATISTICS) for key in changed)


@each
def test_forward_is_a_function_of_its_arguments(name, encoder):
    method = prepared(name, encoder)
    first = method(batch(method), clock(0)).loss
    assert torch.equal(first, method(batch(method), clock(0)).loss)
    assert not torch.equal(first, method(batch(method, step=1), clock(0)).loss)


@each
def test_frozen_parameters_get_no_gradient_yet_teachers_move(name, encoder):
    method = prepared(name, encoder)
    before = snapshot(method)
    train(method, 3)
    frozen = [key for key, p in method.named_parameters() if not p.requires_grad]
    assert all(dict(method.named_parameters())[key].grad is None for key in frozen)
    teacher = [key for key in frozen if key.startswith("teacher.")]
    moved = [key for key in teacher if not torch.equal(before[key], method.state_dict()[key])]
    # What the student leaves as it is, such as fixed positions, does not move.
    fixed = tuple(key.removeprefix("encoder") for key in frozen if key.startswith("encoder."))
    assert moved == [key for key in teacher if not key.endswith(fixed)]


@each
def test_a_rejected_step_leaves_no_trace(name, encoder):
    method = make(name, encoder)
    running, _ = train(method, 1)
    before = snapshot(method)
    state = {k: v.clone() for k, v in optimizer_tensors(running.optimizer, method).items()}
    poisoned = batch(method, step=1)
    poisoned.views[0][3] = torch.nan
    step = running.step(clock(1), [poisoned], sweep(method, clock(1)))
    assert step.output is None
    assert sorted(step.samples) == sorted(poisoned.index.tolist())
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key
    for key, value in optimizer_tensors(running.optimizer, method).items():
        assert torch.equal(value, state[key]), key


@each
def test_saved_and_loaded_it_takes_the_same_next_step(name, encoder):
    method = make(name, encoder)
    running, _ = train(method, 4)
    saved = snapshot(method)
    state = {k: v.clone() for k, v in optimizer_tensors(running.optimizer, method).items()}
    train(method, 6, first=4, running=running)

    other = make(name, encoder)
    resumed = engine(other)
    other.load_state_dict(saved)
    restore_optimizer(resumed.optimizer, other, state)
    train(other, 6, first=4, running=resumed)
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@each
def test_the_loss_falls_on_a_repeated_batch(name, encoder):
    method = prepared(name, encoder)
    data = batch(method)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(15):
        loss = method(data, clock(0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0] - 1e-3


@each
def test_accumulation_runs_the_hooks_once(name, encoder):
    method = make(name, encoder)
    calls = []
    original = method.after_step

    def counted(carry, at):
        calls.append({key: len(value) for key, value in carry.items()})
        original(carry, at)

    method.after_step = counted
    _, steps = train(method, 2, micros=2)
    assert all(step.output is not None for step in steps)
    assert len(calls) == 2
    # A row per sample, or one per part.
    assert all(length in (16, 2) for call in calls for length in call.values())


@each
def test_autocast_keeps_the_loss_in_float32(name, encoder):
    method = make(name, encoder)
    if not method.encoder.maskable and method.smallest < 32:
        return  # torch has no bf16 for maps so small, and `auto` does not choose it
    _, (step,) = train(method, 1, precision="bf16")
    assert step.output is not None
    assert step.output.loss.dtype == torch.float32
    _, (full,) = train(make(name, encoder), 1)
    assert step.loss == pytest.approx(full.loss, rel=0.05)


@each
def test_training_twice_is_bit_equal(name, encoder):
    states = []
    for _ in range(2):
        method = make(name, encoder)
        train(method, 3)
        states.append(snapshot(method))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@each
def test_the_product_is_an_encoder_of_its_own(name, encoder):
    method = make(name, encoder)
    h = copy.deepcopy(method.product).eval()(torch.zeros(2, 3, 64, 64))
    assert h.shape == (2, method.product.dim)


@each
def test_a_wrong_option_is_named(name, encoder):
    with pytest.raises(ConfigError, match=rf"unknown option nonsense of {name}"):
        make(name, encoder, nonsense=1)
    assert name in SMALL


@each
def test_an_image_of_the_wrong_size_is_one_clear_line(name, encoder):
    method = prepared(name, encoder)
    data = batch(method)
    data.views[:] = [x[:, :, :50, :50] for x in data.views]
    if method.encoder.multiple == 1:  # a CNN takes any size
        assert method(data, clock(0)).loss.isfinite()
    else:
        with pytest.raises(ConfigError, match="multiple"):
            method(data, clock(0))


def beyond(kind):
    """Values just outside of what an annotation allows."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield "text"
        for limits in inner[1:]:
            yield limits.low if limits.above else limits.low - 1
            yield from [limits.high + 1] * (limits.high < math.inf)
    elif origin is typing.Literal:
        yield "nonsense"
    elif origin is types.UnionType:
        yield from (value for part in inner for value in beyond(part))
    elif kind in (bool, int, float):
        yield "text"


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_option_refuses_what_it_cannot_mean(name):
    tried = 0
    for option, parameter in methods.options(name).items():
        for value in beyond(parameter.annotation):
            with pytest.raises(ConfigError, match=rf"--method\.{option} .* must be "):
                make(name, "test_vit", **{option: value})
            tried += 1
    assert tried > len(methods.options(name)) / 2


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in NEEDS_TOKENS])
def test_whether_the_second_view_changes_the_first_projection(name):
    """Which views share one BatchNorm pass is a fact of each method."""
    method = prepared(name, "test_resnet")
    data = batch(method)
    if len(data.views) == 1:
        assert name not in SHARED
        return
    z = method(data, clock(0)).projections[0]
    data.views[1] = data.views[1].flip(0) * 2
    other = method(data, clock(0)).projections[0]
    assert torch.equal(z, other) is not SHARED[name]
