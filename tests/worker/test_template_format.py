"""Pairs in the format `tokenizer`, compared with transformers and TRL for every template of chat_templates.py."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from merlina.data.conversation import Message, Pair, UnusableRowError, assistant
from merlina.data.pairs import to_pair
from merlina.data.rendering.template_arguments import NOT_FROM_ROWS
from merlina.schemas.datasets.config import DatasetFormat
from merlina.worker.encoding import EncodedPair, PairEncoder
from tests.tiny import build_tiny_tokenizer
from tests.worker.chat_templates import (
    ALWAYS_ADDS_GENERATION_PROMPT,
    DROPS_SYSTEM,
    MOVES_SYSTEM,
    OPENS_THOUGHT,
    PLAIN,
    REFUSES_SYSTEM,
)

pytestmark = pytest.mark.slow

ALL = PLAIN | OPENS_THOUGHT | MOVES_SYSTEM
SYSTEM, QUESTION = Message("system", "Be brief."), Message("user", "Name a river.")
PROMPTS = {
    "question": (QUESTION,),
    "system": (SYSTEM, QUESTION),
    "turns": (Message("user", "Hi"), assistant("Hello!"), QUESTION),
    "system and turns": (SYSTEM, Message("user", "Hi"), assistant("Hello!"), QUESTION),
}
ANSWERS = [
    ("The Rhine.", "A hill."),
    ("<b>Rhine</b>", "A hill."),
    (" The Rhine. ", "A hill.\n"),
    ("a\n\nb\n\n", "\n\na"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that begins every text with its BOS."""
    from tokenizers import processors

    made = build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    made.add_special_tokens({"bos_token": "<s>"})
    bos = ("<s>", made.bos_token_id)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    made.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|turn|>", "<|eot|>", "<|msg|>", "<|done|>", "<|chan|>"]}
    )
    return made


def encoder(tokenizer: Any, template: str, **settings: Any) -> PairEncoder:
    tokenizer.chat_template = template
    return PairEncoder(tokenizer, "tiny", DatasetFormat(format_type="tokenizer", **settings))


def encode(tokenizer: Any, template: str, pair: Pair, **settings: Any) -> EncodedPair:
    return encoder(tokenizer, template, **settings).encode(pair)


def messages(turns: tuple[Message, ...], *, typed: bool = False) -> list[dict[str, Any]]:
    return [
        {"role": turn.role, "content": [{"type": "text", "text": turn.content}] if typed else turn.content}
        | ({"reasoning_content": turn.reasoning} if turn.reasoning else {})
        for turn in turns
    ]


def rendered(tokenizer: Any, turns: tuple[Message, ...], *, opens: bool, **options: Any) -> str:
    """Return what transformers makes of the messages with the tokenizer's template."""
    typed = tokenizer.chat_template == PLAIN["typed parts"]
    return str(
        tokenizer.apply_chat_template(
            messages(turns, typed=typed), tokenize=False, add_generation_prompt=opens, **options
        )
    )


