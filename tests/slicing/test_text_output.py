"""What can be asked of a slice that is written as text."""

from pathlib import Path

import pytest

from score_core.errors import ConfigurationError
from score_core.slicing.objects import view_file
from score_core.slicing.view import Form, Wanted

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(("name", "region", "better"), [("range.bam", "CHROMOSOME_II", "bam"), ("ex1.vcf.gz", "chr1", "vcf.gz")])
def test_index_of_text_is_refused(tmp_path, name, region, better):
    with pytest.raises(ConfigurationError, match=f"There is no index of .* output: .* {better}"):
        view_file(DATA / name, None, Wanted((region,)), Form(index=True), tmp_path)

    assert list(tmp_path.iterdir()) == []
