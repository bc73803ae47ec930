"""Chat templates of our own that cover what published ones do, by what is particular about each."""

from __future__ import annotations

_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_WITHOUT_THOUGHT = "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
_TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)

# The prompt of a pair is what these render at generation time, and prompt and answer are the finished turn.
PLAIN: dict[str, str] = {
    "chatml": _TURNS + _HEADER,
    "default system message": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
        + _TURNS
        + _HEADER
    ),
    "BOS first": "{{ bos_token }}" + _TURNS + _HEADER,
    "BOS before every question": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'system' %}{{ m.content }}\n{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "blank line before the BOS": "{# published #}\n\n{{ bos_token }}" + _TURNS + _HEADER,
    "no generation prompt": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "no end marker": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
    "end of turn is not the end of text": (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    ),
    "two end markers": (
        "{% for m in messages %}<|turn|>{{ m.role }}<|msg|>{{ m.content }}<|done|><|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant<|msg|>{% endif %}"
    ),
    "trims": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}" + _HEADER
    ),
    "trims and ends with a space": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content | trim }} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "EOS only after the last answer": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% elif messages[-1].role == 'assistant' %}{{ eos_token }}"
        "{% endif %}"
    ),
    "roles renamed": (
        "{% set names = {'assistant': 'model', 'user': 'user', 'system': 'user'} %}{% for m in messages %}"
        "<|turn|>{{ names[m.role] }}\n{{ m.content | trim }}<|eot|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>model\n{% endif %}"
    ),
    "generation tags": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}" + _HEADER
    ),
    "channels": (
        "{% for m in messages %}<|turn|>{{ m.role }}{% if m.role == 'assistant' %}<|chan|>final{% endif %}<|msg|>"
        "{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|done|>{% else %}<|eot|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant{% endif %}"
    ),
    "date": "<|im_start|>system\nToday: {{ strftime_now('%Y-%m-%d') }}<|im_end|>\n" + _TURNS + _HEADER,
    "typed parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
        "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + _HEADER
    ),
    "texts or typed parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}" + _HEADER
    ),
    "tools section": _TOOLS + _CALLS + _HEADER,
    "macro": (
        "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}" + _HEADER
    ),
    "namespace for the system message": (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'user' %}[INST] {{ ns.system + m.content }} [/INST]"
        "{% set ns.system = '' %}{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "index of the last question": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}"
        "{% if loop.index0 == ns.last %} (now){% endif %}{{ '\n' + m.content }}<|im_end|>\n{% endfor %}" + _HEADER
    ),
    "empty thought if thinking is off": (
        _TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not "
        "enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    "empty thought in a finished turn": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
        "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + _HEADER
    ),
    "thought of the last turn": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content and "
        "loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        + _HEADER
    ),
    "thought with tags of its own": (
        "{% for m in messages %}<|turn|>{{ m.role }}{% if m.reasoning_content %}<|chan|>thought<|msg|>"
        "{{ m.reasoning_content }}<|done|>{% endif %}<|msg|>{{ m.content }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant{% endif %}"
    ),
}

# The generation prompt opens a thought, which a finished turn does not have.
OPENS_THOUGHT: dict[str, str] = {
    "opens a thought and strips it": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "<|user|>{{ m.content }}{% else %}<|bot|>" + _WITHOUT_THOUGHT + "{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|bot|><think>\n{% endif %}"
    ),
    "opens a thought and keeps it": (
        _TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    "opens a thought without a line break": (
        "{% for m in messages %}<|turn|>{{ m.role }}<|msg|>" + _WITHOUT_THOUGHT + "<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant<|msg|><think>{% endif %}"
    ),
    "opens a thought unless thinking is off": (
        _TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not "
        "enable_thinking %}<think></think>{% else %}<think>\n{% endif %}{% endif %}"
    ),
    "opens a thought, strips it and restores reasoning": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content %}"
        "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}" + _WITHOUT_THOUGHT + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
}

# The prompt is rendered differently once an answer follows: with a system message in `MOVES_SYSTEM`.
MOVES_SYSTEM: dict[str, str] = {
    "system message only in the last question": (
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set ms = messages[1:] %}{% else %}"
        "{% set ms = messages %}{% endif %}{{ bos_token }}{% for m in ms %}{% if m.role == 'user' %}[INST]"
        "{% if loop.last and s is defined %}{{ s }}\n\n{% endif %}{{ m.content }}[/INST]{% else %}{{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "system message before the generation prompt": (
        "{% for m in messages %}{% if m.role != 'system' %}<|turn|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{% if messages[0].role == 'system' %}<|turn|>system\n"
        "{{ messages[0].content }}<|eot|>\n{% endif %}<|turn|>assistant\n{% endif %}"
    ),
}
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _TURNS
    + _HEADER
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}<|turn|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
ALWAYS_ADDS_GENERATION_PROMPT = _TURNS + "{{ '<|im_start|>assistant\n' }}"
