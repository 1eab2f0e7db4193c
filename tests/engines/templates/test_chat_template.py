import re
from typing import Any, ClassVar

import pytest

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.templates.chat_template import TAGS, ChatTemplate, read_template
from penstock.errors import ConfigError, RequestError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


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


@pytest.mark.parametrize("name", ["messages", "tools", "self"])
def test_names_that_are_taken_are_refused(name):
    with pytest.raises(RequestError) as refused:
        ChatTemplate(CHATML).render(HELLO, variables={name: []})
    assert refused.value.param == f"chat_template_kwargs.{name}"
    with pytest.raises(ConfigError) as told:  # before any request comes
        OpenVINOEngine("demo", engine_kwargs={"default_chat_template_kwargs": {name: []}})
    assert told.value.field == f"engine_kwargs.default_chat_template_kwargs.{name}"


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
    assert caught.value.param in ("messages", "messages[0]")


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
            (
                "{{ tools }}{% for m in messages %}{% for c in m.tool_calls %}"
                "{{ c.function.name.x }}{% endfor %}{% endfor %}"
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
    place = re.search(r"messages\[[^:]*", told)
    assert caught.value.param == (place[0] if place else "messages")


def test_no_place_is_named_where_tools_became_text_and_moved_the_messages():
    told = "the chat template cannot use these messages: they have not the form that it expects"
    image = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(RequestError, match=told) as caught:
        ChatTemplate(
            "{% for m in messages %}{{ m.content | trim + m.content }}{% endfor %}"
        ).render(image, tools=[TOOL])
    assert caught.value.param == "messages"


def test_what_is_not_there_is_no_error_where_templates_ask_for_it():
    template = (
        "{% if tools is defined and x is not defined %}{{ x }}{{ messages[0].name or 'nobody' }}{%"
        " endif %}"
    )
    assert ChatTemplate(template).render(HELLO) == "nobody"


CALLED: list[dict[str, Any]] = [
    *HELLO,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "look", "arguments": '{"x": 1}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "done"},
]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TALKS = (  # as SmolLM2's, it adds contents up and knows no tools
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("answer", [{"content": None}, {}, {"content": ""}])
@pytest.mark.parametrize("content", ["m['content'] + '!'", "m.content", "'' ~ m.content"])
def test_a_missing_content_is_an_empty_one_where_the_template_needs_a_text(content, answer):
    template = ChatTemplate(f"{{% for m in messages %}}{{{{ {content} }}}};{{% endfor %}}")
    filled = template.render([*HELLO, {"role": "assistant", **answer}, *HELLO])
    assert filled.replace("!", "") == "hello;;hello;"


def test_a_template_that_knows_null_gets_it():
    template = (
        "{% for m in messages %}{{ 'null' if m.content is none else m.content }};{% endfor %}"
    )
    assert ChatTemplate(template).render([*HELLO, {"role": "assistant"}]) == "hello;null;"


def test_a_template_that_shows_tools_gets_calls_as_they_are():
    template = (
        "{{ tools }}{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments.x }}{% endfor %};{% endfor %}"
    )
    assert ChatTemplate(template).render(CALLED) == "Nonehello;look1;done;"


def test_a_template_without_tools_gets_them_and_their_calls_as_text():
    filled = ChatTemplate(TALKS).render(CALLED, tools=[TOOL])
    system, talk = filled.split("<end>", 1)
    assert system.startswith("<system># Tools")
    assert '<tools>\n{"type": "function", "function": {"name": "look", "par' in system
    assert talk == (
        '<user>hello<end><assistant><tool_call>\n{"name": "look", "arguments": {"x": 1}}\n'
        "</tool_call><end><user><tool_response>\ndone\n</tool_response><end><assistant>"
    )


def test_calls_are_text_without_tools_in_the_request_too():
    filled = ChatTemplate(TALKS).render(CALLED)
    assert filled.startswith("<user>hello<end><assistant><tool_call>")


def test_a_template_without_a_system_role_has_the_tools_in_the_first_users_message():
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TALKS
    )
    filled = ChatTemplate(source).render(CALLED, tools=[TOOL])
    assert filled.startswith("<user># Tools")
    assert "</tool_call>\n\nhello<end>" in filled


def test_the_tools_follow_a_given_system_message():
    system = {"role": "system", "content": "Be brief."}
    filled = ChatTemplate(TALKS).render([system, *HELLO], tools=[TOOL])
    assert filled.startswith("<system>Be brief.\n\n# Tools")
    assert filled.count("<system>") == 1


def test_results_and_what_the_user_says_then_are_one_turn():
    second = {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "too"}]}
    filled = ChatTemplate(TALKS).render([*CALLED, second, {"role": "user", "content": "well?"}])
    assert filled.endswith(
        "<user><tool_response>\ndone\n</tool_response>\n<tool_response>\ntoo\n</tool_response>\n"
        "well?<end><assistant>"
    )


