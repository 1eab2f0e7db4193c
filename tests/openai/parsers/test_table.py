import pytest

from penstock.errors import ConfigError
from penstock.openai.parsers.table import CALLS, HARMONY, THINKING, check_names, forms_of


@pytest.mark.parametrize(
    ("template", "calls", "thinking"),
    [
        ("{{ messages }}", "hermes", None),
        ("<tools></tools> <tool_call>\n{}\n</tool_call>", "hermes", None),
        ("<tool_call> content.split('</think>')", "hermes", "qwen3"),
        ("<tool_call>\n<function=a>\n<parameter=b>", "qwen3_coder", None),
        ("<tool_call>{name}\n<arg_key>k</arg_key> <think></think>", "glm45", "glm45"),
        ("<｜tool▁calls▁begin｜> <｜Assistant｜><think>\\n", "deepseek_v3", "deepseek_v3"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS] [THINK]", "mistral", "mistral"),
        ('{"name": function name, "parameters": dictionary of argument name', "llama3_json", None),
        ("<|start_header_id|> <|python_tag|>", "llama3_json", None),
        ("[func_name1(params_name1=params_value1)]", "pythonic", None),
        ("<|tool|> <|/tool|>", "phi4_mini_json", None),
        ("<|tool_call|> 'Here is my thought process:'", "granite", "granite"),
        ("<start_function_call>call:", "functiongemma", None),
        ("<|channel>thought <|tool_call>call:", "gemma4", "gemma4"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "openai", "openai_gptoss"),
    ],
)
def test_a_template_shows_its_forms_by_their_marks(template, calls, thinking):
    forms = forms_of(template)
    assert forms.calls == CALLS[calls]
    assert forms.thinking == (THINKING[thinking] if thinking else None)


def test_names_go_before_marks():
    forms = forms_of("<tool_call> </think>", "mistral", "identity")
    assert (forms.calls, forms.thinking) == (CALLS["mistral"], None)
    assert forms_of("", None, "gpt-oss").calls is HARMONY
    assert forms_of("", "gpt-oss").thinking is THINKING["openai_gptoss"]
    assert forms_of("", "qwen25", "deepseek-r1").thinking is THINKING["deepseek_r1"]


def test_unknown_names_are_refused_with_the_nearest():
    check_names(None, None)
    check_names("llama3", "qwen3-thinking")
    with pytest.raises(ConfigError, match=r"engine_kwargs.tool_call_parser.*mean 'qwen3_coder'"):
        check_names("qwen3_code", None)
    with pytest.raises(ConfigError, match=r"engine_kwargs.reasoning_parser.*mean 'deepseek_r1'"):
        check_names(None, "deepseek_r2")


@pytest.mark.parametrize(
    ("name", "prompt", "begun"),
    [
        ("qwen3", "<|im_start|>assistant\n", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("deepseek_r1", "<｜Assistant｜>", True),
        ("deepseek_r1", "<｜Assistant｜></think>", False),
        ("gemma4", "<|turn>model\n<|channel>thought\n", True),
    ],
)
def test_the_prompt_may_have_begun_the_thoughts(name, prompt, begun):
    thinking = THINKING[name]
    assert thinking is not None
    assert thinking.begun(prompt) is begun
