"""The records of Anthropic, Bedrock and Gemini against canonical ones written by hand."""

from typing import ClassVar

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building.fields import json_text
from aria_finetune.data_formats.chat import anthropic, aria, bedrock, gemini, messages, xtuner
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

FORMS = (anthropic.FORMAT, bedrock.FORMAT, gemini.FORMAT)
DATA = "iVBORw0KGgo="


def text(content):
    return Part("text", content)


def convert(form, record):
    (draft,) = form.convert(record)
    return checked(draft)


def reason(form, record):
    with pytest.raises(RecordError) as caught:
        convert(form, record)
    return caught.value.reason


class TestAnthropic:
    FORM = anthropic.FORMAT
    TELL: ClassVar = {"role": "assistant", "content": "A cat."}

    def record(self, *parts, **rest):
        return {"messages": [{"role": "user", "content": list(parts)}, self.TELL], **rest}

    @staticmethod
    def source(kind="base64", **more):
        return {"type": "image", "source": {"type": kind, **more}}

    def test_a_record_of_every_part(self):
        record = self.record(
            {"type": "text", "text": "Is this "},
            self.source(media_type="image/png", data=DATA),
            {"type": "text", "text": "a cat?", "cache_control": {"type": "ephemeral"}},
            system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", "cache_control": {}}],
            tools=[{"name": "f", "input_schema": {}}],
            model="m",
        )
        assert convert(self.FORM, record) == Draft(
            (
                Message("system", (text("Be brief.\nBe kind."),)),
                Message("user", (text("Is this "), Part("image", media=0), text("a cat?"))),
                Message("assistant", (text("A cat."),)),
            ),
            (MediaReference("image", f"data:image/png;base64,{DATA}"),),
            tools=json_text([{"name": "f", "input_schema": {}}]),
            meta={
                "model": "m",
                "system": {"1": {"cache_control": {}}},
                "parts": {"0.2": {"cache_control": {"type": "ephemeral"}}},
            },
        )

    @pytest.mark.parametrize(
        ("part", "medium"),
        [
            (
                {"type": "image", "source": {"type": "url", "url": "https://h/a"}},
                MediaReference("image", "https://h/a"),
            ),
            (
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": DATA}},
                MediaReference("document", f"data:application/pdf;base64,{DATA}"),
            ),
            (
                {"type": "document", "title": "t", "source": {"type": "url", "url": "https://h/a"}},
                MediaReference("document", "https://h/a"),
            ),
            (
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b"\x89"}},
                MediaReference("image", "messages[0].content[0].source", content=b"\x89"),
            ),
        ],
    )
    def test_files(self, part, medium):
        draft = convert(self.FORM, self.record(part))
        assert draft.media == (medium,)
        assert draft.messages[0].content == (Part(medium.kind, media=0),)

    def test_a_document_may_be_text(self):
        part = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "It was night."}}
        assert convert(self.FORM, self.record(part)).messages[0].content == (text("It was night."),)

    def test_tools(self):
        image = self.source(media_type="image/png", data=DATA)
        record = {
            "messages": [
                {"role": "user", "content": "Weather?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                        {"type": "text", "text": "Wait."},
                        {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "ü"}},
                        {"type": "tool_use", "id": "2", "name": "g", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": "Rain.", "is_error": False},
                        {"type": "tool_result", "tool_use_id": "2", "content": [image, {"type": "text", "text": "7"}]},
                        {"type": "text", "text": "So?"},
                    ],
                },
                self.TELL,
            ]
        }
        draft = convert(self.FORM, record)
        calls = [{"id": "1", "name": "f", "input": {"x": "ü"}}, {"id": "2", "name": "g", "input": {}}]
        assert [(message.role, message.content) for message in draft.messages[1:4]] == [
            ("assistant", (text("\n".join(["Wait.", *map(json_text, calls)])),)),
            ("tool", (text("Rain.\n"), Part("image", media=0), text("7"))),
            ("user", (text("So?"),)),
        ]
        assert draft.meta == {
            "parts": {
                "1.0": {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                "2.0": {"tool_use_id": "1", "is_error": False},
                "2.1": {"tool_use_id": "2"},
            }
        }

    def test_a_call_alone_begins_no_new_line(self):
        call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
        record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [call]}]}
        assert convert(self.FORM, record).messages[1].content == (
            text(json_text({"id": "1", "name": "f", "input": {}})),
        )

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "media_remote"),
            ({"type": "image", "source": {"type": "path", "path": "a"}}, "bad_schema"),
            ({"type": "image", "source": "a.png"}, "bad_schema"),
            ({"type": "image"}, "bad_schema"),
            ({"type": "image", "source": {"type": "base64", "data": DATA}}, "bad_schema"),
            ({"type": "image", "source": {"type": "base64", "media_type": "image/png"}}, "bad_schema"),
            ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": 3}}, "bad_schema"),
            ({"type": "image", "source": {"type": "url", "url": ""}}, "bad_schema"),
            (
                {"type": "document", "source": {"type": "base64", "media_type": "audio/wav", "data": DATA}},
                "unsupported_modality",
            ),
            ({"type": "audio"}, "unsupported_modality"),
            ({"type": {"a": 1}}, "unsupported_modality"),
            ({"text": "a"}, "bad_schema"),
            ({"type": "text"}, "bad_schema"),
            ("a", "bad_schema"),
        ],
    )
    def test_bad_parts(self, part, expected):
        assert reason(self.FORM, self.record(part)) == expected

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({"messages": [{"role": "user", "content": "a"}]}, "empty_answer"),
            ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": []}]}, "empty_answer"),
            ({"messages": [{"role": "critic", "content": "a"}]}, "bad_roles"),
            ({"messages": [{"role": {}, "content": "a"}]}, "bad_roles"),
            ({"messages": [{"role": "user"}]}, "bad_schema"),
            ({"messages": [{"role": "user", "content": None}]}, "bad_schema"),
            ({"messages": None}, "bad_schema"),
            ({}, "bad_schema"),
            ({"messages": [], "system": 3}, "bad_schema"),
        ],
    )
    def test_bad_records(self, record, expected):
        assert reason(self.FORM, record) == expected


