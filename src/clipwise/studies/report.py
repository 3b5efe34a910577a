"""A study's results: ``study.json``, from it alone ``study.md`` and ``study.png``."""

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from clipwise.analysis.plots import study_figure
from clipwise.config import flat
from clipwise.data.manifest import Manifest
from clipwise.files import portable_path, write_json, written_whole
from clipwise.studies.cost import Costs
from clipwise.studies.plan import Known, Plan, Request, Row, Training, hash_of, record_path, standing
from clipwise.studies.study import Goal, Study
from clipwise.training.account import RunAccount, videos_hash

__all__ = [
    "METRICS",
    "claim_lines",
    "collect",
    "duration",
    "goal_lines",
    "judged",
    "keep_aside",
    "missing_line",
    "only_told_in",
    "read_study",
    "table",
    "test_record",
    "write_report",
]

METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean-class accuracy",
    "mean_average_precision": "mean average precision",
    "joint.top1": "joint top-1",
}
"""Figures as they are called in tables."""
PUBLISHED = "published: "
"""What the name of a column of published figures begins with."""
COUNTS = ("M parameters", "GMACs")
"""Published figures that tell no accuracy."""
_DIGITS = 4


def test_record(training: Training, row: Row) -> dict[str, Any] | None:
    """That test, or None where there is none of these weights with these views."""
    path = record_path(training, row)
    try:
        record = _record(path, path.stat().st_mtime_ns)
        same_weights = record["weights_sha256"] == hash_of(training.folder / "last.safetensors")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if same_weights and record["views"] == json.loads(json.dumps(asdict(row.views))) else None


@cache
def _record(path: Path, _changed: int) -> dict[str, Any]:
    """What a table needs of a test, without the videos' scores."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return {
        "views": record["protocol"]["views"],
        "weights_sha256": record["checkpoint"]["sha256"],
        "video": {name: value for name, value in record["video"].items() if name != "confusion"},
        "unreadable": len(record["videos"]["unreadable"]),
    }


def collect(plan: Plan, *, jobs: int = 1) -> dict[str, Any]:
    """``study.json``: every variant with what was found of each seed, the claims, and what is missing.

    ``config`` is what recipe and ``--set`` give; a run's own has the fields that differ from it, by dotted names.
    ``commands`` make the table as it is; ``command`` goes on with it. For claims and goals see :func:`judged`.
    """
    base = flat(plan.base.to_dict())
    variants: list[dict[str, Any]] = []
    for row in plan.rows:
        runs = []
        for seed in sorted(seed for label, seed in plan.trainings if label == row.variant.label):
            training = plan.trainings[row.variant.label, seed]
            if standing(training).finished and (record := test_record(training, row)):
                runs.append(_run(training, record, base))
            elif known := plan.known.get((row.variant.label, seed)):
                runs.append(_known_run(known, base))
        names = [name for name in (runs[0]["figures"] if runs else ()) if all(name in run["figures"] for run in runs)]
        figures = {name: [run["figures"][name] for run in runs] for name in names}
        variants.append(
            {
                "label": row.variant.label,
                "model": row.model,
                "options": row.options,
                "training": list(row.variant.training),
                "views": list(row.variant.views),
                "start": row.variant.start,
                "parameters": row.parameters,
                "macs": row.macs,
                "views_per_video": row.views.clips * row.views.crops,
                "published": dict(row.variant.published),
                "mean": {name: _rounded(statistics.fmean(values)) for name, values in figures.items()},
                "deviation": {
                    name: _rounded(statistics.stdev(values)) if len(values) > 1 else None
                    for name, values in figures.items()
                },
                "runs": runs,
            }
        )
    request = plan.request
    there = {(variant["label"], run["seed"]) for variant in variants for run in variant["runs"]}
    missing = [
        {"variant": row.variant.label, "seed": seed}
        for row in plan.rows
        for seed in request.seeds
        if (row.variant.label, seed) not in there
    ]
    runs = [run for variant in variants for run in variant["runs"]]
    hours = Costs(plan).hours_left(plan.whole, jobs, timed=False)
    return {
        "study": request.study.name,
        "title": request.study.title,
        "source": request.study.source,
        "note": request.study.note,
        "command": request.command(whole=True),
        "commands": _commands(request, there),
        "data": _data(plan),
        "recipe": plan.recipe,
        "backbone": request.backbone,
        "set": list(request.overrides),
        "metric": plan.metric,
        "device": _joined(run["device"] for run in runs),
        "threads": _one([run["threads"] for run in runs]),
        "versions": _versions([run["versions"] for run in runs]),
        "seeds": list(request.seeds),
        "config": plan.base.to_dict(),
        "variants": variants,
        **judged(request.study, variants, plan.metric),
        "missing": missing,
        "hours_left": None if hours is None else _rounded(hours),
    }


def _commands(request: Request, there: set[tuple[str, int]]) -> list[str]:
    """The commands that make a table whose rows have these seeds: one for all rows that have the same."""
    rows: dict[tuple[int, ...], list[str]] = {}
    for variant in request.study.variants:
        seeds = tuple(sorted(seed for label, seed in there if label == variant.label))
        rows.setdefault(seeds, []).append(variant.label)
    return [
        replace(request, seeds=seeds, known=None, variants=() if len(rows) == 1 else tuple(labels)).command()
        for seeds, labels in rows.items()
        if seeds
    ]


def judged(study: Study, variants: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The study's claims and goals with what became of them, from the runs of its ``variants`` in ``study.json``.

    A claim is judged by the ``seeds`` that both rows have: ``difference`` is that of their means of ``metric``,
    ``deviation`` that of a difference between single runs, √(s² + s'²) with the sample deviations of both, None of one
    seed. A goal's ``value`` is that of all seeds, ``seeds`` the least that a row of it has.
    """
    found = {variant["label"]: {run["seed"]: run["figures"][metric] for run in variant["runs"]} for variant in variants}
    return {
        "claims": [
            asdict(claim) | _claim(found.get(claim.better, {}), found.get(claim.worse, {})) for claim in study.claims
        ],
        "goals": [asdict(goal) | _goal(goal, [found.get(label, {}) for label in goal.of]) for goal in study.goals],
    }


