"""The provider's settings. What is unset is as for the `score` command: its variables, its configuration file, its defaults.

Annotations are read by Snakemake as they stand, so they are no strings, and `Optional` is the form that it knows.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Optional

from snakemake_interface_storage_plugins.settings import StorageProviderSettingsBase

_OURS: Final = ("max_requests_per_second", "parallel", "register", "reference", "profile")
_OF_ANY_PROVIDER: Final = {"keep_local", "retrieve"}  # Snakemake's, which it leaves among ours
_MOST_FILES: Final = 64


def _setting(help_text: str, *, default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **more})


@dataclass
class StorageProviderSettings(StorageProviderSettingsBase):
    """Fields are options (`--storage-score-url`), settings of a `storage` directive, and for some environment variables."""

    url: Optional[str] = _setting("The Score server.", metavar="URL")
    store: Optional[str] = _setting("A bucket or folder to use without a server: s3://bucket or file:///folder.", metavar="URL")
    metadata_url: Optional[str] = _setting("The Song server; needless where the Score server keeps metadata, too.", metavar="URL")
    token: Optional[str] = field(
        default=None,
        repr=False,
        metadata={
            "help": "The token. Set the environment variable, never the option: Snakemake writes its command line into its log.",
            "env_var": True,
            "metavar": "TOKEN",
        },
    )
    token_file: Optional[Path] = _setting("A file that holds the token.", env_var=True, metavar="FILE")
    profile: Optional[str] = _setting("The profile of score's configuration file to use.", metavar="NAME")
    parallel: int = _setting("Files transferred at once.", default=4, metavar="FILES")
    workers: Optional[int] = _setting("Parts of all files transferred at once.", metavar="PARTS")
    attempts: Optional[int] = _setting("Tries of one part, the first included.", metavar="TRIES")
    validation: Optional[str] = _setting(
        "How downloads are proven by their MD5s: auto, parts, whole, both or off.", choices=["auto", "parts", "whole", "both", "off"]
    )
    ca_file: Optional[Path] = _setting("Certificate authorities (PEM) instead of the system's.", metavar="FILE")
    register: bool = _setting(
        "Register outputs score://STUDY/ANY/PATH/NAME that are not registered yet, each as an analysis of its own, and publish them.",
        default=False,
    )
    reference: Optional[Path] = _setting("The FASTA file, with its .fai, of CRAM files that regions are read from.", metavar="FILE")

    def problem(self) -> str | None:
        """What is wrong with the provider's own settings, None if nothing is: a `storage` directive takes any value."""
        unknown = sorted(vars(self).keys() - type(self).__dataclass_fields__.keys() - _OF_ANY_PROVIDER)
        if unknown:
            known = ", ".join(type(self).__dataclass_fields__)
            return f"{unknown[0]!r} is no setting; there are {known}"
        if type(self.parallel) is not int or not 1 <= self.parallel <= _MOST_FILES:
            return f"parallel must be a number of files, 1 to {_MOST_FILES}, got {self.parallel!r}"
        if type(self.register) is not bool:
            return f"register must be True or False, got {self.register!r}"
        return None

    def flags(self) -> dict[str, str]:
        """What is set of score's own settings, as `score_core.settings.load` takes it."""
        given = {name: value for name, value in vars(self).items() if name not in _OURS and value is not None}
        return {name: str(value) for name, value in given.items() if name in type(self).__dataclass_fields__}