class TestBedrock:
    FORM = bedrock.FORMAT

    @staticmethod
    def record(*parts, **rest):
        tell = {"role": "assistant", "content": [{"text": "A cat."}]}
        return {"messages": [{"role": "user", "content": list(parts)}, tell], **rest}

    def test_a_record_of_every_part(self):
        s3 = {"s3Location": {"uri": "s3://b/a.png", "bucketOwner": "o"}}
        record = self.record(
            {"image": {"format": "png", "source": s3}},
            {"text": "And "},
            {"video": {"format": "mp4", "source": {"bytes": DATA}}, "text": None},
            {"document": {"format": "pdf", "name": "d", "source": {"s3Location": {"uri": "s3://b/d.pdf"}}}},
            {"cachePoint": {"type": "default"}},
            schemaVersion="bedrock-conversation-2024",
            system=[{"text": "Be brief."}],
            toolConfig={"tools": []},
            id=1,
        )
        assert convert(self.FORM, record) == Draft(
            (
                Message("system", (text("Be brief."),)),
                Message(
                    "user", (Part("image", media=0), text("And "), Part("video", media=1), Part("document", media=2))
                ),
                Message("assistant", (text("A cat."),)),
            ),
            (
                MediaReference("image", "s3://b/a.png"),
                MediaReference("video", f"data:video/mp4;base64,{DATA}"),
                MediaReference("document", "s3://b/d.pdf"),
            ),
            tools=json_text({"tools": []}),
            meta={
                "schemaVersion": "bedrock-conversation-2024",
                "id": 1,
                "parts": {
                    "0.0": {"bucketOwner": "o"},
                    "0.3": {"name": "d"},
                    "0.4": {"cachePoint": {"type": "default"}},
                },
            },
        )

    def test_a_type_beside_the_key_does_no_harm(self):
        draft = convert(self.FORM, self.record({"type": "text", "text": "What?"}))
        assert draft.messages[0].content == (text("What?"),)

    def test_tools(self):
        record = {
            "messages": [
                {"role": "user", "content": [{"text": "Weather?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"reasoningContent": {"reasoningText": {"text": "Hm."}}},
                        {"toolUse": {"toolUseId": "1", "name": "f", "input": {}}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"toolResult": {"toolUseId": "1", "status": "success", "content": [{"json": {"t": 7}}]}},
                        {"text": "So?"},
                    ],
                },
                {"role": "assistant", "content": [{"text": "Rain."}]},
            ]
        }
        draft = convert(self.FORM, record)
        assert [(message.role, message.content) for message in draft.messages] == [
            ("user", (text("Weather?"),)),
            ("assistant", (text(json_text({"toolUseId": "1", "name": "f", "input": {}})),)),
            ("tool", (text(json_text({"t": 7})),)),
            ("user", (text("So?"),)),
            ("assistant", (text("Rain."),)),
        ]
        assert draft.meta["parts"]["2.0"] == {"toolUseId": "1", "status": "success"}

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            ({}, "bad_schema"),
            ({"text": "a", "image": {}}, "bad_schema"),
            ({"image": {"format": "png"}}, "bad_schema"),
            ({"image": {"format": "png", "source": {}}}, "bad_schema"),
            ({"image": {"format": "png", "source": {"s3Location": {}}}}, "bad_schema"),
            ({"image": {"format": "png", "source": {"s3Location": {"uri": ""}}}}, "bad_schema"),
            ({"image": {"source": {"bytes": DATA}}}, "bad_schema"),
            ({"image": "a.png"}, "bad_schema"),
            ({"text": 3}, "bad_schema"),
            ({"document": {"format": "docx", "source": {"bytes": DATA}}}, "unsupported_modality"),
            ({"audio": {"format": "wav", "source": {"bytes": DATA}}}, "unsupported_modality"),
        ],
    )
    def test_bad_parts(self, part, expected):
        assert reason(self.FORM, self.record(part)) == expected


