"""The report's page: the headline first, then what it rests on, then how to repeat it.

Rules of this file:
    * One file, no script, nothing fetched: it opens without a network, prints, and follows the reader's light or
      dark setting.
    * Real devices head the page; virtual and cold-start devices have rows of their own that say so.
    * Every epsilon stands with its delta, sampling, relation and unit, and its scope is on the page.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fedretrain.privacy.example import example_scope_text
from sim.example_privacy import DELTA
from sim.report import words
from sim.report.figures import all_figures
from sim.report.markup import facts, figure, markup_table, swatch, table
from sim.report.reading import reading
from sim.report.style import STYLE_SHEET, arm_colours, variable
from sim.report.words import Words
from sim.results import SCHEMA_VERSION, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.results import ArmSummary, Estimate, ModelScores, PopulationScores, Run, SpreadEstimate


def render_report(run: Run) -> str:
    """`report.html` of a run.

    Args:
        run: The finished run; its summary need not name its files yet.

    Returns:
        A complete HTML document.
    """
    s = run.summary
    say = Words(s.metric, escape(s.metric_unit))  # for markup; the figures escape for themselves
    figures = all_figures(run, Words(s.metric, s.metric_unit))
    sections = [
        f'<section class="cards" aria-label="Headline">{"".join(_cards(run, say))}</section>',
        _reading(run, say),
        f'<h2>Arms</h2><section class="panel">{_headline_table(run, say)}</section>',
        f'<h2>Figures</h2><div class="grid">{"".join(figure(f) for f in figures)}</div>',
        f'<h2>What it cost</h2><section class="panel">{_cost_table(run)}</section>',
        _privacy(run),
        _caveats(run),
        _provenance(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(s.experiment)} \u2013 fedretrain</title><style>{STYLE_SHEET}</style></head>"
        f"<body>{_header(run)}<main>{''.join(sections)}</main>{_footer(run)}</body></html>\n"
    )


def _reading(run: Run, say: Words) -> str:
    paragraphs = "".join(f"<p>{text}</p>" for text in reading(run, say))
    small = f'<p class="small">{escape(_footing(run))}</p>'
    return f'<section class="panel reading" aria-label="Reading">{paragraphs}{small}</section>'


def _footer(run: Run) -> str:
    version = escape(run.summary.environment.code_version)
    return f"<footer>Written by fedretrain {version}, schema {SCHEMA_VERSION}. Nothing here was fetched from a network.</footer>"


def _header(run: Run) -> str:
    s = run.summary
    real = s.num_devices - s.num_virtual_devices
    fleet = [f"<b>{real:,}</b> real"] if real else []
    fleet += [f"<b>{s.num_virtual_devices:,}</b> virtual"] if s.num_virtual_devices else []
    seeds = f"<b>{len(s.seeds)}</b> seed{'s' if len(s.seeds) != 1 else ''}"
    rounds = max((r.round for r in run.rounds), default=-1) + 1
    return (
        f"<header><h1>{escape(s.experiment)}</h1>"
        f'<p class="sub">A simulated fleet of {" and ".join(fleet)} devices on <b>{escape(s.dataset)}</b> · '
        f"<b>{rounds}</b> rounds · {seeds} · {words.seconds(s.seconds)} on {s.environment.cores} cores · "
        f"{escape(s.started_at.replace('T', ' '))}</p></header>"
    )


def _cards(run: Run, say: Words) -> Iterator[str]:
    for colour, arm in zip(arm_colours(len(run.summary.arms)), run.summary.arms, strict=True):
        head = arm.headline
        if head is None:
            continue
        score = (head.personalized or head.global_model).score
        model = "personalized models" if head.personalized else "global model"
        shown = {
            "10th percentile": say.score(score.p10.value),
            "worst device": say.score(score.worst.value),
            f"epsilon per {escape(arm.privacy.unit)}" if arm.privacy else "epsilon": (
                f"{arm.privacy.epsilon:.2f}" if arm.privacy else "no DP"
            ),
        }
        rows = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in shown.items())
        who = f"{model}, {words.people(head.population, head.num_devices)}"
        yield (
            f'<article class="card" style="--arm:{variable(colour)}"><div class="name">{escape(arm.title)}</div>'
            f'<div class="what">{who}</div><div class="big">{say.score(score.mean.value)}</div>'
            f'<div class="int">{_mean_line(score.mean, say)}</div><dl>{rows}</dl></article>'
        )


def _mean_line(estimate: Estimate, say: Words) -> str:
    shown = say.interval(estimate)
    return f"mean {say.name}{f', 95{words.NBSP}% interval {shown}' if shown else ''}"


def _footing(run: Run) -> str:
    num = len(run.summary.seeds)
    over = (
        f"Intervals are 95\u00a0%: Student\u2019s t over {num} seeds, differences paired by seed and device."
        if num > 1
        else "One seed: intervals are 95\u00a0% bootstraps over devices, and say nothing about another run\u2019s luck."
    )
    made = (
        " Virtual devices are made from real signals or generated, and never counted as real."
        if run.summary.num_virtual_devices
        else ""
    )
    tenth = "The 10th percentile is what nine devices in ten reach or better."
    return f"{over} Devices count alike, however many rows they hold. {tenth}{made}"


def _headline_table(run: Run, say: Words) -> str:
    """The headline population of every arm; the others fold away below it."""
    arms = list(zip(arm_colours(len(run.summary.arms)), run.summary.arms, strict=True))
    firsts = [(colour, arm, arm.headline) for colour, arm in arms if arm.headline is not None]
    rest = [(colour, arm, p) for colour, arm in arms for p in arm.populations if p is not arm.headline]
    shown = _score_table(firsts, say, "Scores of every arm")
    if not rest:
        return shown
    apart = _score_table(rest, say, "Scores of virtual and cold-start devices")
    return f"{shown}<details><summary>Virtual devices, and devices that never took part</summary>{apart}</details>"


def _score_table(groups: list[tuple[str, ArmSummary, PopulationScores]], say: Words, caption: str) -> str:
    more = ["Macro-F1"] if say.metric is Metric.ACCURACY else ["MAE", "R\u00b2"]
    unit = f"<small>{say.unit}</small>" if say.unit else ""
    header = [
        "Arm",
        "Model",
        f"Mean {say.name}{unit}",
        "10th percentile",
        "Worst device",
        *more,
        "Gain",
        "Epsilon",
    ]
    head = "".join(f'<th scope="col"{" class=left" if i == 1 else ""}>{h}</th>' for i, h in enumerate(header))
    return markup_table(
        head, "".join(_population_rows(colour, arm, found, say) for colour, arm, found in groups), caption
    )


def _population_rows(colour: str, arm: ArmSummary, found: PopulationScores, say: Words) -> str:
    """A row for the global model, and one for the personalized models where there are any."""
    who = words.people(found.population, found.num_devices)
    span = 2 if found.personalized else 1
    title = f"{swatch(colour)}{escape(arm.title)}<small>{who}</small>"
    first = f'<th scope="rowgroup" rowspan="{span}">{title}</th>'
    own, none = _epsilon_cell(arm, span), f"<td>{words.DASH}</td>"
    if found.personalized is None:
        return f"<tr>{first}{_model_cells('global', found.global_model, say)}{none}{own}</tr>"
    gain = none if found.gain is None else _cell(_signed(found.gain, say), say.interval(found.gain))
    return (
        f"<tr class=soft>{first}{_model_cells('global', found.global_model, say)}{none}{own}</tr>"
        f"<tr>{_model_cells('personalized', found.personalized, say)}{gain}</tr>"
    )


def _model_cells(which: str, model: ModelScores, say: Words) -> str:
    score = model.score
    cells = [_cell(say.cell(e.value), say.interval(e)) for e in (score.mean, score.p10, score.worst)]
    return "".join([f'<td class="left">{which}</td>', *cells, *_extra_cells(model, say)])


def _extra_cells(model: ModelScores, say: Words) -> list[str]:
    if say.metric is Metric.ACCURACY:
        return [f"<td>{_mean(model.macro_f1)}</td>"]
    mae = say.cell(model.mae.mean.value) if model.mae else words.DASH
    return [f"<td>{mae}</td>", f"<td>{_mean(model.r2)}</td>"]


def _mean(found: SpreadEstimate | None) -> str:
    return words.DASH if found is None else words.fraction(found.mean.value)


def _cell(value: str, interval: str) -> str:
    return f"<td>{value}{f'<small>{interval}</small>' if interval else ''}</td>"


def _signed(gain: Estimate, say: Words) -> str:
    return f"{'+' if gain.value >= 0 else words.MINUS}{_size(gain, say)}"


def _size(gain: Estimate, say: Words) -> str:
    return say.difference(gain.value) if say.metric is Metric.ACCURACY else say.cell(abs(gain.value))


def _epsilon_cell(arm: ArmSummary, span: int) -> str:
    p = arm.privacy
    if p is None:
        return f'<td rowspan="{span}">no DP</td>'
    return f'<td rowspan="{span}">{p.epsilon:.2f}<small>per {escape(p.unit)}<br>delta {words.power(p.delta)}</small></td>'


def _cost_table(run: Run) -> str:
    header = (
        "Arm",
        "Rounds",
        "Abandoned",
        "Updates used",
        "Contributed nothing",
        "Up",
        "Down",
        "Time",
        "Peak memory",
    )
    rows = [
        (
            arm.title,
            words.count(arm.rounds),
            words.count(arm.abandoned),
            words.count(arm.replied),
            words.count(sum(arm.dropouts.values())),
            words.size(arm.bytes_up),
            words.size(arm.bytes_down),
            words.seconds(arm.seconds),
            words.memory(arm.peak_memory_bytes),
        )
        for arm in run.summary.arms
    ]
    return table(header, rows, "What each arm cost, mean over seeds")


def _privacy(run: Run) -> str:
    parts = []
    for arm in run.summary.arms:
        if arm.privacy is None and arm.example_epsilon is None:
            continue
        parts.append(f"<h3>{escape(arm.title)}</h3>{facts(_privacy_facts(arm))}")
    if not parts:
        parts = [
            "<p>No arm of this run used differential privacy: its weights carry no privacy guarantee.</p>"
        ]
    tail = (
        "<p>The scores, curves and per-device figures on this page are the simulator\u2019s oracle. They are computed from "
        "data that a real server never sees, and are outside every epsilon above; so is choosing a model by them.</p>"
    )
    return f'<h2>What the epsilon says, and does not say</h2><section class="panel">{"".join(parts)}{tail}</section>'


def _privacy_facts(arm: ArmSummary) -> dict[str, str]:
    found: dict[str, str] = {}
    p = arm.privacy
    if p is not None:
        budget = f", of a budget of {p.target_epsilon:g}" if p.target_epsilon else ""
        found |= {
            "Epsilon": f"<b>{p.epsilon:.3f}</b> at delta {words.power(p.delta)}{budget}; {escape(p.accountant.upper())} accountant",
            "Protects": f"one {escape(p.unit)}, under the {escape(words.term(p.relation))} relation",
            "Rests on": f"{escape(words.term(p.sampling))} sampling of cohorts",
            "Mechanism": f"Gaussian, noise multiplier {p.noise_multiplier:.3g}, clip norm {p.clip_norm:.3g}",
            "Scope": escape(p.scope),
        }
        found |= {"Advice": escape(p.advice)} if p.advice else {}
    if arm.example_epsilon is not None:
        found["Example level"] = escape(example_scope_text(arm.example_epsilon, DELTA))
    return found


def _caveats(run: Run) -> str:
    if not run.summary.caveats:
        return ""
    items = "".join(f"<li>{escape(c)}</li>" for c in run.summary.caveats)
    return f'<h2>Before you quote a figure</h2><section class="note"><ul>{items}</ul></section>'


def _provenance(run: Run) -> str:
    s, e = run.summary, run.summary.environment
    packages = ", ".join(f"{k} {v}" for k, v in e.packages.items())
    weights = [f"{a.arm}, seed {k}: {d}" for a in s.arms for k, d in a.weights_digests.items()]
    items = {
        "Code": escape(e.code_version),
        "Python": escape(f"{e.python} on {e.platform}, {e.cores} cores"),
        "Libraries": escape(packages),
        "Seeds": escape(", ".join(map(str, s.seeds))),
        "Data": f"<code>{escape(s.data_digest)}</code>",
        "Configuration": f"<code>{escape(s.config_digest)}</code>",
        "Weights": "<br>".join(f"<code>{escape(w)}</code>" for w in weights),
    }
    return (
        f'<h2>To repeat it</h2><section class="panel">{facts(items)}'
        f"<details><summary>Resolved configuration</summary><pre>{escape(run.config)}</pre></details></section>"
    )
