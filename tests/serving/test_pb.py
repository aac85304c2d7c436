from __future__ import annotations

from pathlib import Path

from serving.pb import generate


def test_the_generated_python_is_that_of_the_protocol(tmp_path: Path) -> None:
    written = generate.generate(tmp_path)
    assert len(written) == 3
    for path in written:
        kept = generate.HERE / path.relative_to(tmp_path)
        assert path.read_text() == kept.read_text(), f"{kept.name} is old: run `python -m serving.pb.generate`"
