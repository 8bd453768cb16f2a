"""What the tests of the video formats share: converting one record, and drafts written by hand."""

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Context, Settings
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.video import clips


def candidates(form, record, *, tables=None, answers="both", beside=None):
    context = {"settings": Settings(answers=answers), "tables": tables or {}}
    if beside is not None:
        context["beside"] = beside
    return list(form.convert(record, Context(**context)))


def convert(form, record, *, evaluation=False, **options):
    (draft,) = candidates(form, record, **options)
    if isinstance(draft, RecordError):
        raise draft
    return checked(draft, evaluation=evaluation)


def clip(name, start=None, end=None):
    return clips.clip(name, start=start, end=end)


def asked(medium: MediaReference, question, answer, *, references=None, meta=None, repairs=()):
    """The draft of one question about one video; `references` are the answer if not given."""
    messages = [Message("user", (Part("video", media=0), Part("text", text=question)))]
    if answer is not None:
        messages.append(Message("assistant", (Part("text", text=answer),)))
    accepted = references if references is not None else () if answer is None else (answer,)
    return Draft(tuple(messages), (medium,), tuple(accepted), None, meta or {}, tuple(repairs))