def conversations(name: str) -> list[tuple[tuple[Message, ...], tuple[str, str]]]:
    """Return prompts, each with two answers, that the template renders in the same way once an answer follows."""
    return [
        (prompt, answers)
        for prompt in PROMPTS.values()
        for answers in ANSWERS
        if not (name in MOVES_SYSTEM and prompt[0] is SYSTEM)
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_pair_is_the_finished_turn_of_its_template(tokenizer: Any, name: str) -> None:
    encodes = encoder(tokenizer, ALL[name])
    for prompt, answers in conversations(name):
        made = encodes.encode(Pair(prompt, *map(assistant, answers)))
        opened = rendered(tokenizer, prompt, opens=True)
        assert made.text.prompt == re.sub(r"<think>\s*$", "", opened)
        texts, tokens = (made.text.chosen, made.text.rejected), (made.tokens.chosen, made.tokens.rejected)
        for answer, text, ids in zip(answers, texts, tokens, strict=True):
            finished = rendered(tokenizer, (*prompt, assistant(answer)), opens=False)
            assert (made.text.prompt + str(text)).rstrip() == finished.rstrip()
            if answer == answer.strip():
                whole = tokenizer.encode("<s>" + finished.strip().removeprefix("<s>"), add_special_tokens=False)
                end = [] if whole[-1] in tokenizer.all_special_ids else [tokenizer.eos_token_id]
                assert made.tokens.prompt + ids == [*whole, *end]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("answer", [assistant("The Rhine."), Message("assistant", "The Rhine.", "It is long.")])
def test_an_answer_labeled_false_is_the_same_text_on_the_other_side(tokenizer: Any, name: str, answer: Message) -> None:
    good = encode(tokenizer, ALL[name], Pair((QUESTION,), answer, None))
    bad = encode(tokenizer, ALL[name], Pair((QUESTION,), None, answer))
    assert (bad.text.prompt, bad.text.chosen, bad.text.rejected) == (good.text.prompt, None, good.text.chosen)
    assert (bad.tokens.prompt, bad.tokens.rejected) == (good.tokens.prompt, good.tokens.chosen)
    assert (good.tokens.rejected, bad.tokens.chosen) == ([], [])
    assert (good.tokens.label, bad.tokens.label) == (True, False)


@pytest.mark.parametrize("name", ALL)
def test_a_pair_is_that_of_trl(tokenizer: Any, name: str) -> None:
    from trl.data_utils import apply_chat_template

    encodes = encoder(tokenizer, ALL[name])
    typed = name == "typed parts"
    for prompt, answers in conversations(name):
        made = encodes.encode(Pair(prompt, *map(assistant, answers)))
        chosen, rejected = (messages((assistant(answer),), typed=typed) for answer in answers)
        row = {"prompt": messages(prompt, typed=typed), "chosen": chosen, "rejected": rejected}
        theirs = apply_chat_template(row, tokenizer)
        # TRL's prompt includes the "<" with which both the opened thought and an answer begin.
        if name not in OPENS_THOUGHT or not any(answer.startswith("<") for answer in answers):
            assert made.text.prompt == theirs["prompt"]
        ours = made.text.prompt + made.text.chosen, made.text.prompt + str(made.text.rejected)
        assert ours[0].rstrip() == (theirs["prompt"] + theirs["chosen"]).rstrip()
        assert ours[1].rstrip() == (theirs["prompt"] + theirs["rejected"]).rstrip()


@pytest.mark.parametrize("written", ["inline", "inline without line breaks", "without the opening tag", "reasoning"])
@pytest.mark.parametrize("name", ALL)
def test_a_thought_is_trained_once_and_closed(tokenizer: Any, name: str, written: str) -> None:
    thought, text = "Germany has one.", "The Rhine."
    answer = {
        "inline": assistant(f"<think>\n{thought}\n</think>\n\n{text}"),
        "inline without line breaks": assistant(f"<think>{thought}</think>{text}"),
        "without the opening tag": assistant(f"{thought}\n</think>\n\n{text}"),
        "reasoning": Message("assistant", text, thought),
    }[written]
    made = encode(tokenizer, ALL[name], Pair((QUESTION,), answer, assistant("A hill.")))
    whole, rejected = made.text.prompt + made.text.chosen, made.text.prompt + str(made.text.rejected)
    assert whole.count(thought) == whole.count(text) == 1
    assert whole.index("river") < whole.index(thought) < whole.index(text)
    if "<think>" not in whole:
        assert name == "thought with tags of its own"
        assert whole == rendered(tokenizer, (QUESTION, Message("assistant", text, thought)), opens=False)
    else:
        assert re.search(rf"<think>\s*{thought}\s*</think>\s*{text}", whole)
        assert whole.count("<think>") == whole.count("</think>") == 1
    assert rejected.count("<think>") == rejected.count("</think>") <= 1
    assert "A hill." in str(made.text.rejected)


@pytest.mark.parametrize("name", ["thought of the last turn", "opens a thought, strips it and restores reasoning"])
def test_a_template_that_renders_reasoning_is_followed(tokenizer: Any, name: str) -> None:
    answers = Message("assistant", "The Rhine.", "It is long."), Message("assistant", "A hill.", "It is high.")
    made = encode(tokenizer, ALL[name], Pair((QUESTION,), *answers))
    assert made.text.prompt == rendered(tokenizer, (QUESTION,), opens=True)
    for answer, text in zip(answers, (made.text.chosen, made.text.rejected), strict=True):
        assert made.text.prompt + str(text) == rendered(tokenizer, (QUESTION, answer), opens=False).rstrip()
    assert not made.text.finding_kinds


@pytest.mark.parametrize("name", ALL)
def test_without_thinking_no_thought_is_trained(tokenizer: Any, name: str) -> None:
    pair = Pair(
        (QUESTION,), Message("assistant", "The Rhine.", "It is long."), assistant("<think>High.</think>A hill.")
    )
    made = encode(tokenizer, ALL[name], pair, enable_thinking=False)
    whole = made.text.prompt + made.text.chosen + str(made.text.rejected)
    assert "It is long." not in whole
    assert "High." not in whole
    assert whole.count("<think>") == whole.count("</think>")
    assert made.text.finding_kinds >= {"reasoning_unused"}


@pytest.mark.parametrize("name", MOVES_SYSTEM)
@pytest.mark.parametrize("prompt", [PROMPTS["system"], PROMPTS["system and turns"]])
def test_a_moved_system_message_is_trained_where_generation_has_it(
    tokenizer: Any, name: str, prompt: tuple[Message, ...]
) -> None:
    made = encode(tokenizer, ALL[name], Pair(prompt, assistant("The Rhine."), assistant("A hill.")))
    assert made.text.prompt == rendered(tokenizer, prompt, opens=True)
    end = "<|eot|>" if "<|eot|>" in ALL[name] else tokenizer.eos_token
    assert (made.text.chosen, made.text.rejected) == (f"The Rhine.{end}", f"A hill.{end}")
    assert made.text.finding_kinds == {"prompt_rearranged"}


def test_a_dropped_system_message_is_reported_and_folded_on_request(tokenizer: Any) -> None:
    pair = Pair(PROMPTS["system"], assistant("The Rhine."), assistant("A hill."))
    made = encode(tokenizer, DROPS_SYSTEM, pair)
    assert made.text.prompt == "<|turn|>user\nName a river.<|eot|>\n<|turn|>assistant\n"
    assert made.text.finding_kinds == {"system_dropped"}
    folded = encode(tokenizer, DROPS_SYSTEM, pair, system_as_user=True)
    assert folded.text.prompt == "<|turn|>user\nBe brief.\n\nName a river.<|eot|>\n<|turn|>assistant\n"
    assert not folded.text.finding_kinds


def test_a_refused_system_message_names_the_option_that_folds_it(tokenizer: Any) -> None:
    pair = Pair(PROMPTS["system"], assistant("The Rhine."), assistant("A hill."))
    with pytest.raises(UnusableRowError, match=r"System role not supported\. format\.system_as_user: true"):
        encode(tokenizer, REFUSES_SYSTEM, pair)
    made = encode(tokenizer, REFUSES_SYSTEM, pair, system_as_user=True)
    folded = (Message("user", "Be brief.\n\nName a river."),)
    assert made.text.prompt == rendered(tokenizer, folded, opens=True)


def test_a_generation_prompt_after_every_message_is_not_part_of_an_answer(tokenizer: Any) -> None:
    made = encode(tokenizer, ALWAYS_ADDS_GENERATION_PROMPT, Pair((QUESTION,), assistant("Yes."), assistant("No.")))
    assert made.text.prompt == rendered(tokenizer, (QUESTION,), opens=True)
    assert (made.text.chosen, made.text.rejected) == ("Yes.<|im_end|>", "No.<|im_end|>")


TOOLS = ({"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}},)
CALL = {"type": "function", "function": {"name": "search", "arguments": {"query": "river"}}}


def test_tools_and_calls_reach_the_template(tokenizer: Any) -> None:
    called = Message("assistant", "", tool_calls=(CALL,))
    prompt = (QUESTION, called, Message("tool", "Rhine", tool_fields={"name": "s"}))
    made = encode(tokenizer, PLAIN["tools section"], Pair(prompt, assistant("The Rhine."), called, tools=TOOLS))
    given = [
        {"role": "user", "content": QUESTION.content},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "Rhine", "name": "s"},
    ]
    answers = {"content": "The Rhine."}, {"content": "", "tool_calls": [CALL]}
    for answer, text in zip(answers, (made.text.chosen, made.text.rejected), strict=True):
        turns = [*given, {"role": "assistant", **answer}]
        whole = tokenizer.apply_chat_template(turns, tools=list(TOOLS), tokenize=False)
        assert made.text.prompt + str(text) == whole.rstrip()


def test_a_template_without_tools_refuses_them(tokenizer: Any) -> None:
    answers = assistant("The Rhine."), assistant("A hill.")
    with pytest.raises(UnusableRowError, match="chat template ignores tools"):
        encode(tokenizer, PLAIN["chatml"], Pair((QUESTION,), *answers, tools=TOOLS))
    with pytest.raises(UnusableRowError, match="chat template ignores tool_calls"):
        encode(tokenizer, PLAIN["chatml"], Pair((QUESTION,), Message("assistant", "", tool_calls=(CALL,)), None))


READS_ARGUMENTS = {
    "empty thought if thinking is off": (
        "{% set empty = '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else '' %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ empty if m.role == 'assistant' }}{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ empty }}{% endif %}"
    ),
    "system message if thinking is off": (
        "{% if enable_thinking is defined and not enable_thinking %}<|im_start|>system\nBrief.<|im_end|>\n{% endif %}"
        + PLAIN["chatml"]
    ),
    "any name": "{% if name is defined %}{{ name ~ ' ' ~ documents | length }}{% endif %}" + PLAIN["chatml"],
    "generation prompt after every message": ALWAYS_ADDS_GENERATION_PROMPT
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
}


@pytest.mark.parametrize("name", READS_ARGUMENTS)
def test_the_arguments_of_a_row_reach_the_template_as_in_trl(tokenizer: Any, name: str) -> None:
    from trl.data_utils import apply_chat_template

    encodes = encoder(tokenizer, READS_ARGUMENTS[name])
    arguments = [
        {"enable_thinking": False},
        {"enable_thinking": True},
        {"name": "Ada", "documents": [{"text": "a"}]},
        {},
    ]
    texts = set()
    # The same encoder renders rows with other arguments before and after.
    for given in arguments * 2:
        row = {"prompt": QUESTION.content, "chosen": "The Rhine.", "rejected": "A hill.", "chat_template_kwargs": given}
        made = encodes.encode(to_pair(row)).text
        turns = [messages((turn,)) for turn in (QUESTION, assistant("The Rhine."), assistant("A hill."))]
        conversation = dict(zip(("prompt", "chosen", "rejected"), turns, strict=True))
        theirs = apply_chat_template({**conversation, "chat_template_kwargs": given}, tokenizer)
        texts.add(made.prompt)
        if name == "generation prompt after every message":
            # TRL's answers end with the header of the next one.
            assert made.prompt == rendered(tokenizer, (QUESTION,), opens=True)
            assert (made.chosen, made.rejected) == ("The Rhine.<|im_end|>", "A hill.<|im_end|>")
            continue
        assert made.prompt == theirs["prompt"]
        assert made.prompt + str(made.chosen) == (theirs["prompt"] + theirs["chosen"]).rstrip()
        assert made.prompt + str(made.rejected) == (theirs["prompt"] + theirs["rejected"]).rstrip()
    assert len(texts) == (1 if name == "generation prompt after every message" else 2)


def test_the_thinking_of_a_row_replaces_that_of_the_format(tokenizer: Any) -> None:
    template = ALL["thought of the last turn"]
    row = {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "A hill.", "reasoning": "It is long."}
    for of_format in (True, False):
        encodes = encoder(tokenizer, template, enable_thinking=of_format)
        for of_row, is_trained in ((None, of_format), (True, True), (False, False)):
            arguments = {} if of_row is None else {"chat_template_kwargs": {"enable_thinking": of_row}}
            made = encodes.encode(to_pair({**row, **arguments})).text
            assert ("It is long." in str(made.chosen)) is is_trained
            assert ("reasoning_unused" in made.finding_kinds) is not is_trained


def test_rows_may_set_all_but_how_a_template_is_applied() -> None:
    from transformers import PreTrainedTokenizerBase

    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert set(parameters) - {"self", "documents", "kwargs"} <= NOT_FROM_ROWS
    row = {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "A hill."}
    for name in NOT_FROM_ROWS:
        with pytest.raises(UnusableRowError, match=f"chat_template_kwargs has '{name}'"):
            to_pair({**row, "chat_template_kwargs": {name: "x"}})


@pytest.mark.parametrize("name", ["tokenizer", "turns", "name"])
def test_a_name_that_the_code_here_uses_is_a_variable_of_the_template(tokenizer: Any, name: str) -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "chat_template_kwargs": {name: "x"}}
    assert encoder(tokenizer, PLAIN["chatml"]).encode(to_pair(row)).text.chosen == "a<|im_end|>"


def test_a_pair_whose_answers_the_template_renders_as_the_same_text_is_refused(tokenizer: Any) -> None:
    call_alone = PLAIN["tools section"].replace(
        "{{ m.content }}{% for", "{% if not m.tool_calls %}{{ m.content }}{% endif %}{% for"
    )
    answers = (Message("assistant", text, tool_calls=(CALL,)) for text in ("Good.", "Bad."))
    with pytest.raises(UnusableRowError, match="renders both answers as the same text"):
        encode(tokenizer, call_alone, Pair((QUESTION,), *answers, tools=TOOLS))


def test_results_of_tools_that_the_template_drops_are_refused(tokenizer: Any) -> None:
    prompt = (QUESTION, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "Rhine"))
    dropping = PLAIN["tools section"].replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}")
    with pytest.raises(UnusableRowError, match="ignores messages with the role tool"):
        encode(tokenizer, dropping, Pair(prompt, assistant("The Rhine."), None, tools=TOOLS))


