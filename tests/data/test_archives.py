import io
import os
import stat
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpool_jax.data.archives import open_tree, read_file, read_tar
from flexpool_jax.errors import UserError


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def write_folder(path, entries):
    for name, content in entries.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content)
    return path


LEFTOVERS = {
    ".DS_Store": b"x",
    "a/._one.png": b"x",
    "__MACOSX/a/._one.png": b"x",
    "a/Thumbs.db": b"x",
    "a/desktop.ini": b"x",
    ".git/config": b"x",
}


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_files_and_folders_are_listed_without_what_systems_leave_behind(tmp_path, write):
    entries = {"b/two.png": b"22", "a/one.png": b"1", "a/deep/three.png": b"333", "empty/": b""}
    tree = open_tree(write(tmp_path / "tree", entries | LEFTOVERS))
    sizes = {name: size for name, (size, _) in tree.files.items()}
    assert list(sizes.items()) == [("a/deep/three.png", 3), ("a/one.png", 1), ("b/two.png", 2)]
    assert tree.folders == {"a", "a/deep", "b", "empty"}
    assert read_file(tree, "a/deep/three.png") == b"333"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.png", "climbs out of its folder"),
        ("a/../../evil.png", "climbs out of its folder"),
        ("/etc/evil.png", "is not a path inside the archive"),
        ("C:/evil.png", "is not a path inside the archive"),
        ("..\\evil.png", "is not a path inside the archive"),
        ("__MACOSX/../../evil", "climbs out of its folder"),
    ],
)
def test_an_entry_that_leaves_the_archive_is_refused_by_name(tmp_path, name, message):
    path = write_zip(tmp_path / "evil.zip", {"a/one.png": b"1", name: b"x"})
    with pytest.raises(UserError, match=message) as caught:
        open_tree(path)
    assert str(path) in str(caught.value)
    assert repr(name) in str(caught.value)


def test_links_and_encrypted_entries_are_refused(tmp_path):
    entry = zipfile.ZipInfo("a/link.png")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        open_tree(tmp_path / "link.zip")
    content = bytearray(write_zip(tmp_path / "locked.zip", {"a.png": b"1"}).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        open_tree(tmp_path / "locked.zip")


def test_two_entries_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.png", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", "2")
    with pytest.raises(UserError, match=r"two entries 'a.png'"):
        open_tree(tmp_path / "twice.zip")


def test_an_entry_that_claims_to_be_huge_is_refused(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", {"a.png": b"1"})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 24 : start + 28] = (2**31).to_bytes(4, "little")  # uncompressed size
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"has 2,147,483,648 bytes; at most 536,870,912"):
        open_tree(path)


def test_an_entry_that_lies_about_its_size_is_damaged(tmp_path):
    path = write_zip(tmp_path / "liar.zip", {"a.png": bytes(1000)})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 24 : start + 28] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*a.png"):
        read_file(open_tree(path), "a.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_entry_is_refused_whatever_compressed_it(tmp_path, method):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", bytes(range(256)) * 4)
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*a.png"):
        read_file(open_tree(path), "a.png")


@given(st.data())
def test_a_damaged_zip_is_refused_or_read_and_nothing_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    whole = write_zip(path, {"a.png": bytes(range(256)) * 4, "b.png": b"abc"}).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:position])
    else:
        flipped = whole[position] ^ data.draw(st.integers(1, 255))
        path.write_bytes(whole[:position] + bytes([flipped]) + whole[position + 1 :])
    try:
        tree = open_tree(path)
        contents = [read_file(tree, name) for name in tree.files]
    except UserError as error:
        assert "damaged.zip" in str(error)  # noqa: PT017
        return
    assert set(contents) <= {bytes(range(256)) * 4, b"abc"}


def test_what_is_neither_folder_nor_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no folder or zip archive .*missing"):
        open_tree(tmp_path / "missing")
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(UserError, match=r"text.zip is not a whole zip archive"):
        open_tree(tmp_path / "text.zip")


def test_a_named_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe.png is not a regular file"):
        open_tree(tmp_path)


def test_links_inside_a_folder_are_followed_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "elsewhere", {"one.png": b"1"})
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").symlink_to(tmp_path / "elsewhere")
    assert list(open_tree(tmp_path / "tree").files) == ["a/one.png"]
    (tmp_path / "tree" / "circle").symlink_to(tmp_path / "tree")
    with pytest.raises(UserError, match=r"circle links to a folder that it is in"):
        open_tree(tmp_path / "tree")


def test_a_tar_entry_too_large_for_memory_is_refused_without_being_read(tmp_path):
    info = tarfile.TarInfo("bomb")
    info.size = 10**12
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.fileobj.write(info.tobuf())
    (tmp_path / "bomb.tar.gz").write_bytes(packed.getvalue())
    with pytest.raises(UserError, match="has 1,000,000,000,000 bytes; at most"):
        read_tar(tmp_path / "bomb.tar.gz", ("bomb",))


@given(st.data())
def test_a_damaged_tar_is_refused_or_read_and_nothing_else(tmp_path_factory, data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in {"folder/file": bytes(range(256)) * 8, "folder/other": b"abc"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = buffer.getvalue()
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:position]
    else:
        flipped = whole[position] ^ data.draw(st.integers(1, 255))
        damaged = whole[:position] + bytes([flipped]) + whole[position + 1 :]
    path = tmp_path_factory.getbasetemp() / "damaged.tar.gz"
    path.write_bytes(damaged)
    try:
        members = read_tar(path, ("folder/file",))
    except UserError:
        return
    assert members == {"folder/file": bytes(range(256)) * 8}


def test_a_zip_entry_whose_name_is_damaged_in_its_own_header_alone_is_refused(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é/1.png", b"image")
    # The first of the two places that hold the name is the entry's own header.
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xcf\xcf", 1))
    with pytest.raises(UserError, match=r"cannot read .+1\.png"):
        read_file(open_tree(path), "é/1.png")
