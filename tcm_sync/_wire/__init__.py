"""The messages of the protocol as msgspec structs, their encoding and decoding (docs/wire.rst).

What sends and receives them does not belong here (`tcm_sync._transport`), nor does the JSON of tensors
(`tcm_sync._tensors`).
"""
