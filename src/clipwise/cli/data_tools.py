"""``clipwise data split``, ``check``, ``stats``, ``playback``: look at data before training, divide it, make a task."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as TerminalTable

from clipwise.cli.app import counted, counting, say
from clipwise.cli.data import data

if TYPE_CHECKING:
    from collections.abc import Set

    from clipwise.data.check import CheckReport
    from clipwise.data.split import Division, Twin
    from clipwise.data.stats import Stats
    from clipwise.data.table import Table

__all__ = ["check", "playback", "split", "stats"]

_FIRST = 5  # of each kind, in the terminal

_Source = Annotated[Path, typer.Argument(help="A folder of class folders, or a manifest CSV.")]
_Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one a core if left out.")]
_Timeout = Annotated[float, typer.Option(min=1, help="Seconds without a sign of life after which a file is given up.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


@data.command()
def split(
    source: _Source,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT.csv", help="The manifest to write.")],
    val: Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of validation.")] = 0.2,
    test: Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of test.")] = 0.0,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|REGEX",
            help="What must not be torn apart: a column, or an expression whose first group finds it in the path.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    rare_to_train: Annotated[
        bool,
        typer.Option(
            "--rare-to-train",
            help="Keep classes that too few groups show in train, not refuse them; leave out as few as can be.",
        ),
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="Divide this split alone, such as train; all other rows stay as they are."),
    ] = None,
    resplit: Annotated[bool, typer.Option("--resplit", help="Divide anew what is divided already.")] = False,
    no_duplicates_check: Annotated[
        bool, typer.Option("--no-duplicates-check", help="Decode nothing; look for no videos alike in two splits.")
    ] = False,
    workers: _Workers = None,
    timeout: _Timeout = 60,
    overwrite: _Overwrite = False,
) -> None:
    """Divide videos into train, val and test: each class in its share, no group (person, recording) in two of them.

    Segments of one file stay together. All columns are kept. Videos that look alike and are in different splits are
    listed: group by what they have in common.

    Example: `clipwise data split manifest.csv divided.csv --val 0.2 --group-by person`

    Example: `clipwise data split manifest.csv divided.csv --only train` (a test split stays what it is)
    """
    from clipwise.data.split import divide, near_duplicates, part_to_divide
    from clipwise.data.table import Table
    from clipwise.data.workers import available_cores

    _may_write(output, overwrite, ".csv")
    table = Table.read(source, what_for="split")
    if only is not None and resplit:
        raise ValueError(f"--only {only} leaves other splits alone and --resplit divides them anew: give one of them")
    if only is None and table.manifest.splits and not resplit:
        raise ValueError(
            f"{table.manifest.source}: is divided already ({', '.join(table.manifest.splits)}); --resplit divides it "
            "anew, whatever split a video was in, and --only SPLIT one split alone"
        )
    _name_ignored(table)
    part = table if only is None else part_to_divide(table, only, val=val, test=test)
    division = divide(
        part, val=val, test=test, group_by=group_by, seed=seed, rare_to_train=rare_to_train, rest=only or "train"
    )
    twins: list[Twin] = []
    unknown: list[int] = []
    if not no_duplicates_check:
        with counting("files compared") as progress:
            twins, unknown = near_duplicates(
                part, division.of_row, workers=workers or available_cores(), timeout=timeout, progress=progress
            )
    divided = iter(division.of_row)
    splits = [next(divided) if only in (None, item.split) else item.split or "" for item in table.manifest]
    table.write(output, range(len(table)), {"split": splits})
    _print_division(division)
    if division.rare:
        say(f"in {division.splits[0]} alone, since too few groups show them: {', '.join(division.rare)}")
    for name in division.splits:
        lacking = [one for one, without in division.missing.items() if name in without]
        if lacking:
            say(
                f"warning: {len(lacking)} of {counted(len(division.counts), 'class', 'classes')} "
                f"{'has' if len(lacking) == 1 else 'have'} no videos in {name}, since groups stay whole: "
                f"{', '.join(lacking)}"
            )
    if division.uneven:
        say(f"{counted(len(division.uneven), 'class', 'classes')} off the wanted share, since groups stay whole:")
        for name, reason in _few(list(division.uneven.items())):
            say(f"  {name}: {reason}" if reason else name)
    if unknown:
        say(
            f"{counted(len(unknown), 'video')} could not be compared (not to be read, or one colour): "
            f"{', '.join(part.names[row] for row in unknown[:_FIRST])}{' …' if len(unknown) > _FIRST else ''}; "
            f"clipwise data check {shlex.quote(str(source))} says more"
        )
    if twins:
        say(
            f"warning: {counted(len(twins), 'pair')} of videos in different splits look alike (bits of 64 that differ):"
        )
        for twin in twins[:_FIRST]:
            one, other = (f"{part.names[row]} ({division.of_row[row]})" for row in (twin.one, twin.other))
            say(f"  {one} and {other}: {twin.bits:.1f}")
        if len(twins) > _FIRST:
            say(f"  and {len(twins) - _FIRST} more")
        say("  if they are copies, or of one recording, group them (--group-by): val would be too easy")
    others = "" if only is None else f"; {len(table) - len(part)} as they were"
    say(f"written: {output}: {counted(len(part), 'video')} in {counted(division.pieces, 'group')}{others}")


def _print_division(division: "Division") -> None:
    shown = TerminalTable("class", pad_edge=False)
    for name, share in zip(division.splits, division.wanted, strict=True):
        shown.add_column(f"{name} ({share:.0%})", justify="right", no_wrap=True)
    rows = list(division.counts.items())
    # Where there are many classes, those that are the furthest off say most.
    rows.sort(key=lambda row: (row[0] not in division.missing, row[0] not in division.uneven))
    for name, counts in rows[:30]:
        shown.add_row(_plain(name), *(f"{count}  {count / sum(counts):4.0%}" for count in counts))
    if len(rows) > 30:
        shown.add_row(f"and {len(rows) - 30} more")
    totals = [division.of_row.count(name) for name in division.splits]
    shown.add_section()
    shown.add_row("videos", *(f"{count}  {count / sum(totals):4.0%}" for count in totals))
    Console().print(shown)


@data.command()
def check(
    source: _Source,
    full: Annotated[bool, typer.Option("--full", help="Decode every frame.")] = False,
    workers: _Workers = None,
    min_frames: Annotated[int, typer.Option(min=1, help="Fewer are short.")] = 8,
    timeout: _Timeout = 60,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The report to write, JSON.")] = None,
    clean: Annotated[
        Path | None, typer.Option(metavar="CSV", help="A manifest to write, without what cannot be used.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a check that was stopped.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND", help="A kind of finding that is not wrong, such as rotated or short; may be repeated."
        ),
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Decode every video and report what is wrong: unreadable, cut short, odd in rate, doubled, in two splits …

    Of each video or segment eight frames at the beginning, the middle and the end are decoded. With --output a check
    that was stopped goes on with --resume. Exit status 0 only if nothing is wrong.

    Example: `clipwise data check manifest.csv --output report.json --clean cleaned.csv`
    """
    from clipwise.data.check import KINDS, journal_of
    from clipwise.data.check import check as run
    from clipwise.data.table import Table
    from clipwise.data.workers import available_cores

    for kind in allow or ():
        if kind not in KINDS:
            raise ValueError(f"--allow {kind!r}: no such kind; there are {', '.join(KINDS)}")
    if resume and output is None:
        raise ValueError("--resume needs the --output of the check that was stopped: its journal lies beside it")
    for path, suffix in ((output, ".json"), (clean, ".csv")):
        if path is not None:
            _may_write(path, overwrite, suffix)
    table = Table.read(source, what_for="check")
    _name_ignored(table)
    journal = None if output is None else journal_of(output)
    if resume and journal is not None and not journal.exists():
        say(f"no check of {source} was stopped ({journal} is not there); this one starts at the beginning")
    try:
        with counting("files") as progress:
            report = run(
                table,
                full=full,
                min_frames=min_frames,
                workers=workers or available_cores(),
                timeout=timeout,
                journal=journal,
                resume=resume,
                progress=progress,
            )
    except KeyboardInterrupt:
        if journal is not None:
            say(f"what was found so far is in {journal}; the same command with --resume goes on")
        raise
    if output is not None:
        report.write(output)
    allowed = frozenset(allow or ())
    _print_findings(report, allowed)
    for name, deaths in report.deaths.items():
        say(f"{name}: the process that read it {deaths[0]} once; the second time it could be read")
    if output is not None:
        say(f"written: {output}")
    unusable: dict[int, str] = {}
    if clean is not None:
        unusable = report.left_out(allowed)
        kept = [row for row in range(len(table)) if row not in unusable]
        table.write(clean, kept)
        say(f"written: {clean}: {counted(len(kept), 'video')}, {len(unusable)} left out" + (":" if unusable else ""))
        for row in sorted(unusable):
            say(f"  {table.names[row]}: {unusable[row]}")
        gone = {name for names in table.classes for name in names} - {
            name for row in kept for name in table.classes[row]
        }
        if gone:
            say(f"classes without a usable video: {', '.join(sorted(gone))}")
    wrong = report.counts.keys() - allowed
    how = "all their frames decoded" if full else "their beginnings, middles and ends decoded"
    found = "something is wrong" if wrong else "nothing is wrong"
    if unusable and not wrong:
        found += f" but what --allow names; {clean} leaves out {counted(len(unusable), 'video')} that cannot be decoded"
    say(f"{counted(report.rows, 'video')}, {how}: {found}")
    if wrong:
        raise typer.Exit(1)


