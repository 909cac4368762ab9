"""The chat page in headless Chromium, driven over the DevTools protocol and compared with the API."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request

import websocket

from checks import arguments, call, check, equal, require

QUESTION = "What is 12 + 30?"
SYSTEM = "You are a helpful assistant."
MAX_TOKENS = 40
WAIT_S = 120


class Browser:
    """A headless Chromium with one tab."""

    def __init__(self, program):
        self.profile = tempfile.mkdtemp(prefix="octet-page-")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--remote-debugging-port=0", f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = os.path.join(self.profile, "DevToolsActivePort")
        deadline = time.monotonic() + WAIT_S
        while not (os.path.exists(port_file) and open(port_file).read().count("\n")):
            require("Chromium starts", self.process.poll() is None and time.monotonic() < deadline)
            time.sleep(0.05)
        port = open(port_file).read().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_S) as response:
            tab = next(tab for tab in json.load(response) if tab["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], suppress_origin=True, timeout=WAIT_S)
        self.ids = itertools.count(1)
        self.requests = []
        self.exceptions = []
        # What the console shows, a breach of the page's own policy among it.
        self.messages = []
        self.on_paused = None
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=WAIT_S)
        shutil.rmtree(self.profile, ignore_errors=True)

    def post(self, method, **params):
        """Sends a command without waiting for its result; returns the id."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        return number

    def send(self, method, **params):
        """Sends a command and returns its result; events that arrive meanwhile are kept."""
        number = self.post(method, **params)
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                require(method, "error" not in message, message.get("error"))
                return message["result"]
            self.event(message.get("method"), message.get("params", {}))

    def event(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"])
        elif method == "Runtime.exceptionThrown":
            self.exceptions.append(params["exceptionDetails"])
        elif method == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append([value.get("value") for value in params["args"]])
        elif method == "Fetch.requestPaused":
            self.on_paused(params)

    def js(self, expression):
        """The value of an expression in the page; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        require(expression, "exceptionDetails" not in result, result.get("exceptionDetails"))
        return result["result"].get("value")

    def until(self, condition, then="true"):
        """Waits in the page for a condition on the DOM; evaluates `then` in the same turn."""
        value = self.js(
            "new Promise((resolve) => {"
            "  const start = performance.now();"
            "  const look = () => {"
            f"    if ({condition}) resolve([{then}]);"
            f"    else if (performance.now() - start > {WAIT_S * 1000}) resolve(null);"
            "    else setTimeout(look, 5);"
            "  };"
            "  look();"
            "})")
        if value is None:
            require(f"in time: {condition}", False, self.js("document.body.innerText"))
        return value[0]

    def fill(self, selector, text):
        """Replaces the text of a field as a person would, and leaves it."""
        self.js(f"(() => {{ const e = document.querySelector({selector!r}); e.focus(); e.select(); }})()")
        if text:
            self.send("Input.insertText", text=text)
        else:
            self.key("Delete", 46)
        self.js("document.activeElement.blur()")

    def key(self, key, code, text=None, modifiers=0):
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      modifiers=modifiers, **extra)

    def view(self, width, height, scheme, mobile=False, scale=None):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale or (2 if mobile else 1), mobile=mobile)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path, form="png", **options):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.send("Page.captureScreenshot", format=form, **options)["data"]))


class ChatPage:
    """What a person does on the page."""

    DONE = "document.querySelector('.turn:last-child.assistant.done')"
    TEXT = "document.querySelector('.turn:last-child .text').textContent"

    def __init__(self, browser, args):
        self.browser = browser
        self.args = args

    def open(self):
        self.browser.send("Page.navigate", url=f"{self.args.url}/")
        self.browser.until("document.readyState === 'complete' && document.querySelector('#model option')")
        if self.args.api_key:
            self.browser.until("document.querySelector('#model').textContent.includes('API key needed')")
            check("without a key the page asks for one", not self.browser.js("document.querySelector('#settings').hidden"))
            self.browser.fill("#key", self.args.api_key)
        self.browser.until(f"document.querySelector('#model').value === {json.dumps(self.args.model)}")

    def settings(self, **values):
        if self.browser.js("document.querySelector('#settings').hidden"):
            self.browser.js("document.querySelector('#toggle').click()")
        for name, value in values.items():
            self.browser.fill(f"#{name}", value)
        self.browser.js("document.querySelector('#toggle').click()")

    def ask(self, text):
        self.browser.js("document.querySelector('#input').focus()")
        self.browser.send("Input.insertText", text=text)
        self.browser.key("Enter", 13, text="\r")

    def answer(self, text):
        """Asks, waits for the end and returns the text shown."""
        self.ask(text)
        self.browser.until(self.DONE)
        return self.browser.js(self.TEXT)

    def sent(self):
        """The body of the latest chat request."""
        return next(json.loads(request["postData"]) for request in reversed(self.browser.requests)
                    if request["url"].endswith("/v1/chat/completions"))

    def stat(self, name):
        return self.browser.js(f"document.querySelector('.turn:last-child [data-stat={name}]')?.textContent ?? ''")


def plain(text):
    """Text without the marks that the page draws instead of showing, and without white space at line ends."""
    text = re.sub(r"(?m)^```.*$", "", text)
    return re.sub(r"\s+", " ", re.sub(r"[*`]", "", text)).strip()


def greedy(args, messages):
    """The API's answer to what the page sends at temperature 0."""
    body = {"model": args.model, "messages": messages, "temperature": 0, "max_completion_tokens": MAX_TOKENS}
    answer = call(args, "/v1/chat/completions", body)
    return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]


