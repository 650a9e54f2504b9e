"""Make pairs about several pictures out of questions about one, look at them, and check them.

python vision/build_pairs.py [--rows 40] [--output runs/vision_pairs]
"""

import argparse
from pathlib import Path

from mmalign.data import File
from mmalign.data.building import construct
from mmalign.data.checks import Checker
from mmalign.data.reading import Place, Reader
from mmalign.report.gallery import Limits, write_gallery
from mmalign.tinyworld.data import TinyWorld
from mmalign.vision import LVLMPolicy
from mmalign.vision.mia import MIADPO
from mmalign.vision.mia.composing import Formats
from mmalign.vision.mia.layouts import Grid
from mmalign.vision.mia.wording import Wording


def main(rows: int, output: str) -> int:
    """Write ``pairs.jsonl`` and ``pairs.gallery.html``; returns the number of pairs kept."""
    builder = MIADPO(
        # One picture, a question and the right answer a row. For your own rows write
        # File(path="rows.jsonl"), with the columns prompt, images and completion.
        data=TinyWorld(task="vqa", size=max(rows, 100), seed=3),
        # Who answers: the model that will be aligned with the pairs. What it gets wrong while it
        # looks at another picture becomes the rejected answer.
        policy=LVLMPolicy(model="tinyworld/lvlm"),
        # This model reads 32 x 32 pixels and knows few words. With a model of usual size leave out
        # the rest: the defaults are the paper's.
        formats=Formats(
            inset=0.0,
            sequence_counts={2: 3, 3: 1},
            collage_counts={2: 1, 4: 1},
            grid=Grid(tile=32, gap=0, label_height=0, font_size=8),
        ),
        wording=Wording(
            name="picture {number}",
            label="",
            after="",
            question="in {name} , {question}",
            refusal="there are {count} pictures",
            numbers=("one", "two", "three", "four", "five"),
            taken=("in picture",),
        ),
        max_new_tokens=24,
    )
    folder = Path(output)
    pairs = folder / "pairs.jsonl"
    counts = construct(builder, pairs, rows=rows, settings=repr(builder))
    for reason, number in counts.most_common():
        print(f"{number:4}  {reason if reason == 'kept' else f'dropped: {reason}'}")

    # Look: every row with its pictures, where the model looked, and why it was kept or dropped.
    place = Place(path=pairs)
    page = folder / "pairs.gallery.html"
    print(write_gallery(place, page, limits=Limits()).sentence, page.resolve().as_uri())

    # Check: what training would refuse, or would not notice.
    checker = Checker(Reader(place))
    for number in range(len(checker.reader)):
        for finding in checker.row(number):
            print(finding.line())

    # Train: vision/quickstart.py with Preferences(data=File(path=...)) as its source.
    return len(File(path=str(pairs)).preferences())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--output", default="runs/vision_pairs")
    main(**vars(parser.parse_args()))
