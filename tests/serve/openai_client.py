"""OpenAI's own Python client against the example `serve` with the bundled model.

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=… python openai_client.py

`run.sh` beside this file starts the server and makes the environment.
"""

import json
import os
import pathlib

import openai
from pydantic import BaseModel, Field

ROOT = pathlib.Path(__file__).parents[2]
KNOWN = json.loads((ROOT / "tests/fixtures/known-answers.json").read_text())
ANSWERS = {known["topic"]: known["answer"] for known in KNOWN}
MODEL = "gpt-oss-tiny"
ASK = [{"role": "user", "content": "Explain Macros."}]
PARAMETERS = {
    "type": "object",
    "properties": {"location": {"type": "string"}},
    "required": ["location"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}

client = openai.OpenAI(max_retries=0)


class Book(BaseModel):
    # Bounded: the bundled model does not know when to stop.
    title: str = Field(max_length=20)
    pages: int = Field(ge=1, le=900)
    safe: bool


def check(name, value, wanted=True):
    assert value == wanted, f"{name}: {value!r} is not {wanted!r}"


def models():
    check("models", [model.id for model in client.models.list()], [MODEL])
    check("model", client.models.retrieve(MODEL).id, MODEL)


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    choice = answer.choices[0]
    check("content", choice.message.content, ANSWERS["Macros"])
    check("reason", choice.finish_reason, "stop")
    check("reasoning", "Macros" in choice.message.reasoning_content)
    check("total", answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
    check("request id", answer._request_id.startswith("req_"))


def chat_streams():
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    )
    text, tokens, reason, usage = "", "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            if choice.logprobs:
                tokens += b"".join(bytes(t.bytes) for t in choice.logprobs.content).decode()
    check("content", text, ANSWERS["Macros"])
    check("tokens", tokens, ANSWERS["Macros"])
    check("reason", reason, "stop")
    check("cached", usage.prompt_tokens_details.cached_tokens > 0)


def chat_tools():
    tools = [{"type": "function", "function": {**FUNCTION, "strict": True}}]
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, tool_choice="required", temperature=0
    )
    check("reason", first.choices[0].finish_reason, "tool_calls")
    message = first.choices[0].message
    [call] = message.tool_calls
    check("name", call.function.name, "get_weather")
    check("arguments", list(json.loads(call.function.arguments)), ["location"])
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, tool_choice="none", temperature=0
    )
    check("answered", second.choices[0].finish_reason, "stop")
    check("text", bool(second.choices[0].message.content))
    # The client's own helper puts the calls of a stream together.
    with client.chat.completions.stream(
        model=MODEL, messages=messages[:1], tools=tools, tool_choice="required", temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message.tool_calls[0]
    check("events", "tool_calls.function.arguments.done" in kinds)
    check("streamed", final.function.arguments, call.function.arguments)


def chat_schema():
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Book, temperature=1, seed=3, max_tokens=2000
    )
    check("parsed", isinstance(answer.choices[0].message.parsed, Book))


def completion():
    prompt = "<|start|>user<|message|>Explain Macros.<|end|><|start|>assistant"
    whole = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=40, logprobs=1)
    check("tokens", len(whole.choices[0].logprobs.tokens), 40)
    stream = client.completions.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=40, stream=True
    )
    check("streamed", "".join(chunk.choices[0].text for chunk in stream), whole.choices[0].text)


def responses():
    whole = client.responses.create(
        model=MODEL, input="Explain Macros.", temperature=0, reasoning={"summary": "auto"}
    )
    check("status", whole.status, "completed")
    check("text", whole.output_text, ANSWERS["Macros"])
    check("items", [item.type for item in whole.output], ["reasoning", "message"])
    check("summary", "Macros" in whole.output[0].summary[0].text)
    check("usage", whole.usage.output_tokens_details.reasoning_tokens > 0)


def responses_stream():
    # The client's own helper checks that the events follow each other as they should.
    with client.responses.stream(model=MODEL, input="Explain Macros.", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    check("text", text, ANSWERS["Macros"])
    check("final", final.output_text, ANSWERS["Macros"])
    check("numbers", [event.sequence_number for event in events], list(range(len(events))))


def responses_tools():
    tools = [{"type": "function", **FUNCTION, "strict": True}]
    question = {"role": "user", "content": "What is the weather in Paris?"}
    with client.responses.stream(
        model=MODEL, input=[question], tools=tools, tool_choice="required", temperature=0
    ) as stream:
        events = list(stream)
        first = stream.get_final_response()
    call = first.output[-1]
    check("type", call.type, "function_call")
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    check("arguments", [event.arguments for event in done], [call.arguments])
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = client.responses.create(
        model=MODEL,
        # As the client's documentation has it: what came out goes in again.
        input=[question, *first.output, output],
        tools=tools,
        tool_choice="none",
        temperature=0,
    )
    check("answered", bool(second.output_text))
    parsed = client.responses.parse(
        model=MODEL, input="Explain Macros.", text_format=Book, temperature=0, max_output_tokens=2000
    )
    check("parsed", isinstance(parsed.output_parsed, Book))


def errors():
    def fails(kind, call, param=None):
        try:
            call()
        except kind as error:
            check("param", error.param, param)
            return
        raise AssertionError(f"no {kind.__name__}")

    create = client.chat.completions.create
    fails(openai.NotFoundError, lambda: create(model="gpt-4o", messages=ASK), "model")
    fails(openai.BadRequestError, lambda: create(model=MODEL, messages=[]), "messages")
    fails(openai.BadRequestError, lambda: create(model=MODEL, messages=ASK, n=2), "n")
    image = {"type": "input_image", "image_url": "data:,"}
    item = {"role": "user", "content": [image]}
    fails(
        openai.BadRequestError,
        lambda: client.responses.create(model=MODEL, input=[item]),
        "input[0].content[0].type",
    )
    stranger = client.with_options(api_key="wrong")
    fails(openai.AuthenticationError, lambda: stranger.models.list())


def stops_reading():
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        stream=True,
        max_tokens=100_000,
        logit_bias={"2040": -100, "2041": -100, "2047": -100},
    )
    for _, _ in zip(range(10), stream):
        pass
    stream.close()


def main():
    assert "OPENAI_BASE_URL" in os.environ, "OPENAI_BASE_URL names the server"
    tests = [
        models,
        chat,
        chat_streams,
        chat_tools,
        chat_schema,
        completion,
        responses,
        responses_stream,
        responses_tools,
        errors,
        stops_reading,
        chat,
    ]
    for test in tests:
        test()
        print(f"openai {openai.__version__}: {test.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
