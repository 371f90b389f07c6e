"""Chat templates in the manner of the families that matter; short, but with what makes each one special."""

from __future__ import annotations

from language import stub

CONTROL = (
    *stub.CONTROL,
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL_RESULTS]", "[THINK]", "[/THINK]"),
    *("<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"),
    *("<tool_response|>", "<|channel>", "<channel|>", '<|"|>'),
)
"""What these families make single tokens of."""

# Tools in the system turn, calls and results in tags, thoughts of the last turn kept: Qwen 3, Hermes.
HERMES = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nAnswer with <tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call>' }}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content and loop.index0 > ns.last %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls %}
            {%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- if call.function.arguments is string %}{{- call.function.arguments }}
            {%- else %}{{- call.function.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%-
    endif %}
{%- endif %}
"""

# No system turn, turns must alternate, texts are trimmed: Gemma 1 to 3.
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{%
endif %} {%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# The thought is opened by the template, old thoughts are cut off at their tag: DeepSeek R1.
OPENS = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{- message['content'] }}
    {%- elif message['role'] == 'user' %}{{- '<|im_start|>user\\n' + message['content'] }}
    {%- else %}
        {{- '<|im_start|>assistant\\n' + message['content'].split('</think>')[-1] + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}
"""

# Texts are lists of parts: Idefics 3, LLaVA.
PARTS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in message.content %}
        {%- if part['type'] == 'text' %}{{- part['text'] }}{%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# Thoughts are asked for in the system turn, and shut unless they are: Gemma 4.
ASKED = """\
{{- bos_token }}
{%- if enable_thinking is defined and enable_thinking %}
    {{- '<|turn>system\\n<|think|><turn|>\\n' }}
{%- endif %}
{%- for message in messages %}{{- '<|turn>' + message.role + '\\n' + message.content | trim + '<turn|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn>model\\n' }}
    {%- if not enable_thinking | default(false) %}{{- '<|channel>thought\\n<channel|>' }}{%- endif %}
{%- endif %}
"""

# Tools are known, but calls are written in a way that is not: Granite, DeepSeek, GLM.
OTHER_TOOLS = """\
{%- if tools %}{{- '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{{- '[RESULT]' + message.content + '[/RESULT]' }}
    {%- elif message.tool_calls %}
        {{- '[CALLS]' }}{%- for call in message.tool_calls %}{{- call.function | tojson }}{%- endfor %}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# The whole turn is a call, one a turn, and results are the interpreter's: Llama 3.1 to 3.3.
LLAMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- system + '<|eot_id|>' }}
{%- if tools %}
    {%- set first = messages[0].content | trim %}{%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer with a call in the form ' }}
    {{- '{"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {{- first + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

# Calls are a list behind a tag, ids have nine letters, words beside calls are lost: Mistral, until 2024.
MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}{%- set messages = messages[1:] %}
{%- endif %}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and message == asked[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('ids have nine letters') }}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' }}
        {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}
"""

# Each call has its tag, and another one between name and arguments; thoughts in tags: Mistral since 2025.
MISTRAL_NAMED = """\
{{- bos_token }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}
    {%- elif message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {%- if message.reasoning_content %}
            {{- '[THINK]' + message.reasoning_content + '[/THINK]' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls %}
            {%- set arguments = call.function.arguments %}
            {%- if arguments is not string %}{%- set arguments = arguments | tojson %}{%- endif %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + arguments }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
"""

MISTRAL_WITH_IDS = MISTRAL_NAMED.replace("'[ARGS]'", "'[CALL_ID]' + call.id + '[ARGS]'")

# Calls, results and declarations in a notation of its own, results within the model's turn: Gemma 4.
GEMMA4 = """\
{%- macro value(it) -%}
    {%- if it is string -%}{{- '<|"|>' + it + '<|"|>' -}}
    {%- elif it is boolean -%}{{- 'true' if it else 'false' -}}
    {%- elif it is mapping -%}{{- '{' -}}{{- members(it) -}}{{- '}' -}}
    {%- elif it is sequence -%}
        {{- '[' -}}{%- for one in it -%}{{- value(one) -}}{{- ',' if not loop.last -}}{%- endfor -%}
        {{- ']' -}}
    {%- else -%}{{- it -}}{%- endif -%}
{%- endmacro -%}
{%- macro members(it) -%}
    {%- for key, item in it | dictsort -%}
        {{- key + ':' -}}{{- value(item) -}}{{- ',' if not loop.last -}}
    {%- endfor -%}
{%- endmacro -%}
{{- bos_token }}
{%- if enable_thinking | default(false) or tools or messages[0].role == 'system' -%}
    {{- '<|turn>system\\n' -}}
    {%- if enable_thinking | default(false) -%}{{- '<|think|>\\n' -}}{%- endif -%}
    {%- if messages[0].role == 'system' -%}
        {{- messages[0].content | trim -}}{%- set messages = messages[1:] -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<|tool>declaration:' + tool.function.name + '{description:' -}}
        {{- value(tool.function.description) + ',parameters:' + value(tool.function.parameters) -}}
        {{- '}<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\\n' -}}
{%- endif -%}
{%- set ns = namespace(last='') -%}
{%- for message in messages -%}
    {%- if message.role != 'tool' -%}
        {%- set ns.answered = false -%}
        {%- set role = 'model' if message.role == 'assistant' else message.role -%}
        {%- if not (role == 'model' and ns.last == 'model') -%}{{- '<|turn>' + role + '\\n' -}}{%- endif -%}
        {%- set ns.last = role -%}
        {%- for call in message.tool_calls or [] -%}
            {{- '<|tool_call>call:' + call.function.name + '{' -}}
            {{- members(call.function.arguments) + '}<tool_call|>' -}}
        {%- endfor -%}
        {%- if message.tool_calls -%}
            {%- set ns.stopped = false -%}
            {%- for follow in messages[loop.index:] -%}
                {%- if follow.role != 'tool' -%}{%- set ns.stopped = true -%}{%- endif -%}
                {%- if not ns.stopped -%}
                    {%- set ns.answered = true -%}
                    {{- '<|tool_response>response:' + follow.name + '{' -}}
                    {%- if follow.content is mapping -%}{{- members(follow.content) -}}
                    {%- else -%}{{- 'value:' + value(follow.content) -}}{%- endif -%}
                    {{- '}<tool_response|>' -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- message.content | trim -}}
        {%- if not (ns.answered and not message.content) -%}{{- '<turn|>\\n' -}}{%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.answered -%}
    {{- '<|turn>model\\n' -}}
    {%- if not enable_thinking | default(false) -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}
{%- endif -%}
"""

# The same, as it was first published: results are a field of the message that called.
GEMMA4_INLINE = (
    GEMMA4.replace("message.role != 'tool'", "true")
    .replace("for follow in messages[loop.index:]", "for follow in message.tool_responses or []")
    .replace("follow.role != 'tool'", "false")
    .replace("follow.content", "follow.response")  # an object, or a text
)