class TestGemini:
    FORM = gemini.FORMAT

    @staticmethod
    def record(*parts, **rest):
        tell = {"role": "model", "parts": [{"text": "A cat."}]}
        return {"contents": [{"role": "user", "parts": list(parts)}, tell], **rest}

    def test_a_record_of_every_part(self):
        record = self.record(
            {"fileData": {"mimeType": "image/jpeg", "fileUri": "gs://b/a.jpg"}},
            {"text": "And "},
            {
                "fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/v.mp4"},
                "videoMetadata": {"startOffset": "1.5s", "endOffset": "9s", "fps": 2},
            },
            {"inlineData": {"mimeType": "application/pdf", "data": DATA}},
            systemInstruction={"role": "system", "parts": [{"text": "Be brief."}]},
            tools=[{"functionDeclarations": []}],
            generationConfig={},
        )
        assert convert(self.FORM, record) == Draft(
            (
                Message("system", (text("Be brief."),)),
                Message(
                    "user", (Part("image", media=0), text("And "), Part("video", media=1), Part("document", media=2))
                ),
                Message("assistant", (text("A cat."),)),
            ),
            (
                MediaReference("image", "gs://b/a.jpg"),
                MediaReference("video", "gs://b/v.mp4", start=1.5, end=9.0),
                MediaReference("document", f"data:application/pdf;base64,{DATA}"),
            ),
            tools=json_text([{"functionDeclarations": []}]),
            meta={"generationConfig": {}, "parts": {"0.2": {"fps": 2}}},
        )

    def test_snake_case_and_a_content_without_a_role(self):
        record = {
            "system_instruction": "Be brief.",
            "contents": [
                {
                    "parts": [
                        {
                            "file_data": {"mime_type": "video/mp4", "file_uri": "gs://b/v"},
                            "video_metadata": {"end_offset": "3s"},
                        }
                    ]
                },
                {"role": "model", "parts": [{"text": "Hm.", "thought": True}, {"text": "A cat.", "thought": False}]},
            ],
        }
        draft = convert(self.FORM, record)
        assert [message.role for message in draft.messages] == ["system", "user", "assistant"]
        assert draft.media == (MediaReference("video", "gs://b/v", end=3.0),)
        assert draft.messages[2].content == (text("A cat."),)
        assert draft.meta == {"parts": {"1.0": {"text": "Hm.", "thought": True}}}

    @pytest.mark.parametrize("role", ["user", "function"])
    def test_tools(self, role):
        record = {
            "contents": [
                {"role": "user", "parts": [{"text": "Weather?"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"}]},
                {"role": role, "parts": [{"functionResponse": {"name": "f", "response": {"t": 7}}}]},
                {"role": "model", "parts": [{"text": "Seven."}]},
            ]
        }
        draft = convert(self.FORM, record)
        assert [(message.role, message.content) for message in draft.messages[1:3]] == [
            ("assistant", (text(json_text({"name": "f", "args": {}})),)),
            ("tool", (text(json_text({"name": "f", "response": {"t": 7}})),)),
        ]
        assert draft.meta == {"parts": {"1.0": {"thoughtSignature": "s"}}}

    def test_answers_of_tools_are_lines(self):
        answers = [{"name": "f", "response": {}}, {"name": "g", "response": {}}]
        record = self.record({"text": "a"})
        record["contents"].insert(1, {"role": "user", "parts": [{"functionResponse": answer} for answer in answers]})
        assert convert(self.FORM, record).messages[1] == Message("tool", (text("\n".join(map(json_text, answers))),))

    def test_a_clip_of_a_picture_means_nothing(self):
        part = {"fileData": {"mimeType": "image/png", "fileUri": "gs://b/a"}, "videoMetadata": {"startOffset": "1s"}}
        draft = convert(self.FORM, self.record(part))
        assert draft.media == (MediaReference("image", "gs://b/a"),)
        assert draft.meta == {"parts": {"0.0": {"startOffset": "1s"}}}

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            ({}, "bad_schema"),
            ({"text": "a", "inlineData": {}}, "bad_schema"),
            ({"text": 3}, "bad_schema"),
            ({"fileData": {"fileUri": "gs://b/a"}}, "bad_schema"),
            ({"fileData": {"mimeType": 3, "fileUri": "gs://b/a"}}, "bad_schema"),
            ({"fileData": {"mimeType": "image/png"}}, "bad_schema"),
            ({"fileData": "gs://b/a"}, "bad_schema"),
            (
                {
                    "fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/a"},
                    "videoMetadata": {"startOffset": "1:30"},
                },
                "bad_schema",
            ),
            (
                {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/a"}, "videoMetadata": {"endOffset": 3}},
                "bad_schema",
            ),
            ({"fileData": {"mimeType": "audio/wav", "fileUri": "gs://b/a"}}, "unsupported_modality"),
            ({"fileData": {"mimeType": "text/csv", "fileUri": "gs://b/a"}}, "unsupported_modality"),
            ({"executableCode": {"code": "1"}}, "unsupported_modality"),
        ],
    )
    def test_bad_parts(self, part, expected):
        assert reason(self.FORM, self.record(part)) == expected

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({"contents": [{"role": "judge", "parts": [{"text": "a"}]}]}, "bad_roles"),
            ({"contents": [{"role": "model", "parts": [{"text": "a"}]}]}, "bad_roles"),
            ({"contents": [{"role": "user", "parts": [{"text": "a"}]}]}, "empty_answer"),
            ({"contents": [], "systemInstruction": {}, "system_instruction": {}}, "bad_schema"),
            ({"contents": [], "systemInstruction": 3}, "bad_schema"),
            ({"contents": [{"role": "user"}]}, "bad_schema"),
        ],
    )
    def test_bad_records(self, record, expected):
        assert reason(self.FORM, record) == expected


