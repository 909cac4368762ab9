"""LangChain's ChatOpenAI against a running server: invoke, stream, and its context-overflow class."""

import asyncio

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from checks import arguments, call, check, equal

MESSAGES = [SystemMessage("You are a helpful assistant."), HumanMessage("What is 12 + 30?")]


def main():
    args = arguments(__doc__)
    chat = ChatOpenAI(base_url=f"{args.url}/v1", api_key=args.api_key or "none", model=args.model, temperature=0,
                      max_completion_tokens=40, timeout=300)

    answer = chat.invoke(MESSAGES)
    check("invoke returns a text", bool(answer.content), answer)
    usage = answer.usage_metadata
    equal("usage adds up", usage["input_tokens"] + usage["output_tokens"], usage["total_tokens"])
    check("finish reason", answer.response_metadata["finish_reason"] in ("stop", "length"), answer.response_metadata)
    equal("the model names itself", answer.response_metadata["model_name"], args.model)
    if args.bundled:
        check("the sum is right", "42" in answer.content, answer.content)

    total = None
    for chunk in chat.stream(MESSAGES, stream_usage=True):
        total = chunk if total is None else total + chunk
    equal("the stream adds up to the answer", total.content, answer.content)
    equal("and to its usage", total.usage_metadata["total_tokens"], usage["total_tokens"])
    equal("finish reason of the stream", total.response_metadata["finish_reason"],
          answer.response_metadata["finish_reason"])
    equal("ainvoke answers the same", asyncio.run(chat.ainvoke(MESSAGES)).content, answer.content)
    equal("a batch answers the same", {each.content for each in chat.batch([MESSAGES] * 3)}, {answer.content})

    limit = next(model for model in call(args, "/v1/models")["data"] if model["id"] == args.model)["max_model_len"]
    too_long = [HumanMessage("word " * (2 * limit))]
    for name, run in (("invoke", lambda: chat.invoke(too_long)), ("stream", lambda: list(chat.stream(too_long)))):
        try:
            run()
            check(f"{name} overflows", False, "no error")
        except ContextOverflowError as error:
            check(f"{name} raises LangChain's overflow class", "maximum context length" in str(error), str(error))


if __name__ == "__main__":
    main()
