"""What travels: the messages as msgspec structs, their encoding and decoding (docs/wire.rst)."""