BEGUN: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "content": "The answer "}]


def test_an_answer_continues_the_last_message():
    assert (
        ChatTemplate(TALKS).render(BEGUN, continue_final_message=True)
        == "<user>hello<end><assistant>The answer "
    )


def test_a_template_that_strips_blanks_takes_those_of_the_text_too():
    source = TALKS.replace("m['content']", "m['content'].strip()")
    filled = ChatTemplate(source).render(BEGUN, continue_final_message=True)
    assert filled == "<user>hello<end><assistant>The answer"


def test_a_text_that_stands_before_as_well_is_continued_at_its_end():
    again = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    assert (
        ChatTemplate(TALKS).render(again, continue_final_message=True) == "<user>a<end><assistant>a"
    )


def test_parts_and_an_empty_text_can_be_continued():
    for content in ([{"type": "text", "text": ""}], "", None):
        begun = [*HELLO, {"role": "assistant", "content": content}]
        filled = ChatTemplate(TALKS).render(begun, continue_final_message=True)
        assert filled == "<user>hello<end><assistant>"


@pytest.mark.parametrize(
    "source",
    [
        TALKS.replace("m['content']", "m['content'].split('answer')[0]"),
        TALKS.replace("m['content']", "(m['content'] | upper)"),
        TALKS.replace("m['content']", "m['content'].split('</think>')[-1]"),
    ],
)
def test_a_text_that_the_template_changes_cannot_be_continued(source):
    begun = [*HELLO, {"role": "assistant", "content": "<think>x</think>The answer"}]
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source).render(begun, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_call_cannot_be_continued():
    called = [*HELLO, {**CALLED[1], "content": "so: "}]
    with pytest.raises(RequestError) as caught:
        ChatTemplate("{{ tools or '' }}" + TALKS).render(called, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_prompt_may_end_after_the_last_message():
    assert ChatTemplate(TALKS).render(HELLO, add_generation_prompt=False) == "<user>hello<end>"


def test_a_template_of_ones_own_is_a_file_or_a_text(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages }}", encoding="utf-8")
    assert read_template(str(path)) == "{{ messages }}"
    assert read_template("{% if messages %}Hi{% endif %}") == "{% if messages %}Hi{% endif %}"
    for given, why in (
        (str(tmp_path / "other.jinja"), "no file that can be read"),
        ("{% if %}", r"no Jinja template: .*line 1"),
    ):
        with pytest.raises(ConfigError, match=rf"engine_kwargs.chat_template.*{why}"):
            read_template(given)


def test_variables_of_the_server_give_way_to_those_of_a_request():
    template = ChatTemplate("{{ a }}{{ b }}", None, {"a": 1, "b": 2})
    assert template.render([]) == "12"
    assert template.render([], variables={"b": 3}) == "13"


def test_marks_for_training_are_no_text():
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert ChatTemplate(template).render(HELLO) == "hello"


class TestImages:
    MESSAGES: ClassVar[list[dict[str, Any]]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
    ]

    def shown(self, source):
        template = ChatTemplate(source, images=True)
        text = template.render(self.MESSAGES)
        return text, template.mark_of(text, "image", 1)

    def test_a_template_of_lists_gets_texts_as_lists(self):
        lists = (
            "{% for m in messages %}{% for p in m['content'] %}"
            "{{ '<image>\n' if p['type'] == 'image' else p['text'] }}{% endfor %};{% endfor %}"
        )
        assert self.shown(lists) == ("<image>\nWhat?;A cat.;", "<image>")

    def test_a_template_of_both_gets_texts_as_they_are(self):
        both = (
            "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|a|><|pad|><|b|>"
            "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %};{% endfor %}"
        )
        assert self.shown(both) == ("<|a|><|pad|><|b|>What?;A cat.;", "<|a|><|pad|><|b|>")

    def test_a_template_of_texts_gets_a_tag(self):
        texts = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
        assert self.shown(texts) == (f"{TAGS['image']}\nWhat?;A cat.;", TAGS["image"])

    def test_videos_have_marks_of_their_own(self):
        both = (
            "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'text' %}"
            "{{ p['text'] }}{% else %}<|{{ p['type'] }}_pad|>{% endif %}{% endfor %};{% endfor %}"
        )
        content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "What?"}]
        for source, marks in (
            (both, {"video": "<|video_pad|>", "image": "<|image_pad|>"}),
            ("{% for m in messages %}{{ m['content'] }};{% endfor %}", TAGS),
        ):
            template = ChatTemplate(source, images=True)
            text = template.render([{"role": "user", "content": content}])
            assert "".join(text.split()) == f"{marks['video']}{marks['image']}What?;"
            assert {kind: template.mark_of(text, kind, 1) for kind in marks} == marks
            with pytest.raises(RequestError, match="no video: the texts hold"):
                template.mark_of(text, "video", 0)

    def test_a_template_of_one_mark_for_both_shows_images(self):
        source = (
            "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'text' %}"
            "{{ p['text'] }}{% else %}<image>{% endif %}{% endfor %};{% endfor %}"
        )
        template = ChatTemplate(source, images=True)
        text = template.render([{"role": "user", "content": [{"type": "image"}]}])
        assert template.mark_of(text, "image", 1) == text.rstrip(";") == "<image>"
        assert template.mark_of(text, "video", 0) == ""
        with pytest.raises(RequestError, match="1 video: the model's chat template does not show"):
            template.mark_of(text, "video", 1)

    def test_a_part_that_tells_no_type_is_a_text(self):
        template = ChatTemplate(
            "{% for m in messages %}{{ m['content'] }}{% endfor %}", images=True
        )
        content = [{"type": "image"}, {"text": "What?"}]
        assert template.render([{"role": "user", "content": content}]).endswith("\nWhat?")

    def test_another_number_of_marks_than_images_is_refused(self):
        template = ChatTemplate(None, images=True)
        with pytest.raises(RequestError, match="2 images: the texts hold"):
            template.mark_of(TAGS["image"] * 3, "image", 2)
        with pytest.raises(RequestError, match="1 image: the model's chat template does not show"):
            template.mark_of("What?", "image", 1)


NAMED = {"default": "plain {{ messages[0].content }}", "tool_use": "{{ tools[0].name }}"}


def test_templates_by_name():
    template = ChatTemplate(NAMED)
    assert template.source == NAMED["default"]
    assert template.render(HELLO) == template.render(HELLO, tools=[]) == "plain hello"
    assert template.render(HELLO, tools=[{"name": "f"}]) == "f"
    assert template.chosen([TOOL], "default") == NAMED["default"]
    # Without one for tools, the default gets them as text.
    assert '"look"' in ChatTemplate({"default": CHATML}).render(HELLO, tools=[TOOL])
