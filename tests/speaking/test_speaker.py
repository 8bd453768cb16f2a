"""A model that is asked: how it is shown pictures, what it keeps between turns, and what does not go together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel

from aria_finetune.adapter.saving import save_adapter
from aria_finetune.data.rows import RowPlan, plan_row
from aria_finetune.errors import MediaError, UserError
from aria_finetune.generation.kept import Kept
from aria_finetune.generation.sampling import GREEDY
from aria_finetune.media.inspection import Inspector
from aria_finetune.model.hub_layout import open_checkpoint
from aria_finetune.model.loading import load_model, load_processor
from aria_finetune.model.lora import LoraPlan, add_lora
from aria_finetune.model.rope import Rope, write_rope
from aria_finetune.quantization import quantize
from aria_finetune.speaking.attaching import Attached, Attacher, Said, record_of
from aria_finetune.speaking.speaker import Speaker, SpeakerOptions, open_speaker, pictures_in, shown_by

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
CAT, CUP = (Attached("image", str(DATA / "photos" / name)) for name in ("cat.jpg", "coffee.jpg"))
BALL = Attached("video", str(DATA / "ball.mp4"))


def planned(speaker: Speaker, turns: list[tuple[str, list[Said]]]) -> RowPlan:
    record = record_of("r", turns, Attacher(Inspector(), 10**8))
    return plan_row(record, speaker.viewing, speaker.chat, generation=True)


def test_a_conversation_is_answered_as_if_it_were_read_anew(speaker: Speaker, make_pdf: Callable[..., Path]) -> None:
    """Images, frames and pages of earlier turns are kept, and forgotten where something before them changes."""
    pages = Attached("document", str(make_pdf("pages.pdf", 2)))
    wish, kept = replace(speaker.wish(6, GREEDY), stops=[]), Kept()
    turns: list[tuple[str, list[Said]]] = []
    read = []
    for said in ([CAT, "What is this?"], ["And what colour?"], [BALL, CUP, "Which moves?"], [pages, "Read it."]):
        turns = [*turns, ("user", said)]
        plan = planned(speaker, turns)
        before = len(kept.ids)
        found = speaker.answer(plan, kept, wish)
        assert found == speaker.answer(plan, Kept(), wish)
        assert kept.cache.get_seq_length() == len(kept.ids) == plan.tokens + 5
        read.append((before, plan.tokens))
        turns = [*turns, ("assistant", [speaker.chat.tokenizer.decode(found.ids)])]
    # Each turn but the first was read from about where the last one ended: only an answer may be tokenised in another way.
    changed = [("user", [CUP, "What is this?"]), *turns[1:3]]
    plan = planned(speaker, changed)
    same = kept.cut(*_read(speaker, plan))
    assert same < 10  # up to the picture
    assert speaker.answer(plan, kept, wish) == speaker.answer(plan, Kept(), wish)


def _read(speaker: Speaker, plan: RowPlan):  # type: ignore[no-untyped-def]
    ids = speaker.chat.encode(plan.turns, generation_prompt=True).ids
    return ids, pictures_in(plan, ids, speaker.chat.image, speaker.viewing)


def test_what_was_read_is_not_read_again(speaker: Speaker) -> None:
    kept, wish = Kept(), speaker.wish(4, GREEDY)
    first: list[tuple[str, list[Said]]] = [("user", [CAT, "What is this?"])]
    speaker.answer(planned(speaker, first), kept, wish)
    plan = planned(speaker, [*first, ("assistant", ["x"]), ("user", ["Again?"])])
    counted = []
    hook = speaker.base.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: counted.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    speaker.answer(plan, kept, wish)
    hook.remove()
    assert counted[0] < 25
    assert plan.tokens > 140


def test_a_picture_that_changed_on_the_disk_is_read_again(speaker: Speaker, tmp_path: Path) -> None:
    file = tmp_path / "picture.jpg"
    shutil.copy(CAT.path, file)
    turns: list[tuple[str, list[Said]]] = [("user", [Attached("image", str(file)), "What is this?"])]
    kept, wish = Kept(), speaker.wish(4, GREEDY)
    plan = planned(speaker, turns)
    speaker.answer(plan, kept, wish)
    shutil.copy(CUP.path, file)
    assert kept.cut(*_read(speaker, plan)) < 10
    file.unlink()
    with pytest.raises(MediaError):
        speaker.answer(plan, kept, wish)
    assert (kept.ids, kept.cache.get_seq_length()) == ([], 0)


def test_with_an_adapter_pictures_are_shown_as_in_its_run(tmp_path: Path) -> None:
    assert shown_by(None).image_size == shown_by(tmp_path / "adapter").image_size == "auto"
    data = {"train": [{"path": "x"}], "image_size": 490, "split_images": True, "num_frames": 3, "timestamps": False}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"data": data}}))
    seen = shown_by(tmp_path / "adapter")
    assert (seen.image_size, seen.split_images, seen.num_frames, seen.timestamps) == (490, True, 3, False)
    assert shown_by(tmp_path / "adapter", image_size=980, num_frames=None).image_size == 980
    for text in ("{", "[]", '{"recipe": {"data": {"image_size": 491}}}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match="how the run showed pictures"):
            shown_by(tmp_path / "adapter")


def test_an_adapter_changes_answers_and_one_of_another_model_is_refused(
    speaker: Speaker, pretend_trained: Callable[..., PeftModel], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint("tiny")
    model = load_model("tiny", experts="fp32").model
    adapted = add_lora(model, LoraPlan(("attention",), rank=4), base_name="tiny", seed=0)
    save_adapter(pretend_trained(adapted, deviation=0.5), tmp_path / "adapter", load_processor(checkpoint))
    options = SpeakerOptions("tiny", adapter=tmp_path / "adapter", experts="fp32", device="cpu")
    changed = open_speaker(options, 8)
    plan = planned(speaker, [("user", ["What is a ring?"])])
    wish = speaker.wish(8, GREEDY)
    assert changed.answer(plan, Kept(), wish) != speaker.answer(plan, Kept(), wish)
    assert changed.identity["adapter"] != speaker.identity["adapter"]

    write_rope(tmp_path / "adapter", Rope(1e6, 131_072))
    longer = open_speaker(options, 8)
    assert longer.base.config.text_config.rope_parameters["rope_theta"] == 1e6
    assert longer.viewing.max_tokens == 131_064
    (tmp_path / "adapter" / "rope.json").unlink()

    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 8}))
    with pytest.raises(UserError, match="can't be loaded"):
        open_speaker(options, 8)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="can't be read"):
        open_speaker(options, 8)


def test_an_nf4_checkpoint_answers_as_packing_on_the_fly(tiny_folder: Path, tmp_path: Path) -> None:
    quantize(str(tiny_folder), tmp_path / "nf4")
    said = []
    for home in ("device", "host"):
        for path in ("tiny", str(tmp_path / "nf4")):
            asked = open_speaker(SpeakerOptions(path, experts_on=home, device="cpu"), 8)  # type: ignore[arg-type]
            said.append(asked.answer(planned(asked, [("user", [CAT, "What is this?"])]), Kept(), asked.wish(8, GREEDY)))
    assert said[0].ids
    assert said == said[:1] * 4


def test_an_answer_must_leave_room_for_a_prompt() -> None:
    with pytest.raises(UserError, match="leaves no room for a prompt: the model is made for 65,536 tokens"):
        open_speaker(SpeakerOptions("tiny"), 65_530)
