import pytest

from penstock.engines.text.chat_template import ChatTemplate
from penstock.errors import RequestError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def test_renders_with_the_generation_prompt():
    assert ChatTemplate(CHATML).render(HELLO) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_without_a_template_contents_are_lines():
    assert ChatTemplate(None).render([*HELLO, {"role": "user", "content": "you"}]) == "hello\nyou\n"


def test_text_parts_become_one_text():
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert ChatTemplate(CHATML).render([{"role": "user", "content": parts}]) == ChatTemplate(CHATML).render(HELLO)


def test_special_tokens_and_variables_are_names():
    template = ChatTemplate("{{ bos_token }}{{ style }}{{ tools | tojson }}", {"bos_token": "<s>"})
    assert template.render(HELLO, tools=[{"a": "<b>"}], variables={"style": "x"}) == '<s>x[{"a": "<b>"}]'


def test_an_override_replaces_the_models_template():
    assert ChatTemplate(CHATML).render(HELLO, override="{{ messages[0].content }}!") == "hello!"


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system role') }}", "{% for %}", "{{ messages[0].content + 1 }}", "{{ undefined.x }}"],
)
def test_what_the_template_rejects_is_the_callers_error(template):
    with pytest.raises(RequestError) as caught:
        ChatTemplate(template).render(HELLO)
    assert caught.value.param == "messages"


def test_templates_run_in_a_sandbox():
    with pytest.raises(RequestError):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(HELLO)