def _claim(better: Mapping[int, float], worse: Mapping[int, float]) -> dict[str, Any]:
    seeds = sorted({*better} & {*worse})
    if not seeds:
        return {"seeds": [], "difference": None, "deviation": None, "holds": None}
    ours, others = [better[seed] for seed in seeds], [worse[seed] for seed in seeds]
    difference = statistics.fmean(ours) - statistics.fmean(others)
    deviation = math.hypot(statistics.stdev(ours), statistics.stdev(others)) if len(seeds) > 1 else None
    return {
        "seeds": seeds,
        "difference": _rounded(difference),
        "deviation": None if deviation is None else _rounded(deviation),
        "holds": difference >= 0,
    }


def _goal(goal: Goal, rows: Sequence[Mapping[int, float]]) -> dict[str, Any]:
    seeds = min(map(len, rows))
    if not seeds:
        return {"seeds": 0, "value": None, "reached": None}
    means = [statistics.fmean(row.values()) for row in rows]
    value = means[0]
    if goal.what == "difference":
        value -= means[1]
    elif goal.what == "spread":
        value = max(means) - min(means)
    reached = (goal.low is None or value >= goal.low) and (goal.high is None or value <= goal.high)
    return {"seeds": seeds, "value": _rounded(value), "reached": reached}


def only_told_in(before: dict[str, Any], study: dict[str, Any]) -> list[tuple[str, int]]:
    """The runs, by row and seed, whose figures an earlier ``study.json`` has and this one has not."""

    def runs(of: dict[str, Any]) -> set[tuple[str, int]]:
        return {(variant["label"], run["seed"]) for variant in of["variants"] for run in variant["runs"]}

    return sorted(runs(before) - runs(study))


def keep_aside(folder: Path) -> Path:
    """Rename the ``study.json`` of a folder to the first of ``study-1.json`` … that is free."""
    free = next(path for number in itertools.count(1) if not (path := folder / f"study-{number}.json").exists())
    return (folder / "study.json").rename(free)


