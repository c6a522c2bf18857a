import gzip

import pytest

from nnunetv2_plgcl.datasets.integrity import require_whole


@pytest.fixture
def whole(tmp_path):
    file = tmp_path / "image.nii.gz"
    file.write_bytes(gzip.compress(bytes(range(256)) * 1000))
    require_whole(file)
    return file


@pytest.mark.parametrize("kept", [50, -1, -5])
def test_a_truncated_file_is_named(whole, kept):
    whole.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ValueError, match="image.nii.gz is truncated"):
        require_whole(whole)


def test_a_changed_byte_is_noticed(whole):
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    whole.write_bytes(content)
    with pytest.raises(ValueError, match="image.nii.gz is (damaged|truncated)"):
        require_whole(whole)


def test_another_kind_of_file_is_named(whole):
    whole.write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match="image.nii.gz is damaged or no gzip file"):
        require_whole(whole)
    whole.write_bytes(b"")
    with pytest.raises(ValueError, match="image.nii.gz is empty"):
        require_whole(whole)
    whole.unlink()
    with pytest.raises(ValueError, match="image.nii.gz is missing"):
        require_whole(whole)


def test_other_formats_are_left_to_their_readers(tmp_path):
    (tmp_path / "a.png").write_bytes(b"anything")
    require_whole(tmp_path / "a.png")
