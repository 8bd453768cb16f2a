"""A model that answers, with all it takes to ask it: tokenizer, how pictures are shown, how long a prompt may be.

With an adapter pictures are shown as in the run that trained it, as far as its `run.json` is there. Knows checkpoints and adapters;
nothing of where prompts come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from transformers import AriaForConditionalGeneration

from aria_finetune.adapter.files import open_adapter
from aria_finetune.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.collation import Collator
from aria_finetune.data.decoding import Decoder
from aria_finetune.data.pictures import Pictures, Showing, Shown, by_medium, shown, stack_tiles
from aria_finetune.data.rows import RowPlan, Sight, Viewing
from aria_finetune.data.tiles import Tile
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import MediaError, UserError
from aria_finetune.generation import stop_ids
from aria_finetune.generation.decoding import Answer, Watch, Wish, decode
from aria_finetune.generation.kept import Kept, Seen
from aria_finetune.generation.sampling import Sampling
from aria_finetune.material import device_named
from aria_finetune.media.images import ImageLimits
from aria_finetune.model.holding import Holding
from aria_finetune.model.hub_layout import HubCheckpoint, open_checkpoint
from aria_finetune.model.loading import Watch as LayerWatch
from aria_finetune.model.loading import load_model, load_processor
from aria_finetune.model.lora import load_adapter
from aria_finetune.model.rope import Rope, read_rope
from aria_finetune.model.settings import pad_id, vision_tokens
from aria_finetune.model.vision import image_features
from aria_finetune.provenance import fingerprint_weights, hash_file
from aria_finetune.recipe.schema import DataSection
from aria_finetune.run_folder import RUN_FILE

SHOWN_BY = ("image_size", "split_images", "num_frames", "timestamps", "max_pixels", "media_timeout")
"""Keys of `data` that say how pictures are shown."""
FEWEST_TOKENS = 16
"""Of a prompt for which there must be room."""


@dataclass(frozen=True)
class SpeakerOptions:
    """Which model, in what precision and where; the adapter's folder or that of its run.

    `image_size` and `num_frames` are those of the run or the defaults where they are None.
    """

    model: str
    revision: str | None = None
    adapter: Path | None = None
    experts: Literal["nf4", "bf16", "fp32"] = "nf4"
    experts_on: Literal["device", "host"] = "device"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    image_size: Literal["490", "980", "auto"] | None = None
    num_frames: int | None = None


@dataclass(frozen=True)
class Speaker:
    """A model in evaluation mode and what is needed to ask it; make one with `open_speaker`.

    Attributes:
        model: with the adapter around it, if there is one.
        base: the Aria in it.
        chat: renders prompts.
        viewing: how they are shown; `max_tokens` is what the longest answer leaves of the context.
        showing: how pictures become tiles.
        pad: the id that fills up short rows.
        media_timeout: seconds that decoding one medium may take.
        identity: what the answers depend on, as JSON values.
    """

    model: Any
    base: AriaForConditionalGeneration
    chat: ChatTokenizer
    viewing: Viewing
    showing: Showing
    pad: int
    media_timeout: float
    identity: Mapping[str, Any] = field(default_factory=dict)

    def wish(self, max_new_tokens: int, sampling: Sampling) -> Wish:
        """An answer of so many tokens at most, which ends where the model ends it."""
        return Wish(stop_ids(self.base, self.chat), max_new_tokens, sampling)

    def collator(self, plans: list[RowPlan]) -> Collator:
        """Makes batches of prompts; what can't be read is left out of them and told."""
        return Collator(
            plans,
            self.chat,
            self.pad,
            showing=self.showing,
            generation=True,
            on_bad_media="skip",
            media_timeout=self.media_timeout,
        )

    def answer(
        self,
        plan: RowPlan,
        kept: Kept,
        wish: Wish,
        *,
        row: int = 0,
        watch: Watch | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one prompt.

        Args:
            plan: of the whole conversation.
            kept: what was read of it before; it is brought up to the end of this answer.
            wish: what is wanted.
            row: its number, which draws go by.
            watch: as in `decode`.
            wanted: as in `decode`.

        Raises:
            MediaError: a picture can't be read.
        """
        ids = self.chat.encode(plan.turns, generation_prompt=True).ids
        pictures = pictures_in(plan, ids, self.chat.image, self.viewing)
        same = kept.cut(ids, pictures)
        try:
            new = [sight for sight, seen in zip(plan.sights, pictures, strict=True) if seen.place >= same]
            features = self._features(plan.record.media, new)
            rest = torch.tensor([ids[same:]], device=self.base.device)
            batch = {"input_ids": rest, "attention_mask": torch.ones_like(rest)}
            (answer,) = decode(
                self.model, batch, features, wish, rows=[row], cache=kept.cache, watch=watch, wanted=wanted
            )
        except BaseException:
            kept.forget()  # some layers may have gone further than others
            raise
        kept.ids = [*ids, *answer.ids][: kept.cache.get_seq_length()]
        kept.pictures = [seen for seen in pictures if seen.place < len(kept.ids)]
        return answer

    def _features(self, media: tuple[Media, ...], sights: list[Sight]) -> torch.Tensor | None:
        if not sights:
            return None
        with closing(Decoder(self.media_timeout)) as decoder:
            pictures, tiles = Pictures(self.showing, decoder), dict[Shown, list[Tile]]()
            for together in by_medium(sights):
                tiles |= pictures.of(media[together[0].media], together)
        batch = stack_tiles([tile for sight in sights for tile in tiles[shown(sight)]])
        with torch.no_grad():
            return image_features(self.base, {name: tensor.to(self.base.device) for name, tensor in batch.items()})


def pictures_in(plan: RowPlan, ids: list[int], image: int, viewing: Viewing) -> list[Seen]:
    """Where the pictures of a prompt are among its ids, and what tells each from another."""
    pictures, start = [], 0
    for sight in plan.sights:
        tokens = sight.tiles * viewing.vision_tokens[sight.tile]
        place = ids.index(image, start)
        pictures.append(Seen(place, tokens, _what(plan.record.media[sight.media], sight)))
        start = place + tokens
    return pictures


def _what(media: Media, sight: Sight) -> Hashable:
    path = Path(media.path or "")
    status = path.stat() if path.is_file() else None
    state = (status.st_size, status.st_mtime_ns) if status else None
    return media.name, state, sight.tile, sight.tiles, sight.time, sight.page


def open_speaker(options: SpeakerOptions, max_new_tokens: int, watch: LayerWatch | None = None) -> Speaker:
    """Load a model and its adapter.

    Raises:
        UserError: as `find_speaker`, or they don't fit each other.
    """
    return find_speaker(options, max_new_tokens).load(watch)


@dataclass(frozen=True)
class FoundSpeaker:
    """What is known of a speaker before it is loaded; make one with `find_speaker`. `identity` is that of the speaker."""

    options: SpeakerOptions
    device: str
    checkpoint: HubCheckpoint
    chat: ChatTokenizer
    adapter: Path | None
    rope: Rope
    data: DataSection
    viewing: Viewing
    identity: Mapping[str, Any]

    def load(self, watch: LayerWatch | None = None) -> Speaker:
        """The speaker, with its weights.

        Raises:
            UserError: model or adapter can't be loaded, or they don't fit each other.
        """
        options, data = self.options, self.data
        base = load_model(
            options.model,
            revision=options.revision,
            rope=self.rope,
            experts=options.experts,
            dtype=torch.float32 if options.experts == "fp32" else torch.bfloat16,
            device=self.device,
            implementation="lean" if self.device == "cpu" else "grouped",
            holding=Holding(experts=options.experts_on) if options.experts_on == "host" else None,
            watch=watch,
        ).model.eval()
        model = base if self.adapter is None else load_adapter(base, str(self.adapter)).eval()
        showing = Showing(data.split_images, ImageLimits(max_pixels=data.max_pixels))
        pad = pad_id(self.checkpoint)
        return Speaker(model, base, self.chat, self.viewing, showing, pad, data.media_timeout, self.identity)


def find_speaker(options: SpeakerOptions, max_new_tokens: int) -> FoundSpeaker:
    """Find a model and its adapter; no weight is loaded.

    Raises:
        UserError: one of them is not there or not as it should be, or an answer of so many tokens leaves no room for a prompt.
    """
    device = device_named(options.device)
    checkpoint = open_checkpoint(options.model, options.revision)
    chat = ChatTokenizer(load_processor(checkpoint).tokenizer)
    adapter = None if options.adapter is None else open_adapter(options.adapter).folder
    rope = (read_rope(adapter) if adapter else None) or Rope.of(checkpoint.config)
    size = options.image_size
    data = shown_by(
        adapter, image_size=int(size) if size not in (None, "auto") else size, num_frames=options.num_frames
    )
    viewing = Viewing(
        image_size=data.image_size,
        split_images=data.split_images,
        max_tokens=_room(rope, max_new_tokens),
        num_frames=data.num_frames,
        timestamps=data.timestamps,
        vision_tokens=vision_tokens(checkpoint),
    )
    identity = _identity(options, checkpoint, adapter, data)
    return FoundSpeaker(options, device, checkpoint, chat, adapter, rope, data, viewing, identity)


def shown_by(adapter: Path | None, **wanted: Any) -> DataSection:
    """How pictures are shown: as in the run of an adapter, with the defaults where no run is known; `wanted` before either, unless None.

    Raises:
        UserError: what the run says of it can't be read.
    """
    known: dict[str, Any] = {}
    file = adapter.parent / RUN_FILE if adapter else None
    try:
        if file is not None and file.is_file():
            data = json.loads(file.read_text(encoding="utf-8"))["recipe"]["data"]
            known = {key: data[key] for key in SHOWN_BY if key in data}
        chosen = {key: value for key, value in wanted.items() if value is not None}
        return DataSection.model_validate({"train": "-", **known, **chosen})
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "how the run showed pictures can't be read",
            where=str(file),
            fix="put the file back as it was, or copy the adapter's folder to where no run.json is beside it",
        ) from error


def _room(rope: Rope, max_new_tokens: int) -> int:
    room = rope.positions - max_new_tokens
    if room < FEWEST_TOKENS:
        raise UserError(
            f"an answer of {max_new_tokens:,} tokens leaves no room for a prompt: the model is made for {rope.positions:,} tokens",
            fix="lower --max-new-tokens",
        )
    return room


def _identity(
    options: SpeakerOptions, checkpoint: HubCheckpoint, adapter: Path | None, data: DataSection
) -> dict[str, Any]:
    return {
        "model": options.model,
        "revision": options.revision,
        "weights": fingerprint_weights(checkpoint.folder, checkpoint.shards),
        "adapter": [hash_file(adapter / name) for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)] if adapter else None,
        "experts": options.experts,
        "pictures": {key: getattr(data, key) for key in SHOWN_BY[:4]},
    }


def told(error: MediaError, where: str) -> UserError:
    """A medium that can't be used, as an error that the user can mend."""
    return UserError(
        f"{error.reason}: {error.detail}", where=where, fix="give a file that can be read, or leave it out"
    )
