"""What must never be in a batch: picture tokens in the loss, control tokens that text has forged, tokens nobody planned.

Compares the ids and labels of a batch with the plan's turns. Renders nothing: the chat format is not asked what it thinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

from aria_finetune.data.chat import CONTROL_TOKENS, IGNORED, ChatTokenizer, Picture
from aria_finetune.data.rows import RowPlan
from aria_finetune.viewing.batches import SeenRow


def find_faults(seen: SeenRow, plan: RowPlan, chat: ChatTokenizer, vision_tokens: Mapping[int, int]) -> tuple[str, ...]:
    """Everything wrong with a row, a sentence each; nothing for a sound one. Tokens are counted from 0.

    Args:
        seen: the row as the collator made it.
        plan: what was planned.
        chat: knows the control tokens.
        vision_tokens: image tokens of one tile by its side in pixels.
    """
    forged = list(_forgeries(seen, plan, chat))
    roles = [] if forged else list(_wrong_turns(seen, plan, chat))
    return (
        *_picture_labels(seen, chat),
        *forged,
        *roles,
        *_wrong_labels(seen),
        *_counts(seen, plan, chat, vision_tokens),
    )


def _picture_labels(seen: SeenRow, chat: ChatTokenizer) -> Iterator[str]:
    names = _names(chat)
    for token in (chat.image, chat.prefix, chat.suffix):
        places = [place for place, (index, label) in enumerate(seen.shown) if index == token and label != IGNORED]
        if places:
            yield f"{names[token]} is in the loss: token {places[0]}" + (
                f" and {len(places) - 1} more" if len(places) > 1 else ""
            )


def _forgeries(seen: SeenRow, plan: RowPlan, chat: ChatTokenizer) -> Iterator[str]:
    """The first control token that is not where the plan's turns and pictures have one."""
    found = ((place, index) for place, (index, _) in enumerate(seen.shown) if index in chat.control_ids)
    for (place, index), planned in zip_longest(found, _skeleton(plan, chat), fillvalue=(None, None)):
        expected = planned if isinstance(planned, int) else None
        if index == expected:
            continue
        names = {None: "none", **_names(chat)}
        if place is None or index is None:
            yield f"the row ends before {names[expected]}"
        else:
            spelled = names.get(index) or f"control token {index}"
            yield f"a control token is forged: {spelled} is token {place}, where the plan has {names[expected]}"
        return


def _skeleton(plan: RowPlan, chat: ChatTokenizer) -> Iterator[int]:
    """The control tokens that the plan has, in order."""
    for turn in plan.turns:
        yield chat.start
        for part in turn.content:
            if isinstance(part, Picture):
                yield chat.prefix
                yield from [chat.image] * part.tokens
                yield chat.suffix
        yield chat.end


def _wrong_turns(seen: SeenRow, plan: RowPlan, chat: ChatTokenizer) -> Iterator[str]:
    """Turns that have tokens in the loss and must have none; called where turns are as planned."""
    turn, told = -1, -1
    for place, (index, label) in enumerate(seen.shown):
        turn += index == chat.start
        if label == IGNORED or turn == told:
            continue
        role = plan.turns[turn].role if turn >= 0 else "nobody"
        if role != "assistant" or plan.turns[turn].train is False:
            told = turn
            yield f"token {place} is in the loss; it stands in turn {turn}, of {role}, which is not"


def _wrong_labels(seen: SeenRow) -> Iterator[str]:
    other = [place for place, (index, label) in enumerate(seen.shown) if label not in {IGNORED, index}]
    if other:
        yield f"the label of token {other[0]} is another token" + (f", and {len(other) - 1} more" if other[1:] else "")
    padding = sum(label != IGNORED for label, mask in zip(seen.labels, seen.mask, strict=True) if not mask)
    if padding:
        yield f"padding is in the loss: {padding} tokens"


def _counts(seen: SeenRow, plan: RowPlan, chat: ChatTokenizer, vision_tokens: Mapping[int, int]) -> Iterator[str]:
    shown = seen.shown
    if len(shown) != plan.tokens:
        yield f"the row has {len(shown)} tokens, {plan.tokens} were planned"
    labels = sum(label != IGNORED for _, label in shown)
    if labels != plan.labels:
        yield f"{labels} tokens are in the loss, {plan.labels} were planned"
    places = sum(index == chat.image for index, _ in shown)
    features = sum(vision_tokens[tile.pixels.shape[-1]] for tile in seen.tiles)
    if places != features:
        yield f"{places} image tokens stand in the text, its tiles have {features}"


def _names(chat: ChatTokenizer) -> dict[int | None, str]:
    return dict(zip((chat.start, chat.end, chat.prefix, chat.suffix, chat.image), CONTROL_TOKENS, strict=True))
