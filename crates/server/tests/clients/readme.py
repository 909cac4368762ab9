"""The README's Python examples, run as they stand against another address."""

import contextlib
import io
import pathlib
import re

from checks import arguments, check, require

ADDRESS = "http://127.0.0.1:8000"


def main():
    args = arguments(__doc__)
    readme = pathlib.Path(__file__).parents[4] / "README.md"
    examples = re.findall(r"(?ms)^```python\n(.*?)^```$", readme.read_text(encoding="utf-8"))
    require("the README has Python examples", examples)
    for example in examples:
        first = example.splitlines()[0]
        require(f"{first}: names the address", ADDRESS in example, example)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(example.replace(ADDRESS, args.url), {})
        check(f"{first}: prints an answer", output.getvalue().strip(), output.getvalue())


if __name__ == "__main__":
    main()
