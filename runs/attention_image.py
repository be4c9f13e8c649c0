"""Draws the figure of docs/attention.md: what the shipped detector attends to in a drawn scene that it has not seen.

    python runs/attention_image.py --out docs/images/attention.jpg

Three images: the detections, the sampled points of the decoder for the best one, and those of the encoder from its
centre.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

import opendetr
from opendetr.analysis import attention_of, decoder_figure, encoder_figure
from opendetr.data.formats import open_split
from opendetr.synthetic import write_scenes
from opendetr.visualize import save_image

SCENE = 3  # of the validation scenes of `opendetr demo`
WIDTH = 1200  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scene", type=int, default=SCENE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(folder, counts={"val": options.scene + 1})
        data = open_split(folder, "val")
        detector = opendetr.load("deformable-detr-tiny", device="cpu")
        (attention,) = attention_of(detector, data, data.images[-1:], max_detections=2)
    decoder, encoder = decoder_figure(attention), encoder_figure(attention)
    assert decoder is not None and encoder is not None
    figure = Image.new("RGB", (decoder.width, decoder.height + encoder.height), "white")
    figure.paste(decoder, (0, 0))
    figure.paste(encoder, (0, decoder.height))
    save_image(
        figure.resize((WIDTH, round(figure.height * WIDTH / figure.width)), Image.Resampling.LANCZOS), options.out
    )
    print(options.out)


if __name__ == "__main__":
    main()
