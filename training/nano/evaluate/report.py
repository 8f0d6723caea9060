"""What the evaluation found, as tables that can be pasted into the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.nano.evaluate.hear import Heard
from training.nano.evaluate.trials import Trial


@dataclass(frozen=True)
class Mark:
    """A measure, what is asked of it, what the model reaches, and what renderings reach by the same measure."""

    measure: str
    asked: str
    reached: str
    holds: bool
    renderings: str = ""
    through_codec: str = ""


@dataclass(frozen=True)
class Clip:
    """A song of a trial and what was heard in it."""

    trial: Trial
    heard: Heard

    @property
    def missed(self) -> tuple[str, ...]:
        """What was asked for and is not there, as a reader is told."""
        verdicts = self.heard.verdicts(self.trial.asked)
        told = {
            "tempo": f"{self.heard.bpm:.0f} bpm",
            "drums": "drums" if self.heard.drums > 0.5 else "no drums",
            "lead": f"{self.heard.lead} leads",
            "mode": self.heard.key.mode,
        }
        return tuple(told[name] for name, found in verdicts.items() if not found)


def share(verdicts: Sequence[Mapping[str, bool]], name: str) -> tuple[int, int]:
    """How many of those that were asked about `name` have it, and of how many."""
    asked = [found[name] for found in verdicts if name in found]
    return sum(asked), len(asked)


def percent(part: tuple[int, int]) -> str:
    """A share as a reader sees it, with the count that it rests on."""
    found, of = part
    return f"{100 * found / of:.0f} % of {of}" if of else "none asked"


def at_least(part: tuple[int, int], asked: float) -> bool:
    """Whether the share reaches `asked`, 0 to 1; nothing asked does not."""
    found, of = part
    return of > 0 and found >= asked * of


def show_marks(marks: Sequence[Mark]) -> str:
    """All marks as a Markdown table; `holds` is the last word of each row."""
    rows = [
        (one.measure, one.asked, one.reached, one.renderings, one.through_codec, "yes" if one.holds else "NO")
        for one in marks
    ]
    return table(("measure", "asked", "reached", "renderings", "through the codec", "holds"), rows)


def show_worst(clips: Sequence[Clip], count: int = 8) -> str:
    """The clips that miss most, and of equal ones the noisiest."""
    worst = sorted(clips, key=lambda clip: (-len(clip.missed), clip.heard.tonal_db))[:count]
    rows = [
        (clip.trial.prompt, clip.trial.seed, ", ".join(clip.missed) or "nothing", f"{clip.heard.tonal_db:.1f} dB")
        for clip in worst
    ]
    return table(("prompt", "seed", "heard instead", "tonal to noise"), rows)


def show_leads(clips: Sequence[Clip], renderings: Sequence[Clip]) -> str:
    """For each family that was asked for, what was heard, most often first, in songs and in renderings."""
    families = sorted({clip.trial.asked.lead for clip in clips if clip.trial.asked.lead is not None})
    rows = [(family, _heard_for(family, clips), _heard_for(family, renderings)) for family in families]
    return table(("asked lead", "heard in songs", "heard in renderings"), rows)


def _heard_for(family: str, clips: Sequence[Clip]) -> str:
    leads = [clip.heard.lead for clip in clips if clip.trial.asked.lead == family]
    counts = sorted({lead: leads.count(lead) for lead in leads}.items(), key=lambda item: -item[1])
    return ", ".join(f"{lead} {count}" for lead, count in counts)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    cells = [list(columns), *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
