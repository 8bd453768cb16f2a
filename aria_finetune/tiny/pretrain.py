"""Train the tiny Aria from nothing on drawn scenes, and save it in the hub layout in bf16.

    python -m aria_finetune.tiny.pretrain OUTPUT [--steps 900] [--seed 0]

The package ships what this script wrote (`aria_finetune/tiny/checkpoint`). It is a plain training loop on
transformers alone, on purpose: it shares no code with the trainer that it is used to test.
"""

from __future__ import annotations

import argparse
import copy
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AriaForConditionalGeneration, AriaProcessor

from aria_finetune.tiny.architecture import tiny_config, tiny_processor, tiny_tokenizer
from aria_finetune.tiny.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scene, draw_scene, sample_scene

TEXT_FACTS = [
    ("Say hello.", "Hello! How can I help you?"),
    ("What can you do?", "I can look at pictures and talk about them."),
    ("What is a ring?", "A circle with a hole."),
    ("What is a bar?", "A shape that lies."),
    ("What is the colour of grass?", "Grass is green."),
    ("What is the colour of the sky?", "The sky is blue."),
    ("Count to five.", "One, two, three, four, five."),
    ("What follows Monday?", "Tuesday follows Monday."),
]
IGNORED = -100
BALANCE_WEIGHT = 0.01


def corpus() -> list[str]:
    """Every sentence that pretraining can say, plus everyday words so that other text is not all bytes."""
    sentences = [f"A {c} {s} on a {b} background." for c in COLOURS for s in SHAPES for b in BACKGROUNDS]
    sentences += [question for question, _ in sample_scene(random.Random(0)).questions]
    sentences += [f" {word}" for word in (*COLOURS, *SHAPES, *BACKGROUNDS, *PLACES)]
    sentences += [text for fact in TEXT_FACTS for text in fact]
    sentences += ["user assistant system image picture video frame page document table text answer question"]
    sentences += ["the of and to in is it that for on with as are this be at or from by not have you what which yes no"]
    return sentences * 3


