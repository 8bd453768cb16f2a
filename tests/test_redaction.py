"""Secrets go, everything else stays: shapes, spellings, false alarms, streams."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aria_finetune.redaction import MASK, RedactingStream, Redactor, redact_values

# Put together here, so that no scanner takes this file for a leak.
HUB_TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
OPENAI = "sk-" + "proj-aB3dE6gH9jK2mN5pQ8sT1vW4yZ7"
GITHUB = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
GITHUB_FINE = "github_pat_" + "11ABCDEFG0aBcDeFgHiJkL_mNoPqRsTuVwXyZ0123456789"
GITLAB = "glpat-" + "aB3dE6gH9jK2mN5pQ8sT"
AWS_ID = "AKIA" + "IOSFODNN7EXAMPLE"
GOOGLE = "AIza" + "SyA1bC2dE3fG4hI5jK6lM7nO8pQ9rS0tU1v"
SLACK = "xoxb-" + "123456789012-abcdefABCDEF"
WANDB = "wandb_v1_" + "aB3dE6gH9jK2mN5pQ8sT1vW4"
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc/def+\n-----END RSA PRIVATE KEY-----"

bare = Redactor({})


@pytest.mark.parametrize(
    "token",
    [HUB_TOKEN, OPENAI, GITHUB, GITHUB_FINE, GITLAB, AWS_ID, GOOGLE, SLACK, WANDB, JWT, PEM],
    ids=lambda token: token[:10],
)
@pytest.mark.parametrize("around", ["{}", "the token {}, it says", "'{}'", "key={}\n", "/cache/{}/x", '{{"a": "{}"}}'])
def test_tokens_of_known_shapes_go_wherever_they_stand(token: str, around: str) -> None:
    assert bare(around.format(token)) == around.format(MASK)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://ann:s3cret@host/x.json", "https://***@host/x.json"),
        ("https://ann:s3c@ret@host:8080/x", "https://***@host:8080/x"),
        ("https://only-a-token@host/x", "https://***@host/x"),
        ("postgresql+asyncpg://ann:s3cret@db/name", "postgresql+asyncpg://***@db/name"),
        ("HTTPS://Ann:S3cret@Host/", "HTTPS://***@Host/"),
        ("see //ann:s3cret@host/x", "see //***@host/x"),
        ("https:\\\\ann:s3cret@host\\x", "https:\\***@host\\x"),
        ("folder//icon@2x.png", "folder//icon@2x.png"),
        # What pathlib makes of a URL.
        ("/home/ann/https:/ann:s3cret@host/x.json", "/home/ann/https:/***@host/x.json"),
        ("https://h/x?token=abc", "https://h/x?token=***"),
        ("https://h/x?a=1&API_KEY=abc&b=2", "https://h/x?a=1&API_KEY=***&b=2"),
        ("https://h/x?access_token=abc#part", "https://h/x?access_token=***#part"),
        ("https://h/#id_token=abc&state=1", "https://h/#id_token=***&state=1"),
        ("https://h/x?a=1&amp;password=abc&amp;b=2", "https://h/x?a=1&amp;password=***&amp;b=2"),
        ("https://h/x?sv=2024&sp=r&sig=a%2Fb%3D", "https://h/x?sv=2024&sp=r&sig=***"),
        ("https://h/x?key=abc&x-api-key=def", "https://h/x?key=***&x-api-key=***"),
        (
            "https://bucket/k?X-Amz-Date=2024&X-Amz-Credential=AK%2F20&X-Amz-Security-Token=IQo&X-Amz-Signature=0af",
            "https://bucket/k?X-Amz-Date=2024&X-Amz-Credential=***&X-Amz-Security-Token=***&X-Amz-Signature=***",
        ),
        (
            "https://storage.googleapis.com/k?GoogleAccessId=me&Expires=9&Signature=ab",
            "https://storage.googleapis.com/k?GoogleAccessId=***&Expires=9&Signature=***",
        ),
        (
            "https://cdn/x?Policy=eyJ&Signature=ab~c&Key-Pair-Id=K1",
            "https://cdn/x?Policy=***&Signature=***&Key-Pair-Id=K1",
        ),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic YW5uOnMzY3JldA=='}", "{'authorization': 'Basic ***'}"),
    ],
)
def test_urls_lose_what_opens_doors_and_keep_the_rest(url: str, expected: str) -> None:
    assert bare(f"see {url} now") == f"see {expected} now"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The password is in the safe, said the secretary; the token ring is a network.",
        "step 10/20  loss 0.1234  1,024 tokens/s  3.2 images/s  13.5 GiB  0:05 left",
        "https://huggingface.co/rhymes-ai/Aria/blob/main/config.json?download=true&page=2",
        "https://registry.example/@scope/package and mail to ann@example.org",
        "git@github.com:rhymes-ai/Aria.git",
        "http://localhost:8080/a@b/c?monkey=1&design=2&tokens=3&keys=4",
        "/data/hf_transfer/hf_quantizer_utils.py:12:data.train",
        "sk-learn-like-names-are-not-tokens-2024",
        hashlib.sha256(b"x").hexdigest(),
        hashlib.md5(b"x", usedforsecurity=False).hexdigest() + "deadbeef",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "recipes/tiny.yaml:12: train.learning_rate: 5e-3",
        "authorization: none",
        "def f(token: str, key=None) -> str: return f'{token}'",
        "<|img|><fim_prefix><|im_start|>user\nWhat?<|im_end|>",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        "üñïçødé \ud800 \x00 text",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert bare(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_SERVICE_PASSWORD", "DB_PASSWD", "PGPASS_PASSPHRASE",
        "CI_CREDENTIALS", "GH_AUTH", "OPENAI_APIKEY", "SSH_PRIVATE_KEY", "my_secret", "AZURE_STORAGE_KEY", "TOKEN",
    ],
)  # fmt: skip
def test_values_of_variables_with_secret_names_go(name: str) -> None:
    assert Redactor({name: "gr8 Value"})("it was gr8 Value, was it") == "it was ***, was it"


@pytest.mark.parametrize(
    "name", ["HOME", "PWD", "TOKENIZERS_PARALLELISM", "KEYBOARD", "AUTHOR", "SECRETARY", "PATH", "PYTHONPATH", "KEYS"]
)
def test_values_of_other_variables_stay(name: str) -> None:
    assert Redactor({name: "gr8-value"})("gr8-value") == "gr8-value"


def test_short_values_and_places_are_no_secrets(tmp_path: object) -> None:
    redactor = Redactor({"USE_TOKEN": "true", "HF_TOKEN_PATH": str(tmp_path), "AUTH": "1234567", "KEY_SECRET": ""})
    text = f"true to form, 1234567 files in {tmp_path}"
    assert redactor(text) == text


@pytest.mark.parametrize("secret", ['pa"ss\\wörd/+=', "two words 'quoted'", "tab\tand more", "wJalr/K7MDENG+bPxRfi=="])
@pytest.mark.parametrize("spell", [str, json.dumps, repr, quote, lambda text: quote(text, safe="")])
def test_a_secret_goes_in_every_spelling(secret: str, spell: object) -> None:
    redacted = Redactor({"MY_PASSWORD": secret})(f"x {spell(secret)} y")  # type: ignore[operator]
    assert redacted.replace("'", "").replace('"', "") == "x *** y"


def test_of_two_secrets_with_one_start_nothing_shows() -> None:
    redactor = Redactor({"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefgh-ijkl"})
    assert redactor("abcdefgh-ijkl abcdefgh") == "*** ***"


def test_every_line_of_a_secret_of_several_goes() -> None:
    redactor = Redactor({"DEPLOY_PRIVATE_KEY": "first-line-of-it\nsecond-line-of-it\n"})
    assert redactor("| second-line-of-it\n| first-line-of-it") == "| ***\n| ***"


@given(st.text(), st.text(alphabet=st.characters(codec="utf-8"), min_size=8), st.text())
def test_a_planted_value_never_survives_and_twice_is_once(before: str, secret: str, after: str) -> None:
    redactor = Redactor({"A_SECRET": secret})
    redacted = redactor(before + secret + after)
    assert redactor(redacted) == redacted
    lines = [line.strip() for line in secret.splitlines() if len(line.strip()) >= 8]
    assert not any(line in redacted for line in lines if not set(line) <= set(MASK))


def test_values_are_redacted_and_keys_numbers_and_the_original_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {HUB_TOKEN: [f"x {HUB_TOKEN}", 1, 2.5, None, True], "inner": {"url": ("https://a:b@c/d",)}}
    kept = json.dumps(value)
    assert redact_values(value) == {HUB_TOKEN: ["x ***", 1, 2.5, None, True], "inner": {"url": ["https://***@c/d"]}}
    assert json.dumps(value) == kept


def test_a_stream_redacts_text_and_is_otherwise_the_stream_below() -> None:
    below = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    stream = RedactingStream(below)
    assert stream.write(f"a {HUB_TOKEN}\n") == len(f"a {HUB_TOKEN}\n")
    stream.writelines(["b https://u:p@h/", "\n"])
    print("c", file=stream)
    assert below.buffer.getvalue() == b"a ***\nb https://***@h/\nc\n"  # type: ignore[attr-defined]
    assert (stream.encoding, stream.isatty()) == ("latin-1", False)
    assert not hasattr(stream, "buffer")
    with pytest.raises(TypeError):
        stream.write(b"bytes")  # type: ignore[arg-type]


def test_the_environment_reaches_everything_a_process_prints() -> None:
    code = (
        "import logging, sys, threading, warnings; from aria_finetune.redaction import redact_streams\n"
        "redact_streams(); inner = sys.stdout; redact_streams(); assert sys.stdout is inner\n"
        "import os; secret = os.environ['A_PASSWORD']\n"
        "print('print', secret); logging.error('log %s', secret); warnings.warn('warning ' + secret)\n"
        "thread = threading.Thread(target=lambda: int('thread ' + secret)); thread.start(); thread.join()\n"
        "raise SystemError('exception ' + secret)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "A_PASSWORD": "correct horse battery"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    printed = done.stdout + done.stderr
    assert "correct horse" not in printed
    assert done.stdout == "print ***\n"
    for kind in ("log ***", "warning ***", "'thread ***'", "SystemError: exception ***"):
        assert kind in done.stderr, done.stderr


def test_a_long_line_takes_no_time() -> None:
    """Patterns that go back and forth would take minutes on such lines."""
    redactor = Redactor({f"TOKEN_{number}": f"value-{number:08}" for number in range(20)})
    lines = [
        "?" + "a-" * 500_000,
        "a:" * 50_000,
        "https://" + "a" * 100_000,
        "&key" * 30_000,
        "eyJ" * 30_000,
        "sk-" * 30_000,
    ]
    began = time.perf_counter()
    for line in lines:
        redactor(line)
    assert time.perf_counter() - began < 5
