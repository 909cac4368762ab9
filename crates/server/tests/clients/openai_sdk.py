"""The official OpenAI Python SDK against a running server: answers, streams, log-probabilities, errors."""

import asyncio

import httpx2
import openai

from checks import arguments, check, equal

PROMPT = "The sea is"
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
GREEDY = {"temperature": 0, "max_completion_tokens": 32}
# Long enough for stop strings, also where the model would end early.
ENDLESS = {"extra_body": {"ignore_eos": True}}


class Suite:
    """One client that counts the requests it really makes."""

    def __init__(self, args):
        self.args = args
        self.model = args.model
        self.requests = 0
        self.client = self.connect(args.api_key or "none")
        self.chat = self.client.chat.completions
        self.completions = self.client.completions

    def connect(self, key):
        def count(_request):
            self.requests += 1

        http = httpx2.Client(event_hooks={"request": [count]}, timeout=300)
        return openai.OpenAI(base_url=f"{self.args.url}/v1", api_key=key, http_client=http)

    # ---- models

    def models(self):
        listed = self.client.models.list().data
        check("models.list names the model", self.model in [model.id for model in listed], listed)
        model = self.client.models.retrieve(self.model)
        equal("models.retrieve returns it", (model.id, model.object), (self.model, "model"))
        check("created is whole seconds", isinstance(model.created, int) and model.created < 10**11, model.created)
        check("max_model_len is told", model.max_model_len > 0, model)
        equal("created stays the same", self.client.models.retrieve(self.model).created, model.created)
        self.max_model_len = model.max_model_len

    # ---- chat

    def chat_answer(self):
        answer = self.chat.create(model=self.model, messages=QUESTION, **GREEDY)
        choice, usage = answer.choices[0], answer.usage
        check("the id names its kind", answer.id.startswith("chatcmpl-"), answer.id)
        equal("object and model", (answer.object, answer.model), ("chat.completion", self.model))
        equal("role", choice.message.role, "assistant")
        check("finish reason", choice.finish_reason in ("stop", "length"), choice.finish_reason)
        check("there is a text", bool(choice.message.content), answer)
        check("no tool calls key", not choice.message.tool_calls, choice.message)
        equal("usage adds up", usage.prompt_tokens + usage.completion_tokens, usage.total_tokens)
        check("usage counts", usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 32, usage)
        check("system_fingerprint", bool(answer.system_fingerprint), answer)
        if self.args.bundled:
            check("the sum is right", "42" in choice.message.content, choice.message.content)
        parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "12 + 30?"}]}]
        joined = self.chat.create(model=self.model, messages=parts, **GREEDY).choices[0].message.content
        equal("text parts are joined", joined, choice.message.content)
        old = self.chat.create(model=self.model, messages=QUESTION, temperature=0, max_tokens=32)
        equal("max_tokens is the same limit", old.choices[0].message.content, choice.message.content)
        one = self.chat.create(model=self.model, messages=QUESTION, temperature=0, max_completion_tokens=1, **ENDLESS)
        equal("a limit of one token", (one.usage.completion_tokens, one.choices[0].finish_reason), (1, "length"))
        raw = self.chat.with_raw_response.create(model=self.model, messages=QUESTION, **GREEDY)
        check("x-request-id is set", bool(raw.headers.get("x-request-id")), dict(raw.headers))
        return answer

    def chat_stream(self, whole):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(self.chat.create(model=self.model, messages=QUESTION, **GREEDY, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        equal("the stream adds up to the answer", text, whole.choices[0].message.content)
        equal("one id", len({(c.id, c.created, c.model, c.system_fingerprint) for c in chunks}), 1)
        equal("chunk object", {c.object for c in chunks}, {"chat.completion.chunk"})
        roles = [chunk.choices[0].delta.role for chunk in chunks if chunk.choices]
        equal("the role comes once, first", roles, ["assistant"] + [None] * (len(roles) - 1))
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        equal("one finish reason, last", ends, [None] * (len(ends) - 1) + [whole.choices[0].finish_reason])
        equal("the last chunk has usage and no choices", chunks[-1].choices, [])
        equal("its numbers are the answer's", (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens),
              (whole.usage.prompt_tokens, whole.usage.completion_tokens))
        equal("usage is null before", [c.usage for c in chunks[:-1] if c.usage is not None], [])
        plain = list(self.chat.create(model=self.model, messages=QUESTION, stream=True, **GREEDY))
        check("no usage unless asked", all(c.usage is None and c.choices for c in plain), plain[-1])
        empty = [c for c in plain[1:-1] if not c.choices[0].delta.content]
        equal("no empty deltas between first and last", empty, [])

    def helper(self, whole):
        with self.chat.stream(model=self.model, messages=QUESTION, n=2, **GREEDY) as stream:
            for _event in stream:
                pass
            final = stream.get_final_completion()
        equal(".stream() with n=2: indices", [choice.index for choice in final.choices], [0, 1])
        equal("roles are not doubled", {choice.message.role for choice in final.choices}, {"assistant"})
        equal("greedy choices are equal", {choice.message.content for choice in final.choices},
              {whole.choices[0].message.content})
        both = self.chat.create(model=self.model, messages=QUESTION, n=2, **GREEDY)
        equal("n=2 without a stream", [(c.index, c.message.content) for c in both.choices],
              [(i, whole.choices[0].message.content) for i in range(2)])
        equal("usage counts the prompt once and both answers",
              (both.usage.prompt_tokens, both.usage.completion_tokens),
              (whole.usage.prompt_tokens, 2 * whole.usage.completion_tokens))

    def chat_logprobs(self, whole):
        request = {"model": self.model, "messages": QUESTION, "logprobs": True, "top_logprobs": 3, **GREEDY}
        choice = self.chat.create(**request).choices[0]
        entries = choice.logprobs.content
        check("an entry for each token", whole.usage.completion_tokens - len(entries) in (0, 1), len(entries))
        joined = b"".join(bytes(entry.bytes or []) for entry in entries)
        check("bytes add up to the text", joined.startswith(choice.message.content.encode()), joined)
        check("log-probabilities are at most 0", all(entry.logprob <= 0 for entry in entries), entries)
        check("three alternatives, best first", all(
            len(e.top_logprobs) == 3 and e.top_logprobs == sorted(e.top_logprobs, key=lambda t: -t.logprob)
            for e in entries), entries[0])
        check("greedy takes the best", all(e.logprob == e.top_logprobs[0].logprob for e in entries), entries[0])
        streamed = [entry for chunk in self.chat.create(**request, stream=True) if chunk.choices[0].logprobs
                    for entry in chunk.choices[0].logprobs.content]
        equal("streamed log-probabilities are the same", streamed, entries)
        none = self.chat.create(**{**request, "top_logprobs": 0}).choices[0].logprobs.content
        check("top_logprobs 0 is an empty list", all(entry.top_logprobs == [] for entry in none), none[0])

    def seeds(self):
        def draw(seed, **more):
            answer = self.chat.create(model=self.model, messages=QUESTION, temperature=2, seed=seed,
                                      max_completion_tokens=24, **ENDLESS, **more)
            return [choice.message.content for choice in answer.choices]

        equal("a seed repeats its text", draw(7), draw(7))
        check("seeds differ", len({draw(seed)[0] for seed in range(8)}) > 1)
        choices = draw(7, n=8)
        equal("the first of n is what n=1 draws", choices[0], draw(7)[0])
        check("choices of one seed differ", len(set(choices)) > 1, choices[0])

    def stops(self):
        request = {"model": self.model, "messages": QUESTION, **GREEDY, **ENDLESS}
        text = self.chat.create(**request).choices[0].message.content
        middle = len(text) // 2
        for stop in (text[middle:middle + 1], text[middle:middle + 3], text[middle - 2:middle + 5]):
            cut = text[:text.index(stop)]
            choice = self.chat.create(**request, stop=["never in there", stop]).choices[0]
            equal(f"stop {stop!r} cuts before itself", (choice.message.content, choice.finish_reason), (cut, "stop"))
            equal("stop_reason names it", choice.stop_reason, stop)
            chunks = list(self.chat.create(**request, stop=stop, stream=True))
            equal("nothing of it leaks into a stream", "".join(c.choices[0].delta.content or "" for c in chunks), cut)
            equal("streamed finish reason", chunks[-1].choices[0].finish_reason, "stop")

    # ---- completions

    def text_completions(self):
        request = {"model": self.model, "prompt": PROMPT, "temperature": 0, "max_tokens": 16}
        whole = self.completions.create(**request)
        check("completion id and object", whole.id.startswith("cmpl-") and whole.object == "text_completion", whole)
        default = self.completions.create(model=self.model, prompt=PROMPT, temperature=0, **ENDLESS)
        equal("the default limit is 16 tokens", default.usage.completion_tokens, 16)
        chunks = list(self.completions.create(**request, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        equal("the completion stream adds up", text, whole.choices[0].text)
        equal("its usage too", chunks[-1].usage.total_tokens, whole.usage.total_tokens)
        equal("chunks have the same object", {chunk.object for chunk in chunks}, {"text_completion"})
        several = self.completions.create(**{**request, "prompt": [PROMPT, "One, two, three,"]}, n=2)
        equal("indices of two prompts, n=2", [choice.index for choice in several.choices], [0, 1, 2, 3])
        equal("each prompt has its own answer", [c.text for c in several.choices[:2]], [whole.choices[0].text] * 2)
        tokens = self.completions.create(**{**request, "prompt": [5, 6, 7, 8, 9]})
        equal("a prompt of token ids is taken as it is", tokens.usage.prompt_tokens, 5)
        lists = self.completions.create(**{**request, "prompt": [[5, 6, 7, 8, 9], [5, 6, 7]]})
        equal("lists of token ids", (lists.usage.prompt_tokens, lists.choices[0].text), (8, tokens.choices[0].text))
        logprobs = self.completions.create(**request, logprobs=2).choices[0].logprobs
        sizes = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)}
        equal("completion log-probabilities have one length", len(sizes), 1)
        check("tokens add up to the text", "".join(logprobs.tokens).startswith(whole.choices[0].text), logprobs.tokens)
        offsets = [len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]
        equal("text offsets count code points", logprobs.text_offset, offsets)

    # ---- errors

    def fails(self, name, kind, call, code, param=None, words=(), requests=1):
        """Checks the SDK's class, the envelope and how many requests were made."""
        self.requests = 0
        try:
            call()
            check(name, False, "no error")
        except openai.APIStatusError as error:
            equal(f"{name}: {kind.__name__}", type(error), kind)
            equal(f"{name}: code and param", (error.code, error.param), (code, param))
            check(f"{name}: message", all(word in str(error) for word in words), str(error))
            equal(f"{name}: number of requests", self.requests, requests)

    def errors(self):
        def chat(**fields):
            return lambda: self.chat.create(**{"model": self.model, "messages": QUESTION, "max_completion_tokens": 4, **fields})

        bad, missing = openai.BadRequestError, openai.NotFoundError
        self.fails("temperature 3", bad, chat(temperature=3), "decimal_above_max_value", "temperature", ("temperature", "2"))
        self.fails("no messages", bad, chat(messages=[]), "empty_array", "messages")
        self.fails("messages of the wrong type", bad, chat(messages="hi"), "invalid_type", "messages")
        self.fails("an unknown model", missing, chat(model="no-such-model"), "model_not_found", "model", (self.model,))
        self.fails("retrieve an unknown model", missing, lambda: self.client.models.retrieve("no-such-model"),
                   "model_not_found", "model")
        self.fails("an unknown URL", missing, lambda: self.client.get("/no/such/url", cast_to=object), "unknown_url")
        for name, fields in (
            ("stream_options without stream", {"stream_options": {"include_usage": True}}),
            ("top_logprobs without logprobs", {"top_logprobs": 2}),
            ("logit_bias outside the vocabulary", {"logit_bias": {"99999999": 1}}),
        ):
            self.requests = 0
            try:
                chat(**fields)()
                check(name, False, "no error")
            except bad as error:
                check(f"{name}: names its field", (error.param or "").startswith(next(iter(fields))), error.body)
                equal(f"{name}: number of requests", self.requests, 1)
        overflow = ("maximum context length", str(self.max_model_len), "prompt is too long", "context_length_exceeded")
        long = [{"role": "user", "content": "word " * (2 * self.max_model_len)}]
        self.fails("context overflow", bad, chat(messages=long), "context_length_exceeded", "messages", overflow)
        self.fails("context overflow in a stream", bad, chat(messages=long, stream=True), "context_length_exceeded",
                   "messages", overflow)
        self.fails("prompt and limit beyond the context", bad, chat(max_completion_tokens=self.max_model_len),
                   "context_length_exceeded", "messages", overflow[:2])
        if self.args.api_key:
            wrong = self.connect("wrong-key")
            self.fails("a wrong key", openai.AuthenticationError,
                       lambda: wrong.chat.completions.create(model=self.model, messages=QUESTION), "invalid_api_key")
            self.fails("a wrong key for the list", openai.AuthenticationError, wrong.models.list, "invalid_api_key")

    # ---- many at once

    def concurrent(self, whole):
        async def run():
            key = self.args.api_key or "none"
            async with openai.AsyncOpenAI(base_url=f"{self.args.url}/v1", api_key=key, timeout=300) as client:
                async def one(index):
                    if index % 2:
                        return (await client.chat.completions.create(
                            model=self.model, messages=QUESTION, **GREEDY)).choices[0].message.content
                    stream = await client.chat.completions.create(
                        model=self.model, messages=QUESTION, stream=True, **GREEDY)
                    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                return await asyncio.gather(*map(one, range(8)))

        equal("eight at once answer as one does", set(asyncio.run(run())), {whole.choices[0].message.content})


def main():
    suite = Suite(arguments(__doc__))
    suite.models()
    whole = suite.chat_answer()
    suite.chat_stream(whole)
    suite.helper(whole)
    suite.chat_logprobs(whole)
    suite.seeds()
    suite.stops()
    suite.text_completions()
    suite.errors()
    suite.concurrent(whole)


if __name__ == "__main__":
    main()
