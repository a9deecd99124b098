"""Object ids: the UUIDs that Song gives to files (protocol sections 10.3 and 21.24)."""

from __future__ import annotations

import re
import uuid
from typing import Final

from score_core.errors import ConfigurationError

_SONG_NAMESPACE: Final = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
_UUID: Final = re.compile(r"[0-9a-fA-F]{1,8}-[0-9a-fA-F]{1,4}-[0-9a-fA-F]{1,4}-[0-9a-fA-F]{1,4}-[0-9a-fA-F]{1,12}")


def check_object_id(text: str) -> str:
    """`text` in lower case if it is a UUID, in Java's lenient sense: five groups of hex digits of any length up to the usual (21.24).

    Ids differ by more than case: else two spellings of one id would be two objects.

    Raises:
        ConfigurationError: it is not.
    """
    if _UUID.fullmatch(text) is None:
        raise ConfigurationError(
            f"{text[:80]!r} is not an object id: that is a UUID such as 3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11, which Song gives to each file"
        )
    return text.lower()


def is_object_id(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def object_id_of(analysis_id: str, file_name: str) -> str:
    """The id that Song gives to a file of an analysis: UUID version 5 of `<analysis id>:<file name>` (protocol section 10.3)."""
    return str(uuid.uuid5(_SONG_NAMESPACE, f"{analysis_id}:{file_name}"))
