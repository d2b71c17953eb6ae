#!/usr/bin/env python3
"""Writes expected.json: what transformers' Jinja environment makes of templates and of lines that try its rules.

    make_expected.py        needs transformers, see tests/oracle/requirements.txt

Each case: template, messages, add_generation_prompt, and either text or error (true).
"""
import json
import pathlib

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).parent
BOS, EOS = "<s>", "</s>"

CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "  Be brief. \n"}, {"role": "user", "content": " Hi <|im_end|>\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\tb\u00a0"}, {"role": "user", "content": "\u4e2d\U0001F600 \"x\" \\"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
     {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "assistant", "content": "a"}],
    [{"role": "tool", "content": "a"}],
    [{"role": "user", "content": ""}],
    [],
]

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] "
    "+ '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant"
    "\\n' }}{% endif %}"
)

# Written like the templates of these models, with what is particular to each.
TEMPLATES = {
    "smollm2": SMOLLM2,
    "gemma": """{{ bos_token }}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if (message['role'] == 'assistant') else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
""",
    "llama-2": """{% if messages and messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}
{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}""",
    "mistral": """{%- set ns = namespace(index=0, system='') %}
{%- for message in messages %}
  {%- if message.role == "system" %}{% set ns.system = message.content ~ "\\n\\n" %}{% continue %}{% endif %}
  {%- if not ((message.role == "user") == (ns.index % 2 == 0)) %}{{- raise_exception("alternate") }}{% endif %}
  {%- set ns.index = ns.index + 1 %}
  {%- if message["role"] == "user" %}
    {%- if loop.last and ns.system %}{{- "[INST] " + ns.system + message["content"] + "[/INST]" }}
    {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
  {%- else %}{{- " " + message["content"] | trim + eos_token }}{%- endif %}
{%- endfor %}
""",
    "tinyllama": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "macro": """{% macro turn(role, text='none', end=eos_token) -%}
[{{ role | upper }}] {{ text }}{{ end }}
{% endmacro %}{% for m in messages if m.role != 'system' %}{{ turn(m.role, text=m.content | trim) }}{% else %}empty{% endfor %}""",
    "filters": """{% for m in messages | selectattr('role', 'equalto', 'user') | list %}{{ loop.index }}/{{ loop.length }}{{ loop.revindex0 }}{{ loop.previtem.content | default('-') }} {{ m.content | tojson }}
{%- endfor %}{{ messages | map(attribute='role') | join(', ') }}{{ messages | rejectattr('role', 'in', ['user', 'tool']) | list | length }}""",
}

