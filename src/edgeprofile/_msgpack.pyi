from typing_extensions import Buffer

def pack(json: Buffer) -> bytes:
    """A JSON text as MessagePack, in the smallest forms. Raises RecordDamaged for what is no JSON.

    Integers stay integers where 64 bits hold them, signed or not. Every other number becomes the nearest double,
    which past their range is infinity. A surrogate without its other half becomes U+FFFD.
    """
