"""Labels scored by a head in slices, against torch's own cross entropy in fp64, TRL's fused head and softmax written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from trl.kernels import ChunkedLogProbFunction

from aria_finetune.model import head_loss
from aria_finetune.model.head_loss import Scores, score_labels
from aria_finetune.model.nf4 import PackedRows, quantize_linear

BATCH, TOKENS, HIDDEN, VOCABULARY = 2, 40, 64, 300
LABELS = {"none": 0, "one": 1, "some": 30, "all": BATCH * TOKENS}


@pytest.fixture(params=[(96, 7), (100, 20), (4096, 1024)], ids=["odd", "whole", "one slice"])
def _slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that the vocabulary of 300 and the tokens are, and are not, a multiple of."""
    rows, tokens = request.param
    monkeypatch.setattr(head_loss, "SLICE_ROWS", rows)
    monkeypatch.setattr(head_loss, "TILE_TOKENS", {"cpu": tokens})


def case(labelled: int, dtype: torch.dtype, scale: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, labels of which `labelled` are there, and a head."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, TOKENS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    head = (torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64) * scale).to(dtype)
    labels = torch.full((BATCH * TOKENS,), -100)
    places = torch.randperm(BATCH * TOKENS, generator=generator)[:labelled]
    labels[places] = torch.randint(0, VOCABULARY, (labelled,), generator=generator)
    if labelled == 1:
        labels[:] = -100
        labels[5] = VOCABULARY - 1
    return hidden.requires_grad_(), labels.view(BATCH, TOKENS), head


def mean_loss(scores: Scores) -> torch.Tensor:
    return -scores.log_probs.sum() / scores.label_mask.sum().clamp(min=1)


def distance(found: torch.Tensor, due: torch.Tensor) -> float:
    found, due = found.detach().double(), due.detach().double()
    return float((found - due).norm() / due.norm().clamp(min=1e-30))


@pytest.mark.usefixtures("_slices")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("labelled", LABELS.values(), ids=LABELS)
def test_loss_and_gradient_are_those_of_cross_entropy(labelled: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden, labels, head = case(labelled, dtype)
    scores = score_labels(hidden, labels, head)
    loss = mean_loss(scores)
    loss.backward()
    assert hidden.grad is not None
    assert scores.log_probs.shape == (BATCH, TOKENS - 1)
    assert torch.equal(scores.label_mask, labels[:, 1:] != -100)
    if not scores.label_mask.any():
        assert loss == 0
        assert not hidden.grad.any()
        return

    exact = hidden.detach().double().requires_grad_()
    logits = exact[:, :-1] @ head.double().T
    due = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    due.backward()
    assert exact.grad is not None
    assert abs(loss.item() - due.item()) < tolerance * due.item()
    assert distance(hidden.grad, exact.grad) < tolerance
    assert (scores.log_probs[~scores.label_mask] == 0).all()


@pytest.mark.usefixtures("_slices")
def test_the_gradient_is_that_of_finite_differences() -> None:
    hidden, labels, head = case(LABELS["some"], torch.float64)
    assert torch.autograd.gradcheck(lambda states: score_labels(states, labels[:, :9], head).log_probs, hidden[:, :9])


@pytest.mark.usefixtures("_slices")
def test_entropy_and_the_likeliest_token() -> None:
    hidden, labels, head = case(LABELS["all"], torch.float32)
    log_probs = (hidden[:, :-1].detach().double() @ head.double().T).log_softmax(-1)
    labels[:, 1:30] = log_probs.argmax(-1)[:, :29]
    scores = score_labels(hidden, labels, head)
    assert (scores.entropy + (log_probs.exp() * log_probs).sum(-1)).abs().max() < 1e-5
    assert torch.equal(scores.is_top1, log_probs.argmax(-1) == labels[:, 1:])
    assert scores.is_top1[:, :29].all()
    assert not scores.entropy.requires_grad


@pytest.mark.usefixtures("_slices")
def test_of_equal_logits_the_first_is_the_likeliest() -> None:
    """As TRL counts its accuracy."""
    hidden, labels, head = case(LABELS["all"], torch.float32)
    labels[0], labels[1] = 12, 250  # in the first slice and the last, whatever their size
    head[12] = head[250] = hidden[:, :-1].detach().mean((0, 1)) * 100
    found = score_labels(hidden, labels, head).is_top1
    alike = hidden[:, :-1] @ head[12] > (hidden[:, :-1] @ head.T).topk(3, dim=-1).values[..., 2]
    assert alike.any()
    assert torch.equal(found[0], alike[0])
    assert not found[1].any()


@pytest.mark.usefixtures("_slices")
@pytest.mark.parametrize("labelled", LABELS.values(), ids=LABELS)
def test_trl_scores_the_same(labelled: int) -> None:
    """Every field that TRL's loss and metrics are made of."""
    hidden, labels, head = case(labelled, torch.float32)
    theirs = hidden.detach().clone().requires_grad_()
    scores = score_labels(hidden, labels, head)
    mask = scores.label_mask
    log_probs, entropy, _, _, is_top1 = ChunkedLogProbFunction.apply(
        theirs[:, :-1][mask], head, None, labels[:, 1:][mask], 1.0, 128, None, 1.0, ("entropy", "is_top1")
    )
    assert torch.allclose(scores.log_probs[mask], log_probs, rtol=0, atol=1e-5)
    assert torch.allclose(scores.entropy[mask], entropy, rtol=0, atol=1e-5)
    assert torch.equal(scores.is_top1[mask], is_top1)
    scores.log_probs.sum().backward()
    log_probs.sum().backward()
    assert hidden.grad is not None
    assert theirs.grad is not None
    assert distance(hidden.grad, theirs.grad) < 1e-6 if labelled else not hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_head_gives_the_bits_of_the_dense_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "SLICE_ROWS", 96)
    _, labels, head = case(LABELS["some"], dtype)
    packed, state = quantize_linear(head)
    dense = dequantize_4bit(packed, state)
    found = []
    for rows in (PackedRows(packed, state), dense):
        hidden = case(LABELS["some"], dtype)[0]
        scores = score_labels(hidden, labels, rows)
        mean_loss(scores).backward()
        found.append((scores.log_probs, scores.entropy, hidden.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_the_gradient_of_a_token_that_is_almost_certain_is_exact() -> None:
    """1 - p is 1e-6 there; as 1 minus a p in fp32 it would be off by 6%."""
    hidden, labels, head = case(LABELS["all"], torch.float32, scale=0.01)
    labels[:, 1:] = 7
    head[7] = 0.3
    hidden = (hidden.detach() * 0.1 + 1).requires_grad_()
    score_labels(hidden, labels, head).log_probs.sum().backward()
    exact = hidden.detach().double().requires_grad_()
    log_probs = (exact[:, :-1] @ head.double().T).log_softmax(-1)[..., 7]
    log_probs.sum().backward()
    assert hidden.grad is not None
    assert exact.grad is not None
    assert 1e-7 < 1 - log_probs.exp().max() < 1e-5
    assert distance(hidden.grad, exact.grad) < 1e-5


def test_in_bf16_it_is_no_further_from_the_truth_than_trl() -> None:
    """The truth: fp64 arithmetic on the same bf16 hidden states and weights; TRL rounds its logits to bf16."""
    _, labels, head = case(LABELS["all"], torch.bfloat16)
    exact = case(LABELS["all"], torch.bfloat16)[0].detach().double().requires_grad_()
    truth = (exact[:, :-1] @ head.double().T).log_softmax(-1).gather(-1, labels[:, 1:, None])[..., 0]
    truth.sum().backward()
    assert exact.grad is not None

    ours = case(LABELS["all"], torch.bfloat16)[0]
    scores = score_labels(ours, labels, head)
    scores.log_probs.sum().backward()
    assert ours.grad is not None
    assert ours.grad.dtype == torch.bfloat16
    theirs = case(LABELS["all"], torch.bfloat16)[0]
    found = ChunkedLogProbFunction.apply(
        theirs[:, :-1].flatten(0, 1), head, None, labels[:, 1:].flatten(), 1.0, 128, None, 1.0, ()
    )[0]
    found.sum().backward()
    assert theirs.grad is not None
    errors = [
        (distance(scores.log_probs, truth), distance(found.view(truth.shape), truth)),
        (distance(ours.grad, exact.grad), distance(theirs.grad, exact.grad)),
    ]
    assert all(our_error <= 1.05 * their_error < 0.01 for our_error, their_error in errors)


def test_autocast_sets_the_dtype_of_the_products() -> None:
    hidden, labels, head = case(LABELS["some"], torch.float32)
    rounded = score_labels(hidden.bfloat16(), labels, head.bfloat16()).log_probs
    with torch.autocast("cpu", torch.bfloat16):
        found = score_labels(hidden, labels, head).log_probs
    assert torch.equal(found, rounded)
    assert found.dtype == torch.float32
    assert not torch.equal(found, score_labels(hidden, labels, head).log_probs)


class Largest(TorchDispatchMode):
    """Keeps the number of values of the largest floating tensor that any operation made; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        there = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            made = isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in there
            if made and tensor.is_floating_point():
                self.values = max(self.values, tensor.numel())
        return result


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "dense"])
def test_neither_logits_nor_a_copy_of_the_head_are_ever_whole(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "SLICE_ROWS", 64)
    monkeypatch.setattr(head_loss, "TILE_TOKENS", {"cpu": 16})
    hidden, labels, head = case(LABELS["all"], torch.float32)
    rows = PackedRows(*quantize_linear(head)) if packed else head
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = score_labels(hidden, labels, rows)
        mean_loss(scores).backward()
    scored = BATCH * (TOKENS - 1)
    assert scored * HIDDEN <= largest.values <= hidden.numel() < VOCABULARY * HIDDEN < scored * VOCABULARY
    kept = sum(tensor.numel() for tensor in saved if tensor.is_floating_point())
    assert kept == scored * (HIDDEN + 1), (
        "the direction of each token's gradient, its log-probability, and nothing else"
    )


def test_without_gradient_nothing_is_kept_for_one() -> None:
    hidden, labels, head = case(LABELS["all"], torch.float32)
    with torch.no_grad(), Largest() as largest:
        scores = score_labels(hidden, labels, head[:20])
    assert not scores.log_probs.requires_grad
    assert largest.values == BATCH * (TOKENS - 1) * HIDDEN, "the hidden states with a label"
