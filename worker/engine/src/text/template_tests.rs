use jiff::civil::date;
use jiff::tz::TimeZone;
use serde_json::json;

use super::*;

/// Of the SmolLM2 family: a default system message, then the messages as they are.
const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Of the Llama 3 family: date, header tokens, trimmed contents, a tool list, an error of its own.
const LLAMA3: &str = r#"
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + date_string + "\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

/// Of the Qwen 2.5 family: tools in the system message, tool calls and their answers, loop variables in a namespace.
const QWEN25: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(last=none) %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {%- generation %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
        {%- endgeneration %}
    {%- endif %}
    {%- set ns.last = message.role %}
{%- endfor %}
{%- if add_generation_prompt and ns.last != "assistant" %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn refused(source: &str) -> String {
    ChatTemplate::new(source, None, None).unwrap().render(&user("x"), None, true).unwrap_err().to_string()
}

#[test]
fn chatml_adds_its_system_message_only_where_there_is_none() {
    let template = ChatTemplate::new(CHATML, Some("<|im_start|>"), Some("<|im_end|>")).unwrap();
    assert_eq!(
        template.render(&user("Hi {{ 1 }}"), None, true).unwrap(),
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nHi {{ 1 }}<|im_end|>\n<|im_start|>assistant\n"
    );
    let own = json!([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]);
    assert_eq!(
        template.render(&own, None, false).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    );
}

#[test]
fn llama3_writes_bos_date_and_tools() {
    let noon = date(2026, 3, 5).at(12, 0, 0, 0).to_zoned(TimeZone::UTC).unwrap();
    let template =
        ChatTemplate::new(LLAMA3, Some("<|begin_of_text|>"), None).unwrap().with_clock(Arc::new(move || noon.clone()));
    let messages = json!([{"role": "system", "content": " Be brief. "}, {"role": "user", "content": " Hi \n"}]);
    assert_eq!(
        template.render(&messages, None, true).unwrap(),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 05 Mar 2026\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let tools = json!([{"name": "f", "strict": true}]);
    let with_tools = template.render(&messages, Some(&tools), false).unwrap();
    assert!(with_tools.contains("{\n    \"name\": \"f\",\n    \"strict\": true\n}\n"), "{with_tools}");
    let fixed = json!({"date_string": "1 Jan"});
    let dated = template.render_with(&messages, None, false, fixed.as_object().unwrap()).unwrap();
    assert!(dated.contains("Today: 1 Jan\n"), "{dated}");
}

#[test]
fn qwen_writes_tool_calls_and_their_answers() {
    let template = ChatTemplate::new(QWEN25, None, None).unwrap();
    let call = json!({"function": {"name": "add", "arguments": {"a": 1, "b": [2, "é<"]}}});
    let messages = json!([
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "add"}}]);
    assert_eq!(
        template.render(&messages, Some(&tools), true).unwrap(),
        "<|im_start|>system\n# Tools\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"add\"}}\n\
         </tools><|im_end|>\n<|im_start|>user\n1+2?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n\
         {\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2, \"é<\"]}}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn blocks_are_trimmed_and_values_print_as_in_python() {
    let source = "a\n  {% if true %}\nb\n  {% endif %}\n{{ true }} {{ none }} {{ 1.5 }} {{ 'x'.upper() }}";
    assert_eq!(
        ChatTemplate::new(source, None, None).unwrap().render(&user(""), None, true).unwrap(),
        "a\nb\nTrue None 1.5 X"
    );
}

#[test]
fn absent_tools_are_none_and_not_a_list() {
    let source = "{% if tools is iterable and tools | length > 0 %}tools{% else %}{{ tools }}{% endif %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    assert_eq!(template.render(&user(""), None, true).unwrap(), "None");
    assert_eq!(template.render(&user(""), Some(&json!([{}])), true).unwrap(), "tools");
}

#[test]
fn errors_are_the_templates_own_sentence_or_name_the_line() {
    let system = json!([{"role": "critic", "content": "x"}]);
    let template = ChatTemplate::new(LLAMA3, Some(""), None).unwrap();
    assert_eq!(template.render(&system, None, true).unwrap_err().to_string(), "chat template: Unknown role: critic");
    let error = ChatTemplate::new("\n{% if %}", None, None).unwrap_err().to_string();
    assert!(error.starts_with("chat template: syntax error") && error.contains(":2"), "{error}");
    assert!(refused("{{ messages.a.b }}").starts_with("chat template: undefined value"));
}

#[test]
fn work_memory_nesting_and_output_are_bounded() {
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    assert!(refused(endless).contains("ran too long"));
    let doubling = "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    assert!(refused(doubling).contains("ran too long"));
    let recursion = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(refused(recursion).starts_with("chat template: "));
    let long = "{% set s = 'x' * 1000000 %}{% for i in range(100) %}{{ s }}{% endfor %}";
    assert_eq!(refused(long), "chat template: the prompt is longer than 16 MiB; send fewer messages");
}

#[test]
fn a_directory_may_keep_its_template_in_three_places() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    assert!(ChatTemplate::from_hf_dir(dir.path()).unwrap().is_none());
    let render = |tools: Option<&Value>| {
        ChatTemplate::from_hf_dir(dir.path()).unwrap().unwrap().render(&user("u"), tools, false).unwrap()
    };
    write("tokenizer_config.json", json!({"chat_template": "one {{ bos_token }}", "bos_token": "<s>"}).to_string());
    assert_eq!(render(None), "one <s>");
    let list = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t{{ eos_token }}"}]);
    write("tokenizer_config.json", json!({"chat_template": list, "eos_token": {"content": "</s>"}}).to_string());
    assert_eq!((render(None), render(Some(&json!([])))), ("d".into(), "t</s>".into()));
    write("chat_template.jinja", "file".into());
    assert_eq!((render(None), render(Some(&json!([])))), ("file".into(), "file".into()));
}

#[test]
fn a_list_without_a_default_is_refused() {
    let error = ChatTemplate::named([("rag", "x")], None, None).unwrap_err();
    assert_eq!(error.to_string(), "chat template: the model has no template named default");
}

#[test]
fn a_tag_that_ends_where_it_begins_is_left_as_it_is() {
    for source in ["{{ bos_token }}{%}", "{%}{% generation", "{%}{%- generation -%}x", "{%%}", "{%"] {
        assert_eq!(without_generation_blocks(source), source);
    }
}