def _run(training: Training, record: dict[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    account = RunAccount.read(training.folder)
    video, origin = record["video"], account.origin
    own = flat(account.config.to_dict())
    return {
        "seed": training.seed,
        "figures": {
            name: _rounded(value)
            for name, value in video.items()
            if isinstance(value, int | float) and name != "videos"
        },
        "per_class": _per_class(video),
        **({"unreadable_videos": record["unreadable"]} if record["unreadable"] else {}),
        "config_sha256": account.config.sha256,
        "weights_sha256": record["weights_sha256"],
        "start_sha256": (origin.get("weights") or {}).get("sha256"),
        "videos_sha256": origin["data"].get("videos_sha256"),
        "seconds": round(standing(training).seconds, 1),
        "device": origin["device"],
        "threads": origin.get("threads"),
        "versions": origin["versions"],
        "config": _own(own, base),
    }


def _known_run(known: Known, base: Mapping[str, Any]) -> dict[str, Any]:
    """A run as it was told of, its configuration seen from this study's, with fields that there were not then."""
    return {
        **known.run,
        "config_sha256": known.config.sha256,
        "videos_sha256": known.videos_sha256,
        "config": _own(flat(known.config.to_dict()), base),
    }


def _own(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's configuration has of its own."""
    return {key: values.get(key) for key in sorted({*values, *base}) if values.get(key) != base.get(key)}


def _per_class(video: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    if "heads" in video:
        return {
            name: value
            for head, figures in video["heads"].items()
            for name, value in _per_class(figures, f"{head}.").items()
        }
    figures = {row["class"]: row.get("accuracy", row.get("average_precision")) for row in video["per_class"]}
    return {f"{prefix}{name}": None if value is None else round(value, 2) for name, value in figures.items()}


def _data(plan: Plan) -> dict[str, Any]:
    manifest: Manifest = plan.manifest
    train, validation = plan.parts[plan.request.seeds[0]]
    return {
        "source": portable_path(plan.data, Path.cwd()),
        "rendered": plan.request.data is None,
        "classes": len(manifest.classes),
        "training_videos": len(train),
        "validation_videos": len(validation),
        "classes_sha256": manifest.classes_hash,
        "videos_sha256": videos_hash(train, validation),
    }


def _rounded(value: float) -> float:
    return round(value, _DIGITS)


def _joined(values: Iterable[Any]) -> str | None:
    return "; ".join(dict.fromkeys(str(value) for value in values if value is not None)) or None


def _one(values: Sequence[Any]) -> Any:
    """The value that all have, those there are where they differ, None of none."""
    different = sorted({value for value in values if value is not None})
    return different[0] if len(different) == 1 else different or None


def _versions(each: Sequence[Mapping[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(name for versions in each for name in versions)
    return {name: ", ".join(sorted({versions[name] for versions in each if name in versions})) for name in names}


def read_study(folder: Path, study: Study) -> dict[str, Any] | None:
    """The ``study.json`` of a folder; None where there is none.

    Raises:
        ValueError: if it is damaged, or that of another study.
    """
    path = folder / "study.json"
    if not path.is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (name := told["study"]) == study.name:
            # Of a file that an earlier release wrote, too, by today's claims and goals.
            told |= judged(study, told["variants"], told["metric"])
            told.setdefault("commands", [])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: damaged ({error!r}); delete it, for it is made anew from the runs beside it"
        ) from error
    if name != study.name:
        raise ValueError(f"{folder}: holds the study {name}; give {study.name} another --output")
    return told


def write_report(folder: Path, study: dict[str, Any]) -> None:
    """Write ``study.json``, ``study.md`` and ``study.png``, each whole or not at all."""
    write_json(folder / "study.json", study)
    with written_whole(folder / "study.md") as partial:
        partial.write_text(_markdown(study), encoding="utf-8")
    metric, measured = study["metric"], [variant for variant in study["variants"] if variant["runs"]]
    if measured:
        videos = "rendered videos" if study["data"]["rendered"] else Path(study["data"]["source"]).stem
        study_figure(
            folder / "study.png",
            {v["label"]: [run["figures"][metric] for run in v["runs"]] for v in study["variants"]},
            {v["label"]: v["macs"] * v["views_per_video"] / 1e9 for v in study["variants"]},
            f"{study['title']} – {study['backbone']}, {videos}",
            f"{METRICS.get(metric, metric)}, percent",
        )


def table(study: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a study's table, as text."""
    metric, variants = study["metric"], study["variants"]
    also = [name for name in ("top1", "mean_class_accuracy", "joint.top1") if name != metric]
    # Where all classes have as many videos, top-1 and the mean over classes are one.
    means = [variant["mean"] for variant in variants]
    metrics = [metric, *(name for name in also if any(name in mean and mean[name] != mean[metric] for mean in means))]
    published = list(dict.fromkeys(name for variant in variants for name in variant["published"]))
    head = ["variant", "params (M)", "GMACs", *(METRICS.get(name, name) for name in metrics), "seeds"]
    rows = [
        [
            variant["label"],
            f"{variant['parameters'] / 1e6:.2f}",
            f"{variant['macs'] / 1e9:.2f}" + (f" × {n}" if (n := variant["views_per_video"]) > 1 else ""),
            *(_figure(variant, name) for name in metrics),
            str(len(variant["runs"])),
            *(_published(variant["published"].get(name)) for name in published),
        ]
        for variant in variants
    ]
    return [*head, *(f"{PUBLISHED}{name}" for name in published)], rows


def _published(figure: float | None) -> str:
    return "–" if figure is None else f"{round(figure, 2):g}"


def _figure(variant: dict[str, Any], metric: str) -> str:
    if metric not in variant["mean"]:
        return "–"
    deviation = variant["deviation"][metric]
    return f"{variant['mean'][metric]:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def claim_lines(study: dict[str, Any]) -> list[str]:
    """What became of each claim, a line each."""
    return [f"{claim['text']}: {_verdict(claim)}" for claim in study["claims"]]


def _verdict(claim: dict[str, Any]) -> str:
    difference, deviation = claim["difference"], claim["deviation"]
    if difference is None:
        return "not measured yet"
    says = "holds" if claim["holds"] else "does not hold"
    points = f"{difference:+.1f} points".replace("-", "−")
    if deviation is None:
        return f"{says}, {points}; of one seed, so the seeds' deviation is unknown"
    size = "more than" if abs(difference) > deviation else "within"
    return f"{says}, {points}, {size} the seeds' deviation of {deviation:.1f} ({len(claim['seeds'])} seeds)"


def goal_lines(study: dict[str, Any]) -> list[str]:
    """What became of each goal, a line each."""
    return [f"{goal['text']}: {_reached(goal)}" for goal in study["goals"]]


def _reached(goal: dict[str, Any]) -> str:
    if goal["value"] is None:
        return "not measured yet"
    seeds = "1 seed" if goal["seeds"] == 1 else f"{goal['seeds']} seeds"
    return f"{'reached' if goal['reached'] else 'not reached'}, {goal['value']:.2f} ({seeds})"


def missing_line(study: dict[str, Any], labels: Sequence[str] | None = None) -> str:
    """The runs that are missing, by variant, of some variants or all; empty where none is."""
    seeds: dict[str, list[str]] = {}
    for run in study["missing"]:
        if labels is not None and run["variant"] not in labels:
            continue
        seeds.setdefault(run["variant"], []).append(str(run["seed"]))
    return "; ".join(f"{label} (seed {', '.join(each)})" for label, each in seeds.items())


def duration(hours: float) -> str:
    """``2.5 hours``, ``40 minutes``."""
    minutes = max(1, round(hours * 60))
    return f"{hours:.1f} hours" if minutes >= 60 else f"{minutes} minute{'s' * (minutes > 1)}"


def _markdown(study: dict[str, Any]) -> str:
    head, rows = table(study)
    data, metric = study["data"], METRICS.get(study["metric"], study["metric"])
    many = len({variant["views_per_video"] for variant in study["variants"]}) > 1
    unread = sum(run.get("unreadable_videos", 0) for variant in study["variants"] for run in variant["runs"])
    parts = [
        f"# {study['title']}",
        f"{study['source']}. {study['note']}".strip(),
        f"{data['source']}: {data['training_videos']} videos to train on, {data['validation_videos']} to test on, "
        f"{data['classes']} classes. Recipe {study['recipe'] or '–'}, {study['backbone']}. Last weights, {metric} in "
        "percent, mean ± sample deviation over the seeds; GMACs of a clip's convolutions"
        + (" × views of a video." if many else "."),
        "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in [head, ["---"] * len(head), *rows]),
    ]
    if lines := [*claim_lines(study), *goal_lines(study)]:
        parts.append("\n".join(f"- {line}" for line in lines))
    if unread:
        parts.append(f"**{unread} videos could not be read in testing: these figures are those of the rest.**")
    if study["missing"]:
        left = "" if study["hours_left"] is None else f" (about {duration(study['hours_left'])})"
        parts.append(f"**Missing:** {missing_line(study)}. What goes on{left}:")
        parts.append(f"```\n{study['command']}\n```")
    if study["commands"]:
        parts.append("What made the table:\n\n```\n" + "\n".join(study["commands"]) + "\n```")
    made = [study["device"], *(f"{name} {number}" for name, number in study["versions"].items())]
    parts.append(", ".join(part for part in made if part) + "." if study["device"] else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
