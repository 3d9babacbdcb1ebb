"""Grids, files, and the figures for ordinary codecs."""

import io

import numpy as np
import pytest
from PIL import Image

from mixerflow import pictures

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grid_shows_every_image_in_its_cell(channels, dtype):
    stack = pixels(5, channels, 4, 6, dtype=dtype)
    board = np.asarray(pictures.grid(stack, columns=2, pad=1, scale=1))
    assert board.shape[:2] == (3 * 6, 2 * 8)
    shown = 3 if channels >= 3 else 1
    board = board.reshape(18, 16, shown)
    for index, image in enumerate(stack):
        row, column = divmod(index, 2)
        cell = board[row * 6 : row * 6 + 6, column * 8 : column * 8 + 8]
        eight = image[:shown] if dtype == np.uint8 else image[:shown] >> 8
        assert np.array_equal(cell[1:-1, 1:-1], np.moveaxis(eight, 0, -1))
        assert (cell[0] == 255).all() and (cell[:, -1] == 255).all()
    assert (board[12:, 8:] == 255).all()  # the cell that is left over


def test_a_grid_is_about_square_and_scales():
    assert pictures.grid(pixels(9, 1, 4, 4), pad=0).size == (12, 12)
    assert pictures.grid(pixels(3, 1, 100, 10), pad=0).size == (30, 100)
    stack = pixels(1, 1, 2, 2)
    large = np.asarray(pictures.grid(stack, pad=0, scale=3))
    assert np.array_equal(large[::3, ::3], stack[0, 0]) and large.shape == (6, 6)
    assert (large[:3, :3] == stack[0, 0, 0, 0]).all()


@pytest.mark.parametrize("bad", [np.zeros((2, 4, 4), np.uint8), np.zeros((1, 1, 2, 2))])
def test_what_is_no_stack_of_images(bad):
    with pytest.raises(ValueError, match="expected images"):
        pictures.grid(bad)
    with pytest.raises(ValueError):
        pictures.grid(pixels(1, 1, 2, 2), columns=0)


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    stack = pixels(1, 3, 4, 4)
    pictures.save(pictures.grid(stack, pad=0), path)
    assert np.array_equal(np.asarray(Image.open(path)), np.moveaxis(stack[0], 0, -1))

    def breaks(_self, file, _kind):
        file.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(ValueError, match="extension"):
        pictures.save(pictures.grid(stack), tmp_path / "a.unknown")
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", breaks)
    with pytest.raises(OSError, match="disk full"):
        pictures.save(pictures.grid(stack), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (1, np.uint16)])
def test_png_bytes_are_lossless(channels, dtype):
    image = pixels(channels, 5, 4, dtype=dtype)
    again = np.asarray(Image.open(io.BytesIO(pictures.png_bytes(image))))
    assert np.array_equal(again.reshape(5, 4, -1), np.moveaxis(image, 0, -1))


def decoded(content: bytes, channels: int) -> np.ndarray:
    array = np.asarray(Image.open(io.BytesIO(content)))
    return (
        array[..., :1] if channels == 1 and array.ndim == 3 else array.reshape(*array.shape[:2], -1)
    )


@pytest.mark.parametrize("codec", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sheet", [False, True])
def test_codec_bits_count_files_that_hold_every_pixel(codec, channels, sheet, monkeypatch):
    stack = pixels(7, channels, 6, 5) & 0xF0
    files = []
    encode = pictures.encoded
    monkeypatch.setattr(
        pictures, "encoded", lambda *given: files.append(encode(*given)) or files[-1]
    )
    bits = pictures.codec_bits(stack, codec, sheet=sheet)
    assert bits == 8 * sum(map(len, files)) / stack.size
    assert len(files) == (1 if sheet else 7)
    cells = [decoded(file, channels) for file in files]
    if sheet:
        (board,) = cells
        rows, columns = board.shape[0] // 6, board.shape[1] // 5
        cells = list(
            board.reshape(rows, 6, columns, 5, channels).swapaxes(1, 2).reshape(-1, 6, 5, channels)
        )
    assert np.array_equal(np.stack(cells[:7]), np.moveaxis(stack, 1, -1))


def test_webp_is_the_shortest_file_of_its_settings():
    picture = np.moveaxis(pixels(1, 3, 16, 16) & 0xF0, 1, -1)[0]
    lengths = []
    for settings in pictures.SETTINGS["webp"]:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "WEBP", **settings)
        lengths.append(len(buffer.getvalue()))
    assert len(lengths) == 4
    assert len(pictures.encoded(picture, "webp")) == min(lengths)


def test_large_sets_take_several_sheets_none_too_long(monkeypatch):
    monkeypatch.setattr(pictures, "_LONGEST_SIDE", 20)
    cells = pixels(30, 6, 5, 1)
    sheets = list(pictures.sheets(cells))
    assert [sheet.shape for sheet in sheets] == [(18, 20, 1), (18, 20, 1), (12, 15, 1)]
    monkeypatch.setattr(pictures, "_LONGEST_SIDE", 5)
    with pytest.raises(ValueError, match="too large"):
        list(pictures.sheets(cells))


def test_codecs_refuse_what_they_cannot_hold():
    for stack in (pixels(1, 2, 4, 4), pixels(1, 3, 4, 4, dtype=np.uint16)):
        with pytest.raises(ValueError, match="png has no images"):
            pictures.codec_bits(stack, "png", sheet=False)
    with pytest.raises(ValueError, match="webp has no images"):
        pictures.codec_bits(pixels(1, 1, 4, 4, dtype=np.uint16), "webp", sheet=True)
    with pytest.raises(ValueError, match="expected images"):
        pictures.codec_bits(pixels(0, 1, 4, 4), "png", sheet=True)


def test_codecs_tell_plain_from_noise():
    plain, noise = np.zeros((50, 1, 16, 16), np.uint8), pixels(50, 1, 16, 16)
    assert pictures.codec_bits(plain, "png", sheet=True) < 0.1
    assert pictures.codec_bits(noise, "png", sheet=True) > 7.9