def answers(page, args):
    """Two turns, compared with the API, and what the page sent for them."""
    page.settings(temperature="0", max_tokens=str(MAX_TOKENS), system=SYSTEM)
    messages = [{"role": "system", "content": SYSTEM}]
    for question in (QUESTION, "Thank you. And what is 3 + 4?"):
        messages.append({"role": "user", "content": question})
        shown = page.answer(question)
        expected, tokens = greedy(args, messages)
        equal(f"the streamed answer is the API's: {question}", plain(shown), plain(expected))
        messages.append({"role": "assistant", "content": expected})
        check("TTFT is shown", re.fullmatch(r"TTFT (\d+ ms|\d+\.\d s)", page.stat("ttft")), page.stat("ttft"))
        check("tokens/s is shown", re.fullmatch(r"\d+(\.\d)? tokens/s", page.stat("rate")), page.stat("rate"))
        equal("the number of tokens is the API's", page.stat("tokens"), f"{tokens} token{'' if tokens == 1 else 's'}")
        if args.bundled and question == QUESTION:
            check("the sum is right", "42" in shown, shown)
    body = page.sent()
    equal("every turn and the system prompt are sent", body["messages"], messages[:-1])
    equal("temperature is sent", body["temperature"], 0)
    equal("the token limit is sent", body["max_completion_tokens"], MAX_TOKENS)
    equal("the model is sent", body["model"], args.model)


def stopping(page, browser, args):
    """A generation that would fill the context is stopped by the button and by Escape."""
    page.settings(max_tokens="")

    def endless(event):
        body = dict(json.loads(event["request"]["postData"]), ignore_eos=True)
        browser.post("Fetch.continueRequest", requestId=event["requestId"],
                     postData=base64.b64encode(json.dumps(body).encode()).decode())

    stops = {
        "the Stop button": "document.querySelector('#go').click()",
        "Escape": "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))",
    }
    for name, stop in stops.items():
        browser.js("document.querySelector('#clear').click()")
        browser.on_paused = endless
        browser.send("Fetch.enable", patterns=[{"urlPattern": "*/v1/chat/completions"}])
        page.ask("Tell me a long story.")
        # Read and stopped in one turn of the page, so that no fast model finishes in between.
        label = browser.until("document.querySelector('.turn.assistant .text')?.textContent.length > 0",
                              f"(() => {{ const label = document.querySelector('#go').textContent; {stop}; return label; }})()")
        equal("the button reads Stop while an answer streams", label, "Stop")
        browser.until(page.DONE)
        browser.send("Fetch.disable")
        equal(f"{name} stops the answer", page.stat("note"), "stopped")
        check(f"{name} keeps the text so far", len(browser.js(page.TEXT)) > 0)
    page.settings(max_tokens=str(MAX_TOKENS))
    browser.js("document.querySelector('#clear').click()")
    equal("clear empties the conversation", browser.js("document.querySelectorAll('.turn').length"), 0)
    expected, _ = greedy(args, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}])
    equal("after a stop the page answers as before", plain(page.answer(QUESTION)), plain(expected))


def errors(page, browser, args):
    """An error status, an error inside the stream, a cut stream: each is shown, none ends the page."""
    page.settings(system="word " * 40_000)
    page.answer(QUESTION)
    text = browser.js("document.querySelector('.turn:last-child .error')?.textContent ?? ''")
    check("the server's error is shown", "maximum context length" in text, text)
    page.settings(system=SYSTEM)

    def chunk(delta):
        return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) + "\n\n"

    failure = "data: " + json.dumps({"error": {"message": "the engine stopped while generating", "code": "x"}}) + "\n\n"
    start = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Half an "})
    for name, stream, shown in (
        ("an error event", start + failure + "data: [DONE]\n\n", "the engine stopped while generating"),
        ("a cut stream", start, "the connection ended before the answer did"),
    ):
        browser.on_paused = lambda event: browser.post(
            "Fetch.fulfillRequest", requestId=event["requestId"], responseCode=200,
            responseHeaders=[{"name": "Content-Type", "value": "text/event-stream"}],
            body=base64.b64encode(stream.encode()).decode())
        browser.send("Fetch.enable", patterns=[{"urlPattern": "*/v1/chat/completions"}])
        equal(f"{name} keeps the text so far", page.answer("Half?"), "Half an ")
        browser.send("Fetch.disable")
        equal(f"{name} is shown", browser.js("document.querySelector('.turn:last-child .error').textContent"), shown)
    browser.js("document.querySelector('#clear').click()")
    expected, _ = greedy(args, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}])
    equal("after errors the page answers as before", plain(page.answer(QUESTION)), plain(expected))


