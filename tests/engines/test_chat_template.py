import pytest

from penstock.engines.chat_template import ChatTemplate
from penstock.errors import RequestError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def test_renders_with_the_generation_prompt():
    assert (
        ChatTemplate(CHATML).render(HELLO)
        == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_template_contents_are_lines():
    assert ChatTemplate(None).render([*HELLO, {"role": "user", "content": "you"}]) == "hello\nyou\n"


def test_text_parts_become_one_text():
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert ChatTemplate(CHATML).render([{"role": "user", "content": parts}]) == ChatTemplate(
        CHATML
    ).render(HELLO)


def test_special_tokens_and_variables_are_names():
    template = ChatTemplate("{{ bos_token }}{{ style }}{{ tools | tojson }}", {"bos_token": "<s>"})
    assert (
        template.render(HELLO, tools=[{"a": "<b>"}], variables={"style": "x"})
        == '<s>x[{"a": "<b>"}]'
    )


def test_an_override_replaces_the_models_template():
    assert ChatTemplate(CHATML).render(HELLO, override="{{ messages[0].content }}!") == "hello!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}",
        "{% for %}",
        "{{ messages[0].content + 1 }}",
        "{{ undefined.x }}",
    ],
)
def test_what_the_template_rejects_is_the_callers_error(template):
    with pytest.raises(RequestError) as caught:
        ChatTemplate(template).render(HELLO)
    assert caught.value.param == "messages"


def test_templates_run_in_a_sandbox():
    with pytest.raises(RequestError):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(HELLO)


@pytest.mark.parametrize(
    ("template", "messages", "told"),
    [
        (
            "{{ raise_exception('no system role') }}",
            HELLO,
            "the chat template rejected the messages: no system role",
        ),
        ("{% for %}", HELLO, "line 1 of the chat template is no valid Jinja"),
        (
            "{{ undefined.x }}",
            HELLO,
            "the chat template cannot be filled: it needs 'undefined', which is not given",
        ),
        (
            "{% for m in messages %}{{ m.content + '!' }}{% endfor %}",
            [*HELLO, {"role": "assistant", "content": None}],
            "the chat template cannot use messages[1]: its content is null",
        ),
        (
            "{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}",
            [*HELLO, {"role": "assistant", "tool_calls": []}],
            "the chat template cannot use messages[1]: it has no 'content'",
        ),
        (
            (
                "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name.x }}{% endfor"
                " %}{% endfor %}"
            ),
            [
                *HELLO,
                {"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": "{}"}}]},
            ],
            "the chat template cannot use messages[1].tool_calls[0].function: it has no 'name'",
        ),
        (
            "{% for m in messages %}{{ m.content | trim + m.content }}{% endfor %}",
            [{"role": "user", "content": [{"type": "image"}]}],
            "the chat template cannot use messages[0]: its content is a list",
        ),
        ("{{ messages.__class__.x }}", HELLO, "the chat template does what no template may"),
        (
            "{{ 1 / 0 }}",
            HELLO,
            (
                "the chat template cannot use messages[0]: it has not the form that the template"
                " expects"
            ),
        ),
    ],
)
def test_what_a_template_has_no_use_for_is_named(template, messages, told):
    with pytest.raises(RequestError) as caught:
        ChatTemplate(template).render(messages)
    assert str(caught.value) == told


def test_what_is_not_there_is_no_error_where_templates_ask_for_it():
    template = (
        "{% if tools is defined and x is not defined %}{{ x }}{{ messages[0].name or 'nobody' }}{%"
        " endif %}"
    )
    assert ChatTemplate(template).render(HELLO) == "nobody"
