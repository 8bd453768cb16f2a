"""A row's masks follow from its seed and the module's number, whatever is around the row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from aria_finetune.model.dropout import (
    RowDropout,
    RowRandomness,
    Segment,
    assign_rows,
    mixed,
    row_randomness,
    row_seed,
)
from aria_finetune.model.loading import load_model
from aria_finetune.model.lora import LoraPlan, add_lora, set_dropout

HIDDEN = 64


def dropout(probability: float = 0.5, number: int = 0) -> RowDropout:
    return RowDropout(probability, number=number, rows=RowRandomness()).train()


def padded(*lengths: int) -> torch.Tensor:
    """An attention mask of rows that are padded on the right."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def kept(module: RowDropout, seeds: list[int], *lengths: int) -> list[torch.Tensor]:
    """What a module keeps of every row, (length, hidden) each."""
    mask = padded(*lengths)
    assign_rows(module, seeds, mask)
    output = module(torch.ones(*mask.shape, HIDDEN))
    return [row[:length] != 0 for row, length in zip(output, lengths, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_shares_and_scale(dtype: torch.dtype, probability: float) -> None:
    module = dropout(probability)
    assign_rows(module, [row_seed(42, 0, row) for row in range(4)], padded(500, 500, 500, 500))
    x = torch.randn(4, 500, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = x.clone()
    output = module(x)
    assert output.dtype == dtype
    assert torch.equal(x, before), "the input is left alone"
    stayed = output != 0
    expected = (x.double() / (1 - probability)).to(dtype)
    rounding = 2 * torch.finfo(dtype).eps
    assert torch.allclose(output[stayed], expected[stayed], rtol=rounding, atol=0)
    deviation = (probability * (1 - probability) / (500 * HIDDEN)) ** 0.5
    for row in range(4):
        assert abs(float((output[row] == 0).double().mean()) - probability) < 5 * deviation
    in_columns = (output == 0).double().mean(dim=(0, 1))
    assert (in_columns - probability).abs().max() < 5 * (probability * (1 - probability) / 2000) ** 0.5


def test_masks_do_not_depend_on_the_dtype() -> None:
    module = dropout()
    assign_rows(module, [5], padded(40))
    wide, narrow = (module(torch.ones(1, 40, HIDDEN, dtype=dtype)) != 0 for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(wide, narrow)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    module = dropout()
    (first,), (again,) = kept(module, [row_seed(1, 2, 3)], 40), kept(module, [row_seed(1, 2, 3)], 40)
    assert torch.equal(first, again)
    others = [
        *(kept(module, [row_seed(*numbers)], 40)[0] for numbers in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3)]),
        kept(dropout(number=1), [row_seed(1, 2, 3)], 40)[0],
    ]
    for other in others:
        assert 0.4 < float((first == other).double().mean()) < 0.6, "two masks of a half agree in one half"


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    module = dropout()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    (first,) = kept(module, [7], 40)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(kept(module, [7], 40)[0], first)


def test_padding_and_neighbours_change_no_bit() -> None:
    module = dropout(0.3)
    seeds, lengths = [row_seed(0, 0, row) for row in range(4)], (17, 40, 1, 33)
    together = kept(module, seeds, *lengths)
    for row in range(4):
        (alone,) = kept(module, [seeds[row]], lengths[row])
        assert torch.equal(alone, together[row])
    reversed_order = kept(module, seeds[::-1], *lengths[::-1])
    assert all(torch.equal(a, b) for a, b in zip(together, reversed_order[::-1], strict=True))


def test_padding_is_left_alone() -> None:
    module = dropout()
    assign_rows(module, [1, 2], padded(3, 9))
    assert torch.equal(module(torch.ones(2, 9, HIDDEN))[0, 3:], torch.full((6, HIDDEN), 2.0))


def test_samples_packed_into_one_row_draw_what_they_draw_alone() -> None:
    module = dropout()
    alone = [kept(module, [seed], length)[0] for seed, length in ((11, 8), (12, 20), (13, 5))]
    module.rows.set([Segment(1, 0, 5, 13), Segment(0, 8, 20, 12), Segment(0, 0, 8, 11)], (2, 30))
    output = module(torch.ones(2, 30, HIDDEN)) != 0
    packed = [output[0, :8], output[0, 8:28], output[1, :5]]
    assert all(torch.equal(a, b) for a, b in zip(alone, packed, strict=True))


def test_evaluation_and_a_probability_of_zero_change_nothing() -> None:
    x = torch.randn(2, 9, HIDDEN)
    for module in (dropout(0.5).eval(), dropout(0.0)):
        assign_rows(module, [1, 2], padded(3, 9))
        assert module(x) is x


def test_without_a_plan_it_is_torchs_own_dropout() -> None:
    module = dropout(0.5)
    x = torch.randn(2, 9, HIDDEN)
    torch.manual_seed(3)
    ours = module(x)
    assign_rows(module, [1, 2], padded(3, 9))
    module.rows.clear()
    torch.manual_seed(3)
    assert torch.equal(module(x), ours)
    torch.manual_seed(3)
    assert torch.equal(nn.Dropout(0.5)(x), ours)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_the_number_of_threads_changes_nothing() -> None:
    module = dropout(0.1)
    x = torch.randn(1, 2048, 640)
    outputs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assign_rows(module, [9], padded(2048))
        outputs.append(module(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


class Block(nn.Module):
    """Two linears with dropout before each, as two adapters on one layer have them."""

    def __init__(self, rows: RowRandomness) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.before_first = RowDropout(0.5, number=0, rows=rows)
        self.before_second = RowDropout(0.5, number=1, rows=rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.before_second(self.first(self.before_first(x)).tanh()))


def test_the_second_forward_of_checkpointing_draws_the_same() -> None:
    torch.manual_seed(0)
    block = Block(RowRandomness()).train()
    batches = [(torch.randn(2, 12, HIDDEN), [row, row + 1], padded(7, 12)) for row in (0, 2, 4)]

    def gradients(run: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """Of three accumulated micro-batches, each with its own rows."""
        block.zero_grad()
        for x, seeds, mask in batches:
            assign_rows(block, seeds, mask)
            run(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in block.parameters()]

    without = gradients(block)
    # Without the stored state of the global generator: the masks must not need it.
    with_it = gradients(lambda x: checkpoint(block, x, use_reentrant=False, preserve_rng_state=False))
    assert all(gradient.abs().max() > 0 for gradient in without)
    assert all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))


def test_gradients_pass_where_entries_are_kept() -> None:
    module = dropout(0.25)
    assign_rows(module, [4], padded(30))
    x = torch.randn(1, 30, HIDDEN, requires_grad=True)
    output = module(x)
    output.sum().backward()
    assert torch.equal(x.grad, (output != 0) * torch.tensor(1 / 0.75))


@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ([Segment(2, 0, 4, 1)], "does not lie in a batch of 2 x 10"),
        ([Segment(-1, 0, 4, 1)], "does not lie in"),
        ([Segment(0, 8, 3, 1)], "does not lie in"),
        ([Segment(0, -1, 3, 1)], "begins before 0"),
        ([Segment(0, 0, 0, 1)], "does not lie in"),
        ([Segment(0, 4, 4, 1), Segment(0, 0, 5, 2)], "begins before 5"),
    ],
)
def test_segments_that_can_not_be(segments: list[Segment], problem: str) -> None:
    rows = RowRandomness()
    with pytest.raises(ValueError, match=problem):
        rows.set(segments, (2, 10))
    assert rows.shape is None


@pytest.mark.parametrize(
    ("seeds", "mask", "problem"),
    [
        ([1], padded(3, 9), r"1 seed\(s\) for 2 row"),
        ([1, 2, 3], padded(3, 9), r"3 seed\(s\) for 2 row"),
        ([1, 2], padded(3, 9).flip(1), "not padded on the right"),
        ([1], torch.tensor([[1, 0, 1]]), "not padded on the right"),
        ([1], torch.tensor([[0, 0, 0]]), "does not lie in"),
    ],
)
def test_rows_that_can_not_be(seeds: list[int], mask: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        assign_rows(dropout(), seeds, mask)


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_probabilities_that_can_not_be(probability: float) -> None:
    with pytest.raises(ValueError, match="is not in"):
        dropout(probability)


def test_rows_of_another_batch_are_refused() -> None:
    module = dropout()
    assign_rows(module, [1, 2], padded(3, 9))
    with pytest.raises(RuntimeError, match=r"\(2, 9\) are known, the input is \(1, 9, 64\)"):
        module(torch.ones(1, 9, HIDDEN))


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from aria_finetune.model.dropout import row_seed; print(row_seed(42, 1, 7), row_seed(0, 0, 0))"
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    # Written down, so that a changed mix, which would break the resuming of older runs, does not go unseen.
    assert printed.split() == ["1311383082924372097", "3150921512212191848"]


def test_seeds_differ_in_the_bits_that_the_generator_of_a_cpu_takes() -> None:
    seeds = {mixed(seed, epoch, row) for seed in range(3) for epoch in range(10) for row in range(300)}
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) == 9000
    assert mixed(1, 2, 3) != mixed(12, 3) != mixed(1, 23)


@pytest.fixture(scope="module")
def model(fp32_folder: Path, pretend_trained: Callable[..., PeftModel]) -> PeftModel:
    base = load_model(str(fp32_folder), experts="fp32", dtype=torch.float32).model
    adapted = add_lora(base, LoraPlan(dropout=0.5), base_name="tiny", seed=0)
    return pretend_trained(adapted, deviation=0.1).train()


def test_all_dropouts_of_aria_share_the_rows_and_differ_in_number(model: PeftModel) -> None:
    dropouts = {name: module for name, module in model.named_modules() if isinstance(module, RowDropout)}
    assert sorted(module.number for module in dropouts.values()) == list(range(2 * 4))
    assert len({id(module.rows) for module in dropouts.values()}) == 1
    assert all(".self_attn." in name for name in dropouts)
    assert not any("lora_dropout" in name for name in model.state_dict())
    assert "p=0.5" in repr(model)


def test_without_dropout_there_is_nothing_to_assign() -> None:
    model = nn.Linear(2, 2)
    assert row_randomness(model) is None
    assign_rows(model, [1], padded(3))
    set_dropout(model, 0.5, ["attention"])
    assert row_randomness(model) is None


def test_the_loss_of_a_row_of_aria_is_the_same_alone_and_in_a_batch(model: PeftModel) -> None:
    lengths, seeds = (24, 60, 41), [row_seed(42, 0, row) for row in range(3)]
    mask = padded(*lengths)
    ids = torch.randint(10, 700, mask.shape, generator=torch.Generator().manual_seed(1)) * mask + 2 * (1 - mask)

    def losses(row_seeds: list[int], ids: torch.Tensor, mask: torch.Tensor) -> list[float]:
        assign_rows(model, row_seeds, mask)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
        return [
            nn.functional.cross_entropy(row[: length - 1], text[1:length]).item()
            for row, text, length in zip(logits, ids, mask.sum(1).tolist(), strict=True)
        ]

    together = losses(seeds, ids, mask)
    for row, length in enumerate(lengths):
        here = slice(row, row + 1)
        (alone,) = losses([seeds[row]], ids[here, :length], mask[here, :length])
        assert abs(alone - together[row]) < 1e-5
        (other,) = losses([seeds[row] + 1], ids[here, :length], mask[here, :length])
        assert abs(other - together[row]) > 1e-3, "the dropout acts"


def test_gradients_of_aria_are_equal_with_and_without_checkpointing(model: PeftModel) -> None:
    gradients = []
    for checkpointing in (False, True):
        base = model.get_base_model()
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        model.zero_grad()
        for step in range(2):
            ids = torch.randint(10, 700, (2, 30), generator=torch.Generator().manual_seed(step))
            assign_rows(model, [2 * step, 2 * step + 1], padded(20, 30))
            model(input_ids=ids, attention_mask=padded(20, 30), labels=ids, use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        base.gradient_checkpointing_disable()
    without, with_it = gradients
    assert without.keys() == with_it.keys()
    assert len(without) == 20
    for name, gradient in without.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, with_it[name]), name
