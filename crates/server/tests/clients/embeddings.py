"""The OpenAI SDK and LangChain's OpenAIEmbeddings against a server with an embedding model."""

import base64
import math
import struct

import openai
import tiktoken
from langchain_openai import OpenAIEmbeddings

from checks import arguments, call, check, equal

TEXTS = ["A cat sits on the mat.", "A kitten is resting on a rug.", "The stock market fell by three percent."]


class Bytes:
    """An encoding that needs no download: the id of a byte is any that the model knows."""

    @staticmethod
    def encode_ordinary(text):
        return [2000 + byte for byte in text.encode()]

    encode = encode_ordinary


def near(a, b):
    return len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-5) for x, y in zip(a, b))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def sdk(client, args, model):
    # The SDK asks for base64 unless told otherwise, and hands out floats.
    answer = client.embeddings.create(model=model, input=TEXTS)
    equal("indices", [entry.index for entry in answer.data], [0, 1, 2])
    equal("the model names itself", answer.model, model)
    check("usage counts", 0 < answer.usage.prompt_tokens == answer.usage.total_tokens, answer.usage)
    cat, kitten, market = vectors = [entry.embedding for entry in answer.data]
    check("vectors have length one", all(math.isclose(dot(v, v), 1, abs_tol=1e-4) for v in vectors))
    check("meaning is nearer than words", dot(cat, kitten) > 0.4 > dot(cat, market), (dot(cat, kitten), dot(cat, market)))
    floats = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    check("floats are the same", all(near(a.embedding, b) for a, b in zip(floats.data, vectors)))
    raw = call(args, "/v1/embeddings", {"input": TEXTS[0], "model": model, "encoding_format": "base64"})
    packed = base64.b64decode(raw["data"][0]["embedding"])
    check("base64 is little-endian", near(struct.unpack(f"<{len(cat)}f", packed), cat))
    many = client.embeddings.create(model=model, input=[TEXTS[i % 3] for i in range(300)])
    check("a text among many has its vector", all(near(many.data[i].embedding, vectors[i % 3]) for i in range(300)))
    for wrong in ({"input": "word " * 5000}, {"input": [[2**31]]}, {"input": "a", "dimensions": 8}):
        try:
            client.embeddings.create(model=model, **wrong)
            check("refused", False, wrong)
        except openai.BadRequestError as error:
            check("a mistake is a 400 that names the field", error.param is not None, error)


def langchain(client, args, model):
    known = {"base_url": f"{args.url}/v1", "api_key": args.api_key or "none", "model": model}
    plain = OpenAIEmbeddings(**known, check_embedding_ctx_length=False)
    vectors = [entry.embedding for entry in client.embeddings.create(model=model, input=TEXTS).data]
    check("texts", all(near(a, b) for a, b in zip(plain.embed_documents(TEXTS), vectors)))
    check("a query", near(plain.embed_query(TEXTS[1]), vectors[1]))
    # Its default sends token ids of OpenAI's own tokenizer, which would be fetched from outside.
    tiktoken.encoding_for_model = lambda name: Bytes
    ids = [Bytes.encode_ordinary(text) for text in TEXTS]
    expected = [entry.embedding for entry in client.embeddings.create(model=model, input=ids).data]
    check("token ids", all(near(a, b) for a, b in zip(OpenAIEmbeddings(**known).embed_documents(TEXTS), expected)))


def main():
    args = arguments(__doc__)
    # Beside a language model the embedding model is listed last.
    model = call(args, "/v1/models")["data"][-1]["id"]
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key or "none")
    sdk(client, args, model)
    langchain(client, args, model)


if __name__ == "__main__":
    main()