def parsing(browser):
    """The page's own stream parser and text rendering on hostile input."""
    stream = ": ping\r\n\r\ndata: {\"a\":\"é😀\"}\r\n\r\ndata: one\ndata: two\n\nevent: x\ndata:[DONE]\n\n"
    for size in (1, 2, 3, 7, 1000):
        seen = browser.js(
            "(async () => {"
            f"  const bytes = new TextEncoder().encode({json.dumps(stream)});"
            "  let at = 0; const out = [];"
            "  const body = new ReadableStream({ pull(c) { if (at < bytes.length) {"
            f"    c.enqueue(bytes.slice(at, at + {size})); at += {size}; }} else c.close(); }} }});"
            "  for await (const event of events(body)) out.push(event);"
            "  return out; })()")
        equal(f"events cut into pieces of {size} bytes", seen, ['{"a":"é😀"}', "one\ntwo", "[DONE]"])
    hostile = "<img src=x onerror=alert(1)> **bold** `x<y` *\n```html\n<script>1</script>\n```\nend <i>x</i>"
    html = browser.js(f"(() => {{ const e = document.createElement('div'); render(e, {json.dumps(hostile)}); return e.innerHTML; }})()")
    equal("text is never read as HTML", html,
          "&lt;img src=x onerror=alert(1)&gt; <strong>bold</strong> <code>x&lt;y</code> *\n"
          "<pre><code>&lt;script&gt;1&lt;/script&gt;</code></pre>end &lt;i&gt;x&lt;/i&gt;")


def keyboard(page, browser):
    """Shift+Enter starts a line, Edit brings a question back."""
    browser.js("document.querySelector('#clear').click()")
    page.browser.send("Input.insertText", text="one")
    browser.key("Enter", 13, text="\r", modifiers=8)
    browser.send("Input.insertText", text="<b>two</b>")
    equal("Shift+Enter starts a new line", browser.js("document.querySelector('#input').value"), "one\n<b>two</b>")
    browser.key("Enter", 13, text="\r")
    browser.until(page.DONE)
    equal("a question is shown as typed", browser.js("document.querySelector('.user .text').textContent"), "one\n<b>two</b>")
    browser.js("document.querySelector('.user .foot button').click()")
    equal("Edit brings the question back", browser.js("document.querySelector('#input').value"), "one\n<b>two</b>")
    equal("and takes it out of the conversation", browser.js("document.querySelectorAll('.turn').length"), 0)
    browser.fill("#input", "")
    unlabelled = browser.js(
        "[...document.querySelectorAll('button, input, select, textarea')]"
        ".filter((e) => !(e.textContent.trim() && e.tagName === 'BUTTON') && !e.ariaLabel && !e.labels?.length).map((e) => e.id)")
    equal("every control has a label", unlabelled, [])


def looks(page, browser, folder):
    """Both schemes and phone width: nothing overflows; pictures are kept when a folder is given."""
    page.answer(QUESTION)
    page.answer("Give me a JSON object with name Anna and age 30.")
    for name, width, height, scheme, mobile in (
        ("desktop-light", 1280, 800, "light", False),
        ("desktop-dark", 1280, 800, "dark", False),
        ("phone-light", 390, 844, "light", True),
        ("phone-dark", 320, 568, "dark", True),
    ):
        browser.view(width, height, scheme, mobile)
        for state in ("chat", "settings"):
            if state == "settings":
                browser.js("document.querySelector('#toggle').click()")
            wide = browser.js("[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1"
                              " && !e.closest('pre, .sr, #model')).map((e) => e.outerHTML.slice(0, 80))")
            equal(f"{name} {state}: nothing is wider than the window", wide, [])
            if folder:
                browser.screenshot(os.path.join(folder, f"{name}-{state}.png"))
        browser.js("document.querySelector('#toggle').click()")
    browser.view(1280, 800, "light")
    browser.js("document.querySelector('#clear').click()")
    if folder:
        browser.screenshot(os.path.join(folder, "welcome.png"))


def main():
    args = arguments(__doc__, ("--chromium", {"default": "chromium", "help": "the browser to start"}),
                     ("--screenshots", {"help": "folder for pictures of the page"}))
    if args.screenshots:
        os.makedirs(args.screenshots, exist_ok=True)
    browser = Browser(args.chromium)
    try:
        browser.view(1280, 800, "light")
        page = ChatPage(browser, args)
        page.open()
        parsing(browser)
        answers(page, args)
        stopping(page, browser, args)
        errors(page, browser, args)
        keyboard(page, browser)
        looks(page, browser, args.screenshots)
        outside = [r["url"] for r in browser.requests if not r["url"].startswith((args.url + "/", "data:", "about:"))]
        equal("nothing is loaded from elsewhere", outside, [])
        equal("no script error", browser.exceptions, [])
    finally:
        browser.close()


if __name__ == "__main__":
    main()
