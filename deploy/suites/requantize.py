"""Writes the matrices of a GGUF file as Q8_0, from whatever blocks they are in.

python requantize.py IN.gguf OUT.gguf (needs the package gguf)
"""

import pathlib
import sys

import gguf
import numpy as np

Q8_0 = gguf.GGMLQuantizationType.Q8_0
# The container's own keys, and those that say how the weights were stored.
OWN = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def metadata(reader, writer):
    """Copies every key but those that are about the file."""
    for name, field in reader.fields.items():
        if name.startswith(OWN):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, element)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def tensors(reader, writer):
    """Vectors stay floats; what is stored in Q8_0 stays as it is."""
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        if tensor.tensor_type == Q8_0:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=Q8_0)
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        if len(shape) == 2:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(tensor.name, values)


def main():
    source, target = map(pathlib.Path, sys.argv[1:3])
    reader = gguf.GGUFReader(source)
    partial = target.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, reader.fields["general.architecture"].contents())
    metadata(reader, writer)
    tensors(reader, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


if __name__ == "__main__":
    main()
