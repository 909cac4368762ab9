"""The README's pictures, in light and dark: of a conversation on the chat page, or of any other page."""

import argparse

from checks import call
from page import Browser, ChatPage

QUESTIONS = ("What is 12 + 30?", "Which day comes after Monday?", "Give me a JSON object with name Anna and age 30.")
SCALE = 1.5


def chat(browser, args):
    """A conversation that the bundled model is sure of."""
    page = ChatPage(browser, args)
    page.open()
    page.settings(temperature="0")
    for question in QUESTIONS:
        page.answer(question)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="server whose chat page is drawn")
    parser.add_argument("--page", help="address of another page to draw instead")
    parser.add_argument("--out", required=True, help="the pictures become OUT-light.webp and OUT-dark.webp")
    parser.add_argument("--size", default="1120x700", help="width and height of the window")
    parser.add_argument("--chromium", default="chromium", help="the browser to start")
    args = parser.parse_args()
    args.api_key = None
    width, height = map(int, args.size.split("x"))
    browser = Browser(args.chromium)
    try:
        browser.view(width, height, "light", scale=SCALE)
        browser.send("Emulation.setScrollbarsHidden", hidden=True)
        if args.page:
            browser.send("Page.navigate", url=args.page)
            browser.until("document.readyState === 'complete'")
        else:
            args.model = call(args, "/v1/models")["data"][0]["id"]
            chat(browser, args)
        for scheme in ("light", "dark"):
            browser.view(width, height, scheme, scale=SCALE)
            browser.screenshot(f"{args.out}-{scheme}.webp", "webp", quality=90)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
