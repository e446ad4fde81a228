"""Every transcript comes out as it is written; `--rewrite` writes it anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.transcript import COMMANDS, PROMPT, TranscriptError, play

FOLDER = Path(__file__).parent / "transcripts"
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_comes_out_as_it_is_written(path: Path, rewrite: bool) -> None:
    """Commands and their outcomes, line by line."""
    now = play(path)
    if rewrite:
        path.write_text(now, encoding="utf-8")
    assert path.read_text(encoding="utf-8").splitlines() == now.splitlines()


def test_there_are_transcripts_and_they_use_the_whole_language() -> None:
    """Twenty stories at least, and no command that none of them needs."""
    lines = [line for path in TRANSCRIPTS for line in path.read_text(encoding="utf-8").splitlines()]
    used = {line.removeprefix(PROMPT).split()[0] for line in lines if line.startswith(PROMPT)}
    assert used == set(COMMANDS)
    assert len(TRANSCRIPTS) >= 20


def test_a_transcript_is_rewritten_but_for_its_outcomes(tmp_path: Path) -> None:
    """Prose and commands stay as they are; an outcome that is not so is replaced, one that is missing is added."""
    path = tmp_path / "story.txt"
    path.write_text("One alone.\n\n> cluster 1\n> status\n    1: LEADER of the world\n\nThat is all.\n")
    now = play(path)
    assert now == (
        "One alone.\n\n> cluster 1\n> status\n"
        "    1: FOLLOWER term=0 vote=0 leader=0 last=0 saved=0 commit=0 applied=0\n\nThat is all.\n"
    )
    path.write_text(now)
    assert play(path) == now


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("dance", "there is no command 'dance'"),
        ("campaign", "a number should stand where 'nothing' does"),
        ("campaign one", "a number should stand where 'one' does"),
        ("campaign 1 2", r"nobody knows what \['2'\] should mean"),
        ("crash 1 wrtten=1", r"nobody knows what \['wrtten'\] should mean"),
        ("deliver 1->2", "there is no such message"),
        ("save 1", "1 has nothing to save"),
        ("apply 1", "1 has nothing to apply"),
        ("snapshot 1", "nothing is applied yet"),
    ],
)
def test_what_cannot_be_done_names_its_line(command: str, complaint: str, tmp_path: Path) -> None:
    """A slip in a transcript is no story."""
    path = tmp_path / "story.txt"
    path.write_text(f"> cluster 1\n> {command}\n")
    with pytest.raises(TranscriptError, match=rf"story.txt:2: > {command}.*: {complaint}"):
        play(path)