def test_a_template_that_needs_the_calls_of_a_conversation_is_followed(tokenizer: Any) -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('no call before this result') }}{% endif %}{% endfor %}" + PLAIN["tools section"]
    )
    prompt = (QUESTION, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "Rhine"))
    made = encode(tokenizer, strict, Pair(prompt, assistant("The Rhine."), None, tools=TOOLS))
    assert made.text.chosen == "The Rhine.<|im_end|>"


QWEN_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% set text = m.content %}{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<think>\n' + thought.strip('\n') + "
    "'\n</think>\n\n' + text }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "thought"), [("The tag </think> matters.", "why"), ("A", "I should emit <think> first")]
)
def test_texts_that_mention_the_tags_are_trained_whole(tokenizer: Any, text: str, thought: str) -> None:
    answer = Message("assistant", text, thought)
    made = encode(tokenizer, QWEN_LIKE, Pair((QUESTION,), answer, assistant("No.")))
    assert made.text.prompt + made.text.chosen == rendered(tokenizer, (QUESTION, answer), opens=False).rstrip()


@pytest.mark.parametrize("text", ["Close it with </think> and go on.", "It writes <think>...</think> first."])
def test_a_text_that_mentions_a_thought_has_none(tokenizer: Any, text: str) -> None:
    for template in (PLAIN["chatml"], OPENS_THOUGHT["opens a thought and keeps it"]):
        for thinks in (True, False):
            made = encode(tokenizer, template, Pair((QUESTION,), assistant(text), None), enable_thinking=thinks)
            assert made.text.chosen == f"{text}<|im_end|>"
            assert not made.text.finding_kinds


