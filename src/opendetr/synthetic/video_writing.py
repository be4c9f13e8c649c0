"""Writes videos as a dataset in the layout of MOTChallenge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import rmtree

from PIL import Image

from opendetr.files import write_atomically
from opendetr.synthetic.config import CATEGORIES
from opendetr.synthetic.videos import Frame, VideoConfig, draw_video
from opendetr.synthetic.writing import check_counts, claim_folder

_QUALITY = 92  # of the JPEG files


def write_videos(
    folder: str | Path,
    *,
    counts: Mapping[str, int],
    seed: int = 0,
    config: VideoConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset of videos in the layout of MOTChallenge.

    The video 3 of the split "train" is the folder ``folder/train/video-0003`` with ``img1/000001.jpg`` ...,
    ``seqinfo.ini``, ``gt/gt.txt`` and ``gt/labels.txt``, which names the classes as CVAT does. A row of ``gt.txt`` is
    ``frame,id,left,top,width,height,flag,class,visibility``. Its flag is 0 if less than a tenth of the object is
    visible. ``seqinfo.ini`` is written last, so a video without it is incomplete.

    Args:
        folder: the folder to write to; it is created if missing. Splits that an earlier call wrote there under the same
            name are replaced.
        counts: number of videos per split.
        seed: seed of the dataset.
        config: the configuration of the videos.
        progress: called after every video with the number of finished videos and the total number.

    Raises:
        DataError: the folder contains other files, or a split has an invalid name or count.
    """
    root, config = Path(folder), config or VideoConfig()
    check_counts(counts)
    claim_folder(root)
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        if (root / split).is_dir():
            rmtree(root / split)
        for index in range(count):
            video = root / split / f"video-{index:04d}"
            _write_video(video, index, split, seed, config)
            done += 1
            if progress is not None:
                progress(done, total)


def _write_video(folder: Path, index: int, split: str, seed: int, config: VideoConfig) -> None:
    for name in ("img1", "gt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    for number, frame in enumerate(draw_video(index, split=split, seed=seed, config=config), start=1):
        Image.fromarray(frame.image).save(folder / "img1" / f"{number:06d}.jpg", quality=_QUALITY, subsampling=0)
        rows += _rows(number, frame)
    write_atomically(folder / "gt" / "gt.txt", "".join(rows))
    names = [record["name"] for record in CATEGORIES if record["isthing"]]
    write_atomically(folder / "gt" / "labels.txt", "\n".join(names) + "\n")
    write_atomically(folder / "seqinfo.ini", _sequence_info(folder.name, index, config))


def _rows(number: int, frame: Frame) -> list[str]:
    """The rows of a frame in ``gt.txt``."""
    rows = []
    for each in frame.objects:
        x0, y0, x1, y1 = each.box
        box = f"{x0},{y0},{x1 - x0},{y1 - y0}"
        flag = int(each.evaluated)
        rows.append(f"{number},{each.id},{box},{flag},{each.category_id},{each.visibility:.3f}\n")
    return rows


def _sequence_info(name: str, index: int, config: VideoConfig) -> str:
    """The text of ``seqinfo.ini``. The key "crossings" is ours."""
    values = {
        "name": name,
        "imDir": "img1",
        "frameRate": config.frame_rate,
        "seqLength": config.frames,
        "imWidth": config.size,
        "imHeight": config.size,
        "imExt": ".jpg",
        "crossings": config.crossings(index),
    }
    return "\n".join(["[Sequence]", *(f"{key}={value}" for key, value in values.items())]) + "\n"