TEXT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
UNTYPED = {"messages": [{"role": "user", "content": [{"text": "a"}]}]}


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([TEXT, TestAnthropic().record(TestAnthropic.source(media_type="image/png", data=DATA))], "anthropic"),
        ([{"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "a"}]}]}], "anthropic"),
        ([TEXT | {"system": [{"type": "text", "text": "a"}]}], "anthropic"),
        ([TEXT | {"schemaVersion": "bedrock-conversation-2024"}], "bedrock"),
        ([UNTYPED], "bedrock"),
        ([TEXT], "messages"),
        ([TEXT | {"system": "a"}], "messages"),
        ([{"contents": [{"parts": []}]}], "gemini"),
        ([{"contents": None}], "gemini"),
    ],
)
def test_detection(records, name):
    assert registry.detect(records, (*FORMS, aria.FORMAT, messages.FORMAT, xtuner.FORMAT)).name == name


@pytest.mark.parametrize("record", [{"contents": ["a", {"text": "b"}]}, {"messages": []}, [], None, "a"])
def test_what_is_not_of_gemini(record):
    assert not gemini.FORMAT.matches(record)


@pytest.mark.parametrize("form", [anthropic.FORMAT, bedrock.FORMAT])
def test_text_means_the_same_as_in_messages(form):
    assert list(form.convert(TEXT)) == list(messages.FORMAT.convert(TEXT))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_example_is_of_its_format_and_sound(form):
    assert registry.detect([form.example], (*FORMS, messages.FORMAT)) is form
    (draft,) = form.convert(form.example)
    assert [message.role for message in checked(draft).messages] == ["system", "user", "assistant"]
    assert len(draft.media) == 1


WORDS = (
    "base64",
    "url",
    "tool_use",
    "tool_result",
    "toolUse",
    "toolResult",
    "functionCall",
    "application/pdf",
    "model",
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(record=mutations(*(form.example for form in FORMS), words=WORDS))
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_only_record_errors_are_raised(form, record):
    convert_or_reject(form, record)
