"""One transfer in a process of its own, for tests to kill: driver.py upload|download FOLDER BASE_URL OBJECT_ID."""

import signal
import sys
from pathlib import Path
from types import FrameType

from score_core.checksum import md5_hex
from score_core.errors import Interrupted
from score_core.repository.direct import DirectRepository
from score_core.stores.local import LocalStore
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport


def main(way: str, folder: Path, base_url: str, object_id: str) -> int:
    repository = DirectRepository(LocalStore(folder / "bucket", base_url=base_url), part_size_bytes=64 << 10)
    engine = Engine(repository, HttpTransport(connections=4), workers=4)

    def stop(number: int, _: FrameType | None) -> None:
        engine.stop.set(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        if way == "upload":
            source = folder / "source.bam"
            engine.upload(source, object_id, md5=md5_hex(source.read_bytes()))
        else:
            engine.download(repository.describe(object_id), folder / "out" / "x.bam")
    except Interrupted as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
