"""Chat templates against transformers' apply_chat_template, and against templates that mean harm."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import byte_level

from octavo.engine.chat_template import ChatTemplate
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import RequestError, UnsupportedError, UnsupportedModelError

Folder = Callable[[str], Path]

# Templates in the manner of well-known models, written for these tests.
CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou tell tales.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set opening = '' %}
{%- endif %}
<|start|>system<|end|>

Knowledge: {{ cutoff if cutoff is defined else 'unknown' }}
{{ opening }}<|eot|>
{% for message in messages %}
    {%- if not (message.role in ['user', 'assistant', 'tool']) %}
        {{- raise_exception('unknown role ' ~ message.role) }}
    {%- endif %}
    {{- '<|start|>' ~ message['role'] ~ '<|end|>\\n\\n' ~ message['content'] | trim ~ '<|eot|>' }}
{%- endfor %}
{%- if tools %}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{{ bos_token }}
{%- set ns = namespace(turn=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if (message.role == 'user') != (ns.turn % 2 == 0) %}
        {{- raise_exception('roles must alternate user and assistant') }}
    {%- endif %}
    {%- set ns.turn = ns.turn + 1 %}
    {%- if message.role == 'user' %}
        {{- ' [INST] ' + message.content + ' [/INST]' }}
    {%- else %}
        {%- generation %}
        {%- set said = message.content %}
        {{- ' ' + said + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{% macro sign(name, times=2) %}{% for i in range(times) %}-{{ name }}{% endfor %}{% endmacro %}
{{ sign('x') }} {{ messages | tojson }} {{ messages | map(attribute='role') | join(',') }}
"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set opening = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set opening = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('turns of user and assistant must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (opening if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {{ item['text'] | trim if item['type'] == 'text' }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception('neither text nor parts') }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Tell me a tale."}],
    [{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": "Grüß Gott <b>&'\"猫🙂"}],
    [
        {"role": "user", "content": " hi\n"},
        {"role": "assistant", "content": "Once...", "note": ["x", 1.5, None, {"a": True}]},
        {"role": "user", "content": ""},
    ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("chat"), bos=True)


def with_template(folder: Path, template: Any) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


@pytest.mark.parametrize("chat", CONVERSATIONS, ids=["one", "system", "turns"])
@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("prompted", [True, False])
def test_templates_render_as_in_transformers(
    folder: Path, name: str, chat: list[dict[str, Any]], prompted: bool
) -> None:
    from transformers import AutoTokenizer

    with_template(folder, TEMPLATES[name])
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))
    tools = [{"type": "function", "function": {"name": "fold", "parameters": {"type": "object"}}}]
    for extra in ({}, {"cutoff": "1812", "tools": tools}):
        text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompted, **extra)
        assert ours.render_chat(chat, add_generation_prompt=prompted, **extra) == text
        ids = theirs.apply_chat_template(chat, tokenize=True, add_generation_prompt=prompted, **extra)["input_ids"]
        assert ours.apply_chat_template(chat, add_generation_prompt=prompted, **extra) == ids


def test_named_templates_and_template_files(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = ChatTemplate.load(tmp_path, {"chat_template": named}, {})
    assert template is not None
    user = [{"role": "user", "content": "x"}]
    assert template.render(user) == "plain"
    assert template.render(user, tools=[]) == "tools"
    (tmp_path / "chat_template.jinja").write_text("from the file {{ bos_token }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("from the folder")
    template = ChatTemplate.load(tmp_path, {"chat_template": named}, {"bos_token": "<s>"})
    assert template is not None
    assert template.render(user) == "from the file <s>"
    assert template.render(user, tools=[{}]) == "from the folder"


def test_a_model_without_a_template_names_the_file(tokenizer_folder: Folder) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("qwen"))
    with pytest.raises(UnsupportedError, match=r"tokenizer_config\.json has no chat_template"):
        tokenizer.render_chat([{"role": "user", "content": "hi"}])


def test_a_template_of_the_wrong_type_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer_config\.json: chat_template must be"):
        ChatTemplate.load(tmp_path, {"chat_template": 5}, {})
    only = ChatTemplate.load(tmp_path, {"chat_template": [{"name": "rag", "template": "x"}]}, {})
    assert only is not None
    with pytest.raises(UnsupportedError, match="no template named 'default', only rag"):
        only.render([{"role": "user", "content": "x"}])


def test_a_template_with_a_syntax_error_names_the_line() -> None:
    with pytest.raises(UnsupportedModelError, match=r"here\.json.*line 2"):
        ChatTemplate("a\n{% if %}", origin="here.json").render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "must be a list"),
        ({"role": "user", "content": "x"}, "must be a list"),
        ([], "messages is empty"),
        (["hi"], r"messages\[0\] must be a mapping"),
        ([{"content": "x"}], r"messages\[0\]\.role must be a string"),
        ([{"role": 1, "content": "x"}], r"messages\[0\]\.role must be a string"),
        ([{"role": "user"}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content must be a string"),
        ([{"role": "user", "content": [3]}], r"messages\[0\]\.content\[0\] must be a string or"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string"),
        ([{"role": "user", "content": "x", "extra": object()}], r"messages\[0\]\.extra must be plain data"),
    ],
)
def test_malformed_messages_are_named(messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ChatTemplate("x").render(messages)


def test_text_parts_are_joined_and_images_refused() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    parts: list[Any] = [{"type": "text", "text": "one"}, "two"]
    assert template.render([{"role": "user", "content": parts}]) == "one\ntwo"
    with pytest.raises(UnsupportedError, match="image_url"):
        template.render([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])


def test_calls_without_content_are_let_through() -> None:
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert ChatTemplate("{{ messages[0].tool_calls[0].name }}").render(call) == "f"


def test_variables_cannot_replace_the_conversation() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ mood }}{{ bos_token }}", {"bos_token": "<s>"})
    user = [{"role": "user", "content": "x"}]
    assert template.render(user, mood="!") == "x!<s>"
    for name in ("documents",):
        with pytest.raises(RequestError, match=f"'{name}' cannot be given"):
            template.render(user, **{name: []})
    with pytest.raises(RequestError, match="mood must be plain data"):
        template.render(user, mood=print)


def test_the_date_is_to_be_had() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([{"role": "user", "content": "x"}]) == time.strftime("%Y")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'changed'}) }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].a.b }}",
        "{{ 1 / 0 }}",
        "{{ 'x' + 1 }}",
        "{{ range(10**9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_refusals_and_escapes_become_request_errors(template: str) -> None:
    user = [{"role": "user", "content": "x"}]
    with pytest.raises(RequestError, match="chat template"):
        ChatTemplate(template).render(user)
    assert user == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}" + "x" * 10_000 + "{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(80) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(80) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**9 * ['a'] }}",
        "{{ 9**999999999 }}",
        "{{ '%999999999d' % 1 }}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.engine.chat_template.MAX_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(UnsupportedModelError, match="was stopped"):
        ChatTemplate(template).render([{"role": "user", "content": "x"}])
    assert time.monotonic() - start < 3.0
