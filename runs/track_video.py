"""Renders a long video and tracks its objects; measures the peak memory of tracking.

    python runs/track_video.py follow WORK --frames 2000 --weights deformable-detr-tiny --association bytetrack
    python runs/track_video.py memory --few 500 --many 10000

`follow` draws a video with its ground truth, writes it as a video file and as a folder of frames, runs `opendetr track`
on the file, and prints the metrics of the ids. Frames of the output at ten places are written to WORK/places.png.

`memory` tracks a video of small frames with a miniature, writes everything that the command writes, and prints the peak
resident memory after some and after many frames. Expected: a ratio of at most 1.02.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opendetr import Tracker
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.data import open_video
from opendetr.evaluation import TrackingMetrics, Tracks
from opendetr.inference.history import true_tracks
from opendetr.inference.sources.video import video_frames
from opendetr.inference.writers import tracks_folder
from opendetr.inference.writers.video import video_writer
from opendetr.presets import build_model, miniature
from opendetr.synthetic import VideoConfig, write_videos
from opendetr.visualize import contact_sheet
from opendetr.weights import ModelCard, save_weights

_RATE = 10  # frames per second


def render(folder: Path, frames: int, size: int) -> Path:
    """The folder of a drawn video, beside which the video file lies."""
    if not (folder / "drawn").exists():
        config = VideoConfig(frames=frames, size=size, frame_rate=_RATE)
        write_videos(folder / "drawn", counts={"val": 1}, config=config)
    drawn = folder / "drawn" / "val" / "video-0000"
    with video_writer(folder / "clip.mp4") as writer:
        for number, path in enumerate(sorted((drawn / "img1").iterdir())):
            with Image.open(path) as image:
                writer.write(np.asarray(image), number / _RATE)
    return drawn


def tracks_in(path: Path) -> Tracks:
    rows = np.loadtxt(path, delimiter=",", ndmin=2).reshape(-1, 10)
    corners = np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), 1)
    return Tracks(frames=rows[:, 0].astype(np.int64) - 1, ids=rows[:, 1].astype(np.int64), boxes=corners)


def follow(folder: Path, frames: int, size: int, options: list[str]) -> None:
    drawn = render(folder, frames, size)
    command = ["track", str(folder / "clip.mp4"), "--out", str(folder / "tracks"), "--overwrite", *options]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "opendetr", *command], check=True)
    print(f"{time.perf_counter() - began:.0f} s")
    found = open_video(drawn)
    assert found is not None and found.annotations is not None
    truth, _ = true_tracks(found.annotations)
    metrics = TrackingMetrics()
    metrics.add("clip", frames, replace(truth, frames=truth.frames - 1), tracks_in(folder / "tracks" / "clip.txt"))
    print({name: round(value, 3) for name, value in metrics.compute().combined.items()})
    places = {round(place) for place in np.linspace(0.02 * frames, frames - 1, 10)}
    shown = {
        frame.frame: frame.pixels for frame in video_frames(folder / "tracks" / "clip.mp4") if frame.frame in places
    }
    sheet = contact_sheet([Image.fromarray(pixels) for pixels in shown.values()], 5, [f"frame {n}" for n in shown])
    sheet.save(folder / "places.png")


def write_miniature(path: Path, name: str) -> Path:
    """A tracker that knows nothing and finds objects in every frame."""
    torch.manual_seed(0)
    preset = miniature(name)
    card = ModelCard(to_dict(preset), Categories.from_names(("one", "two", "three")), {})
    save_weights(path, build_model(preset, 3), card)
    return path


def write_noise(path: Path, frames: int, side: int) -> Path:
    """A video of a texture that moves."""
    texture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    with video_writer(path) as writer:
        for number in range(frames):
            writer.write(np.roll(texture, number, 1), number / 25)
    return path


def peak_memory() -> float:
    """The peak resident memory of this process in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def memory(few: int, many: int, model: str, side: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = write_noise(folder / "noise.mp4", many, side)
        tracker = Tracker(write_miniature(folder / "miniature.safetensors", model), birth=0, keep=0, device="cpu")
        began, peaks, objects = time.perf_counter(), {}, 0
        categories = tracker.predictor.categories
        with tracks_folder(folder / "out", categories) as begin, begin(str(video)) as (_, write):
            for number, detections in enumerate(tracker.track(video), start=1):
                write(detections)
                objects += len(detections)
                if number in (few, many):
                    peaks[number] = peak_memory()
                    seconds = time.perf_counter() - began
                    print(
                        f"{number} frames, {objects} objects, {seconds:.0f} s: peak {peaks[number]:.1f} MiB", flush=True
                    )
    print(f"ratio {peaks[many] / peaks[few]:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    of_follow = commands.add_parser("follow", help="options that are not listed are those of `opendetr track`")
    of_follow.add_argument("folder", type=Path)
    of_follow.add_argument("--frames", type=int, default=2000)
    of_follow.add_argument("--size", type=int, default=256)
    of_memory = commands.add_parser("memory")
    of_memory.add_argument("--few", type=int, default=500)
    of_memory.add_argument("--many", type=int, default=10_000)
    of_memory.add_argument("--model", default="transtrack-tiny")
    of_memory.add_argument("--side", type=int, default=16, help="height and width of the frames in pixels")
    options, further = parser.parse_known_args()
    if options.command == "memory":
        memory(options.few, options.many, options.model, options.side)
    else:
        follow(options.folder, options.frames, options.size, further)


if __name__ == "__main__":
    main()