def _print_findings(report: "CheckReport", allowed: "Set[str]") -> None:
    from clipwise.data.check import KINDS, SAME, UNUSABLE, USABLE_IF_ALLOWED

    if not report.findings:
        return
    shown = TerminalTable("found", "meaning", pad_edge=False)
    shown.add_column("videos", justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    counts = report.counts
    of_kind = {kind: [finding for finding in report.findings if finding.kind == kind] for kind in counts}
    for kind, number in counts.items():
        shown.add_row(
            kind, KINDS[kind], str(number), "unusable" if kind in UNUSABLE - (USABLE_IF_ALLOWED & allowed) else ""
        )
    console = Console()
    console.print(shown)
    for kind, findings in of_kind.items():
        lines = []
        for finding in findings[:_FIRST]:
            names = (" = " if kind in SAME else ", ").join(finding.names[:3])
            others = f" and {len(finding.names) - 3} more" if len(finding.names) > 3 else ""
            lines.append(f"{names}{others}: {finding.reason}")
        if len(findings) > _FIRST:
            lines.append(f"and {len(findings) - _FIRST} more")
        console.print(_plain("\n  ".join([f"{kind}:", *lines])), soft_wrap=True)


@data.command()
def stats(
    source: _Source,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The numbers, JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The picture: .png, .svg or .pdf.")] = None,
    workers: _Workers = None,
    timeout: _Timeout = 60,
    overwrite: _Overwrite = False,
) -> None:
    """Count videos by split and class; say how long, large and fast they are, and how balanced the classes.

    Example: `clipwise data stats manifest.csv --output stats.json --picture stats.png`
    """
    from clipwise.data.stats import collect, draw
    from clipwise.data.table import Table
    from clipwise.data.workers import available_cores
    from clipwise.files import write_json

    for path, suffixes in ((output, (".json",)), (picture, (".png", ".svg", ".pdf"))):
        if path is not None:
            _may_write(path, overwrite, *suffixes)
    table = Table.read(source, what_for="stats")
    _name_ignored(table)
    with counting("files") as progress:
        found = collect(table, workers=workers or available_cores(), timeout=timeout, progress=progress)
    _print_stats(found)
    if found.unreadable:
        say(f"{counted(len(found.unreadable), 'video')} cannot be read; clipwise data check says more:")
        for name, reason in _few(list(found.unreadable.items())):
            say(f"  {name}: {reason}" if reason else name)
    if output is not None:
        write_json(output, found.as_json())
        say(f"written: {output}")
    if picture is not None:
        draw(picture, found, table.manifest.source.name)
        say(f"written: {picture}")


def _print_stats(found: "Stats") -> None:
    console = Console()
    splits = list(found.splits)
    half = 15  # where there are many, the largest and the smallest say most
    for head in found.heads:
        shown = TerminalTable("class" if len(found.heads) == 1 else head, pad_edge=False)
        for name in splits:
            shown.add_column(name or "videos", justify="right", no_wrap=True)
        ranked = found.ranked(head)
        for place, (name, counts) in enumerate(ranked):
            if len(ranked) > 2 * half and half <= place < len(ranked) - half:
                if place == half:
                    shown.add_row(f"… {len(ranked) - 2 * half} more …")
                continue
            shown.add_row(_plain(name), *(str(counts[split]) for split in splits))
        shown.add_section()
        empty = found.empty(head)
        if empty:
            shown.add_row(f"{counted(empty, 'class', 'classes')} {'has' if empty == 1 else 'have'} no videos")
            shown.add_section()
        shown.add_row("videos", *(str(found.splits[split]) for split in splits))
        ratios = [found.imbalance(split, head) for split in splits]
        shown.add_row("largest : smallest", *("–" if ratio is None else f"{ratio:.3g}" for ratio in ratios))
        console.print(shown)
    for what, values, digits in (("seconds", found.seconds, 1), ("frames", found.frames, 0)):
        if values:
            marks = (values[0], values[-1], values[len(values) // 2], sum(values))
            low, high, middle, total = (f"{value:.{digits}f}" for value in marks)
            console.print(f"{what}: {low} to {high}, median {middle}, all {total}", highlight=False)
    for what, counts in (
        ("fps", {f"{rate:g}": count for rate, count in found.rates().items()}),
        ("size", {f"{width}×{height}": count for (width, height), count in found.sizes.items()}),
        ("codec", found.codecs),
    ):
        several: Any = [f"{value} ({count})" for value, count in list(counts.items())[:_FIRST]]
        if len(counts) > _FIRST:
            several.append(f"{len(counts) - _FIRST} more")
        if several:
            console.print(f"{what}: {', '.join(several)}", highlight=False)


@data.command()
def playback(
    source: _Source,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT.csv", help="The manifest to write.")],
    classes: Annotated[
        list[str] | None,
        typer.Option(help="Only videos of these classes, separated by commas; may be repeated. All if left out."),
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Make the task of telling forwards from backwards: each video once each way, labelled forward and reversed.

    No frame by itself tells the two apart: a network that does uses time. Splits and all other columns are kept.

    Example: `clipwise data playback manifest.csv directions.csv --classes sitting_down,standing_up`
    """
    from clipwise.data.manifest import Manifest
    from clipwise.data.reversal import write_both_directions
    from clipwise.data.table import Table

    _may_write(output, overwrite, ".csv")
    table = Table.read(source, what_for="playback")
    _name_ignored(table)
    known = {name for head in table.manifest.heads for name in head.classes}
    # A class may have a comma in its name.
    wanted = [name for text in classes or () for name in ([text] if text in known else text.split(","))]
    rows = write_both_directions(table, output, [name.strip() for name in wanted])
    written = Manifest.read(output)
    splits = [f"{len(written.select(name)) // 2} {name}" for name in written.splits]
    say(
        f"written: {output}: {counted(rows // 2, 'video')}, each both ways"
        + (f": {', '.join(splits)}" if splits else "")
    )


def _few(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first rows and how many more there are."""
    more = [(f"  and {len(rows) - _FIRST} more", "")] if len(rows) > _FIRST else []
    return rows[:_FIRST] + more


def _plain(text: str) -> Any:
    """Text in which rich reads no markup: a segment's name is in brackets."""
    from rich.text import Text

    return Text(text)


def _may_write(path: Path, overwrite: bool, *suffixes: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: must end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: its folder is not there; make it first")
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists; choose another name, or --overwrite")


def _name_ignored(table: "Table") -> None:
    ignored = table.manifest.ignored
    if ignored:
        say(f"{len(ignored)} entries are no videos and are left out: {', '.join(ignored[:3])}")