def test_a_moved_prompt_keeps_what_the_template_puts_before_every_answer(tokenizer: Any) -> None:
    template = MOVES_SYSTEM["system message before the generation prompt"].replace(
        "{{ m.content }}<|eot|>", "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}{{ m.content }}<|eot|>"
    )
    made = encode(
        tokenizer, template, Pair(PROMPTS["system"], assistant("The Rhine."), Message("assistant", "A hill.", "why"))
    )
    assert made.text.prompt == rendered(tokenizer, PROMPTS["system"], opens=True)
    assert made.text.chosen == "<think>\n\n</think>\n\nThe Rhine.<|eot|>"
    assert made.text.rejected == "<think>\nwhy\n</think>\n\nA hill.<|eot|>"


def test_a_generation_prompt_that_closes_a_thought_does_not_precede_one(tokenizer: Any) -> None:
    template = "{% for m in messages %}<|turn|>{{ m.role }}<|msg|>{{ '</think>' if m.role == 'assistant' }}"
    template += "{{ m.content.split('</think>')[-1] }}<|eot|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|turn|>assistant<|msg|></think>{% endif %}"
    made = encode(
        tokenizer,
        template,
        Pair((QUESTION,), Message("assistant", "The Rhine.", "why"), Message("assistant", "A hill.", "so")),
    )
    assert made.text.prompt.endswith("<|turn|>assistant<|msg|>")
    assert made.text.chosen == "<think>\nwhy\n</think>\n\nThe Rhine.<|eot|>"


def test_the_search_for_a_thought_is_linear_in_the_length_of_the_answer(tokenizer: Any) -> None:
    # A quadratic search in this answer would exceed the time limit of a test by far.
    made = encode(tokenizer, PLAIN["chatml"], Pair((QUESTION,), assistant(" \n" * 200_000 + "a"), None))
    assert made.text.chosen.endswith("\na<|im_end|>")