# One rule each; rendered with the first conversation.
LINES = [
    "a\n", "a\n\n", "\r\na\r\nb\rc", "{# x #}\na", "  {# x #}  \n a", "  {% if true %}\n  b\n  {% endif %}\nc", "x  {% if true %}b{% endif %}  \ny",
    "a  {%- if true -%}  b  {%- endif -%}  c", "  {%+ if true +%}\n b{% endif %}", "  {{ 1 }}\n  {{- 2 -}}  \n3", "{{ '{{' }}{{ '%}' }}{{ {'a': {'b': 1}}['a']['b'] }}",
    "{% raw %}\n{{ x }} {% if %}\n{% endraw %}\ny", "a {%- raw -%} {{ b }} {%- endraw -%} c", "{#- a -#} b {#+ c +#}\nd",
    "{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 1.5 + 1 }} {{ 4 / 2 }}",
    "{{ -2 ** 2 }} {{ - 3 | abs }} {{ 1 - - 1 }} {{ +3 }}", "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' == 'a' != 'b' }}",
    "{{ not true or true }} {{ 1 and 2 }} {{ 0 or 'x' }} {{ none or none }} {{ not 1 in [1] }} {{ 1 not in [2] }}",
    "{{ 'a' ~ 1 + 2 ~ none ~ true ~ 1.0 }}", "{{ [1, 'a', none, true, 1.5, [], {'k': 'v'}] }} {{ \"it's\" ~ ['it\\'s', 'a\"b', 'a\\n\\t\\\\'] }}", "{{ (1,) | length }}{{ (1) }}{{ [1,2,] | length }}",
    "{{ 'abcdef'[1:4] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[-2:] }} {{ 'abc'[5:] }}| {{ [1,2,3,4][::2] }} {{ [1,2,3][-1] }} {{ 'h\u00e9\u4e2d'[1] }} {{ [1,2][5] }}| {{ 'abc'[:-1] }} {{ [1,2,3][2:0:-1] }}",
    "{{ 'x' if false }}|{{ 'x' if true else 'y' }}|{{ 'a' if false else 'b' if false else 'c' }}", "{{ missing }}|{{ missing is defined }}|{{ missing | default('d') }}|{{ '' | default('d', true) }}|{{ messages[0].nothing is undefined }}",
    "{{ missing.x }}", "{{ missing + 1 }}", "{{ missing() }}", "{{ none.x is defined }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ 'a' < 1 }}", "{{ nope | upper }}|{{ none | upper }}", "{{ 'a' | nope }}", "{{ 'a' is nope }}",
    "{{ '  x ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ ' a\\u00a0\\x1c' | trim }}|{{ 'aBc dEf' | upper }}{{ 'aBc' | lower }}{{ 'aBc' | capitalize }} {{ 'hello world' | title }} {{ '\u00e9\u0431' | upper }}",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ ' a  b  c '.split(none, 1) }} {{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'xxaxx'.strip('x') }} {{ 'xxa'.lstrip('x') }} {{ 'axx'.rstrip('x') }} {{ 'aXa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'abcab'.find('ca') }} {{ 'abcab'.count('ab') }} {{ '-'.join(['a', 'b']) }}",
    "{{ {'a': 1, 'b': 2}.items() | list | length }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 3) }} {{ {'a': 1}.keys() | list }} {{ {'a': 1}.values() | list }} {{ 'a' in {'a': 1} }} {{ {'a': 1} | length }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for a in 'xyz' %}{{ loop.cycle('1', '2') }}{{ a }}{{ loop.last }}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}",
    "{% for i in range(3) %}{% for j in range(i) %}{{ i }}{{ j }} {% endfor %}{% endfor %}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}", "{% set ns = namespace(a=1, b='x') %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c %} {{ a }} x{% endset %}[{{ c }}]{% set t = 1, 2 %}{{ t | length }}", "{% set x.y = 1 %}", "{{ [3, 1] + [2] }}{{ 'ab' * 2 }}{{ [1, 2] == [1, 2] }}{{ {'a': 1} == {'a': 1} }}{{ 1 in 'a' if false else 'b' in 'abc' }}",
    "{{ 3 is odd }}{{ 3 is even }}{{ 3 is divisibleby 3 }}{{ 'a' is string }}{{ 1 is number }}{{ true is boolean }}{{ [] is iterable }}{{ {} is mapping }}{{ none is none }}{{ 1 is not none }}{{ 'x' is not defined }}{{ 1 is eq 1 }}{{ 'a' is in ['a'] }}{{ 'A' is upper }}{{ 1.0 is float }}{{ 1 is integer }}{{ true is integer }}{{ [] is sequence }}{{ true is true }}{{ 1 is true }}",
    "{{ messages | tojson }}", "{{ {'a': [1, 2.5, none, true, '<\u00e9\\n\"\\\\>'], 'b': {}, 'c': []} | tojson }}|{{ {'a': [1, {}], 'b': {'c': 2}} | tojson(indent=2) }}", "{{ [1, 2, 3] | first }}{{ 'abc' | last }}{{ [] | first }}|{{ [1, 2] | reverse | list }}{{ 'abc' | reverse }}{{ '12' | int + 1 }}{{ 'x' | int }}{{ '1.5' | float }}{{ 2.9 | int }}{{ -3 | abs }}{{ 5 | string + '6' }}{{ 'abc' | length }}{{ 'h\u00e9' | count }}{{ 'abc' | list }}",
    "{{ ['a', 'b'] | map('upper') | join('-') }}{{ [0, 1, '', 'x'] | select | list }}{{ [1, 2, 3] | reject('odd') | list }}{{ [{'n': {'m': 1}}] | map(attribute='n.m') | list }}{{ [1, 2] | join }}{{ 'ab' | join(',') }}{{ ({'a': 1} | items | list)[0][1] }}",
    "{% generation %}x{% endgeneration %}y", "{{ 1_000 }} {{ \"a\" 'b' }} {{ 'a\\x41\\u00e9\\q' }} {{ True }}{{ False }}{{ None }}", "{{ raise_exception('no') }}", "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{% set c = 3 %}{{ f(1) }}|{{ f(1, b=4) }}|{{ f() }}|{{ f(a=1) | trim }}",
    "{% if false %}a{% elif 0 %}b{% elif 1 %}c{% else %}d{% endif %}", "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ tools }}{{ documents is none }}{{ unk_token }}", "{{ messages[0]['content'][0:4] ~ messages[0].role[::-1] }}",
    # Syntax that jinja2 refuses too.
    "{% if %}x{% endif %}", "{% for x %}{% endfor %}", "{{ 1 + }}", "{{ (1 }}", "{{ a.1b }}", "{% endif %}", "{% if true %}", "{{ 'abc }}", "{# abc", "{{ a ? b }}", "{% nope %}", "{{ a b }}", "{{ }}", "{% set 1 = 2 %}", "{{ f(a=1, 2) }}", "{% break %}", "{{ a[1 2] }}", "{{ ] }}",
]


def render(template, messages, prompt):
    try:
        text = _compile_jinja_template(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=prompt, bos_token=BOS, eos_token=EOS)
        return {"text": text}
    except Exception:  # every error of the template counts
        return {"error": True}


def main():
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for prompt in (True, False):
                cases.append({"name": name, "template": template, "messages": messages, "add_generation_prompt": prompt})
    for line in LINES:
        cases.append({"name": line, "template": line, "messages": CONVERSATIONS[0], "add_generation_prompt": True})
    for case in cases:
        case |= render(case["template"], case["messages"], case["add_generation_prompt"])
    data = {"bos": BOS, "eos": EOS, "cases": cases}
    (HERE / "expected.json").write_text(json.dumps(data, ensure_ascii=True, indent=0) + "\n")
    print(f"{len(cases)} cases, {sum('error' in case for case in cases)} of them errors")


if __name__ == "__main__":
    main()