def turns(questions: list[tuple[str, str]], *, image: bool) -> list[tuple[str, bool]]:
    """Pieces of a conversation in Aria's chat format, each with whether it is in the loss."""
    pieces: list[tuple[str, bool]] = []
    for number, (question, answer) in enumerate(questions):
        picture = "<fim_prefix><|img|><fim_suffix>" if image and number == 0 else ""
        pieces.append((f"<|im_start|>user\n{picture}{question}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces.append((f"{answer}<|im_end|>\n", True))
    return pieces


def encode(processor: AriaProcessor, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; an image is 128 tokens (490 px)."""
    ids: list[int] = []
    labels: list[int] = []
    for text, in_loss in pieces:
        piece = processor.tokenizer(text.replace("<|img|>", "<|img|>" * 128), add_special_tokens=False).input_ids
        ids += piece
        labels += piece if in_loss else [IGNORED] * len(piece)
    return ids, labels


PROPERTIES = {"colour": list(COLOURS), "shape": list(SHAPES), "place": list(PLACES), "background": list(BACKGROUNDS)}


class Probe(torch.nn.Module):
    """Reads colour, shape, place and background off the mean image token of each picture.

    Its loss teaches the vision tower and the projector what is worth telling; it is thrown away afterwards.
    Without it they tell the language model colours only, for hundreds of steps.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(v)) for name, v in PROPERTIES.items()})

    def loss(self, features_NQH: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        """Mean cross entropy over the properties; a scalar."""
        losses = []
        for name, values in PROPERTIES.items():
            truth_N = torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
            losses.append(torch.nn.functional.cross_entropy(self.heads[name](features_NQH.mean(1)), truth_N))
        return torch.stack(losses).mean()


def sample_scenes(rng: random.Random, count: int) -> list[Scene]:
    """`count` random scenes."""
    return [sample_scene(rng) for _ in range(count)]


def batch(processor: AriaProcessor, rng: random.Random, scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """A conversation about every scene, and one of text only."""
    rows = [encode(processor, turns(_shuffled(scene, rng), image=True)) for scene in scenes]
    rows.append(encode(processor, turns(rng.sample(TEXT_FACTS, 3), image=False)))
    width = max(len(ids) for ids, _ in rows)
    pixels = processor.image_processor(
        [_tinted(draw_scene(scene), rng) for scene in scenes], max_image_size=490, return_tensors="pt"
    )
    return {
        "input_ids": torch.tensor([ids + [2] * (width - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows]),
        "pixel_values": pixels["pixel_values"],
        "pixel_mask": pixels["pixel_mask"],
    }


def _shuffled(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    return rng.sample(scene.questions, len(scene.questions))


def _tinted(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with a slight cast, so that no colour is one exact value."""
    pixels = np.asarray(picture, dtype=np.int16)
    tint = np.array([rng.randint(-12, 12) for _ in range(3)], dtype=np.int16)
    return Image.fromarray(np.clip(pixels + tint, 0, 255).astype(np.uint8))


def sinusoids(points_N2: torch.Tensor, width: int) -> torch.Tensor:
    """Sine and cosine features (points, width) of positions in the unit square, four per frequency."""
    frequencies_F = 2.0 ** torch.linspace(0, 4, width // 4) * torch.pi / 2
    angles_N2F = points_N2[:, :, None] * frequencies_F
    return torch.stack([angles_N2F.sin(), angles_N2F.cos()], -1).permute(0, 2, 1, 3).reshape(len(points_N2), width)


def unit_grid(columns: int, rows: int) -> torch.Tensor:
    """Centres (columns * rows, 2) of a grid over the unit square, row by row."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def start_local(model: AriaForConditionalGeneration) -> None:
    """Let patches know where they are and each projector query look at one place of the picture.

    From a random start the projector only learns the mean of the patches: colours, but no shapes or places.
    """
    width = model.config.vision_config.hidden_size
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    projector = model.model.multi_modal_projector
    side = int(len(positions) ** 0.5)
    with torch.no_grad():
        positions.copy_(sinusoids(unit_grid(side, side), width))
        projector.query[:128].copy_(sinusoids(unit_grid(16, 8), width))
        projector.query[128:].copy_(sinusoids(unit_grid(16, 8), width))
        for linear in (projector.cross_attn.q_proj, projector.cross_attn.k_proj):
            linear.weight.copy_(torch.eye(width))
        projector.cross_attn.multihead_attn.in_proj_weight[: 2 * width].copy_(2 * torch.eye(width).repeat(2, 1))


def balance_loss(router_logits: tuple[torch.Tensor, ...], top_k: int) -> torch.Tensor:
    """Switch-style balance loss (arXiv 2101.03961, equation 4), the mean over layers; a scalar, 1 when even."""
    losses = []
    for logits in router_logits:
        probabilities = logits.float().softmax(-1)
        chosen = torch.zeros_like(probabilities).scatter_(1, logits.topk(top_k, -1).indices, 1.0)
        losses.append(logits.shape[-1] * (chosen.mean(0) / top_k * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


def accuracy(model: AriaForConditionalGeneration, processor: AriaProcessor, rng: random.Random, batches: int) -> float:
    """Share of labelled tokens that the model predicts first, on fresh scenes."""
    right = total = 0
    for _ in range(batches):
        inputs = batch(processor, rng, sample_scenes(rng, 8))
        with torch.no_grad():
            guesses = model(**inputs).logits[:, :-1].argmax(-1)
        labels = inputs["labels"][:, 1:]
        right += int(((guesses == labels) & (labels != IGNORED)).sum())
        total += int((labels != IGNORED).sum())
    return right / total


def fresh_model() -> AriaForConditionalGeneration:
    """An untrained tiny Aria in fp32."""
    model = AriaForConditionalGeneration(tiny_config())
    start_local(model)
    model.generation_config.eos_token_id = [2, 5]
    model.generation_config.pad_token_id = 2
    return model


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train."""

    steps: int
    seed: int
    batch_size: int
    learning_rate: float
    probe_weight: float


def train(output: Path, schedule: Schedule) -> None:
    """Train and save; prints the loss every 50 steps and the token accuracy every 250."""
    steps, seed, learning_rate = schedule.steps, schedule.seed, schedule.learning_rate
    torch.manual_seed(seed)
    rng = random.Random(seed)
    processor = tiny_processor(tiny_tokenizer(corpus()))
    model = fresh_model()
    probe = Probe(model.config.text_config.hidden_size)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *probe.parameters()], lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        scenes = sample_scenes(rng, schedule.batch_size)
        inputs = batch(processor, rng, scenes)
        seen = model.get_image_features(inputs.pop("pixel_values"), inputs.pop("pixel_mask"))
        outputs = model(**inputs, mm_encoder_outputs={"image": seen}, output_router_logits=True)
        probe_loss = probe.loss(seen.pooler_output, scenes)
        loss = (
            outputs.loss + schedule.probe_weight * probe_loss + BALANCE_WEIGHT * balance_loss(outputs.router_logits, 6)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rates.step()
        if step % 50 == 0:
            print(f"step {step} loss {outputs.loss.item():.4f} probe {probe_loss.item():.4f}", flush=True)
        if step % 250 == 249:
            save(model, processor, output)
            print(
                f"step {step} token accuracy {accuracy(model, processor, random.Random(seed + 1), 4):.3f}", flush=True
            )
    save(model, processor, output)


def save(model: AriaForConditionalGeneration, processor: AriaProcessor, output: Path) -> None:
    """Write weights (bf16, as the real ones are), configuration, tokenizer and processor in the hub layout."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--probe-weight", type=float, default=4.0)
    given = parser.parse_args()
    schedule = Schedule(given.steps, given.seed, given.batch_size, given.learning_rate, given.probe_weight)
    train(given.output, schedule)


if __name__ == "__main__":
    main()
