"""Every JSON file that loadtest wrote against its schema, which knows all keys that there can be."""

import argparse
import json
import pathlib

import jsonschema

from checks import check, require

NAMES = ["run", "search", "index", "summary"]


def reads_as(schema, value):
    """Where a value is not what its schema says."""
    return [f"{e.json_path}: {e.message[:200]}" for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", required=True, type=pathlib.Path, help="folder with the schemas")
    parser.add_argument("results", nargs="+", type=pathlib.Path, help="folders with results")
    args = parser.parse_args()
    for name in NAMES:
        schema = json.loads((args.schemas / f"{name}.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        files = [file for folder in args.results for file in sorted(folder.rglob(f"{name}.json"))]
        require(f"there is a {name}.json", files)
        for file in files:
            found = reads_as(schema, json.loads(file.read_text()))
            check(f"{file.parent.name}/{file.name} is as its schema says", not found, found)
        value = json.loads(files[0].read_text())
        check(f"{name}: a key that the schema does not know is found", reads_as(schema, value | {"new": 1}))
        del value["kind"]
        check(f"{name}: a key that is missing is found", reads_as(schema, value))


if __name__ == "__main__":
    main()
